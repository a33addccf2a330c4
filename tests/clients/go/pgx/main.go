// pgx with pgxpool.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	. "clients/contract"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

var ctx = context.Background()

type program struct {
	one  *pgx.Conn
	pool *pgxpool.Pool
}

func (p program) With(during func(Value) error) error {
	conn, err := p.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	return during(func(sql string) (value int64, err error) {
		err = conn.QueryRow(ctx, sql).Scan(&value)
		return value, err
	})
}

func (p program) Close() {
	p.pool.Close()
	p.one.Close(ctx)
}

func (p program) query() error {
	var number int
	var text string
	var half float64
	var nothing *string
	row := p.one.QueryRow(ctx, "SELECT $1::int + 1, $2::text, $3::float8, $4::text", 41, "é€", 0.5, nil)
	if err := row.Scan(&number, &text, &half, &nothing); err != nil {
		return err
	}
	return Expect([]any{number, text, half, nothing}, []any{42, "é€", 0.5, (*string)(nil)})
}

func (p program) prepared() error {
	if _, err := p.one.Prepare(ctx, "by_id", "SELECT id FROM t WHERE id = $1"); err != nil {
		return err
	}
	for number := 1; number <= 8; number++ {
		if err := p.expect(number, "by_id", number); err != nil {
			return err
		}
	}
	return p.expect(1, "SELECT count(*) FROM pg_prepared_statements WHERE name = 'by_id'")
}

func (p program) expect(wanted int, sql string, arguments ...any) error {
	var found int
	if err := p.one.QueryRow(ctx, sql, arguments...).Scan(&found); err != nil {
		return err
	}
	return Expect(found, wanted)
}

func (p program) transaction() error {
	insert := func(id int, result error) error {
		return pgx.BeginFunc(ctx, p.one, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "INSERT INTO client_rows VALUES ($1, $2, 'transaction')", Client, id)
			return errors.Join(err, result)
		})
	}
	if err := insert(-1, nil); err != nil {
		return err
	}
	rolledBack := errors.New("rolled back")
	if err := insert(-2, rolledBack); !errors.Is(err, rolledBack) {
		return err
	}
	return p.expect(-1, "SELECT id FROM client_rows WHERE client = $1 AND note = 'transaction'", Client)
}

func (p program) copy() error {
	rows := pgx.CopyFromSlice(Copied, func(id int) ([]any, error) { return []any{Client, id, "copied"}, nil })
	copied, err := p.one.CopyFrom(ctx, pgx.Identifier{"client_rows"}, []string{"client", "id", "note"}, rows)
	if err != nil {
		return err
	}
	if err := Expect(copied, int64(Copied)); err != nil {
		return err
	}
	sql := "SELECT id FROM client_rows WHERE client = '" + Client + "' AND note = 'copied' ORDER BY id"
	var out bytes.Buffer
	if _, err := p.one.PgConn().CopyTo(ctx, &out, "COPY ("+sql+") TO STDOUT"); err != nil {
		return err
	}
	var wanted strings.Builder
	for id := range Copied {
		fmt.Fprintln(&wanted, id)
	}
	return Expect(out.String() == wanted.String(), true)
}

func (p program) notify() error {
	other, err := pgx.Connect(ctx, URL)
	if err != nil {
		return err
	}
	defer other.Close(ctx)
	if _, err := p.one.Exec(ctx, "LISTEN pgx"); err != nil {
		return err
	}
	if _, err := other.Exec(ctx, "NOTIFY pgx, 'hello'"); err != nil {
		return err
	}
	told, err := p.one.WaitForNotification(ctx)
	if err != nil {
		return err
	}
	return Expect(*told, pgconn.Notification{PID: other.PgConn().PID(), Channel: "pgx", Payload: "hello"})
}

func (p program) cancel() error {
	sleeper, err := pgx.Connect(ctx, URL)
	if err != nil {
		return err
	}
	defer sleeper.Close(ctx)
	cancelled := make(chan error)
	go func() {
		for p.expect(1, IsSleeping) != nil {
			time.Sleep(20 * time.Millisecond)
		}
		cancelled <- sleeper.PgConn().CancelRequest(ctx)
	}()
	_, err = sleeper.Exec(ctx, Sleep)
	if err := errors.Join(isError(err, "57014"), <-cancelled); err != nil {
		return err
	}
	var one int
	if err := sleeper.QueryRow(ctx, "SELECT 1").Scan(&one); err != nil {
		return err
	}
	return Expect(one, 1)
}

func (p program) error() error {
	_, twice := p.one.Exec(ctx, "INSERT INTO t VALUES (1)")
	_, missing := p.one.Exec(ctx, "SELECT 1 FROM missing")
	return errors.Join(isError(twice, "23505"), isError(missing, "42P01"), p.expect(1, "SELECT 1"))
}

func isError(err error, sqlstate string) error {
	var told *pgconn.PgError
	if !errors.As(err, &told) {
		return fmt.Errorf("%w where %s is right", err, sqlstate)
	}
	return Expect(told.Code, sqlstate)
}

func (p program) big() error {
	rows, err := p.one.Query(ctx, "SELECT generate_series(1, $1::int)", BigRows)
	if err != nil {
		return err
	}
	numbers, err := pgx.CollectRows(rows, pgx.RowTo[int])
	if err != nil {
		return err
	}
	if err := Expect([]int{len(numbers), numbers[BigRows-1]}, []int{BigRows, BigRows}); err != nil {
		return err
	}
	var value string
	if err := p.one.QueryRow(ctx, "SELECT repeat('x', $1)", BigValue).Scan(&value); err != nil {
		return err
	}
	return Expect(len(value), BigValue)
}

func (p program) ended() error {
	_, err := p.pool.Exec(ctx, "SELECT pg_terminate_backend(pg_backend_pid())")
	if err := isError(err, "57P01"); err != nil {
		return err
	}
	_, err = p.pool.Exec(ctx, "SELECT 1")
	return err
}

func main() {
	config, err := pgxpool.ParseConfig(URL)
	if err != nil {
		panic(err)
	}
	config.MaxConns = PoolSize
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		panic(err)
	}
	one, err := pgx.Connect(ctx, URL)
	if err != nil {
		panic(err)
	}
	p := program{one, pool}
	Run([]Step{
		{"query", p.query},
		{"prepared", p.prepared},
		{"transaction", p.transaction},
		{"copy", p.copy},
		{"notify", p.notify},
		{"cancel", p.cancel},
		{"error", p.error},
		{"big", p.big},
		{"ended", p.ended},
	}, p)
}
