// lib/pq with database/sql.
package main

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"time"

	. "clients/contract"

	"github.com/lib/pq"
)

var ctx = context.Background()

type program struct {
	one *sql.Conn
	db  *sql.DB
}

func (p program) With(during func(Value) error) error {
	conn, err := p.take()
	if err != nil {
		return err
	}
	defer conn.Close()
	return during(func(sql string) (value int64, err error) {
		err = conn.QueryRowContext(ctx, sql).Scan(&value)
		return value, err
	})
}

// take gives a connection that lives.
func (p program) take() (*sql.Conn, error) {
	for {
		conn, err := p.db.Conn(ctx)
		if err != nil {
			return nil, err
		}
		if conn.PingContext(ctx) == nil {
			return conn, nil
		}
		// One that has ended is not kept.
		conn.Close()
	}
}

func (p program) Close() {
	p.one.Close()
	p.db.Close()
}

func (p program) query() error {
	var number int
	var text string
	var half float64
	var nothing *string
	row := p.one.QueryRowContext(ctx, "SELECT $1::int + 1, $2::text, $3::float8, $4::text", 41, "é€", 0.5, nil)
	if err := row.Scan(&number, &text, &half, &nothing); err != nil {
		return err
	}
	return Expect([]any{number, text, half, nothing}, []any{42, "é€", 0.5, (*string)(nil)})
}

func (p program) prepared() error {
	byID, err := p.one.PrepareContext(ctx, "SELECT id FROM t WHERE id = $1")
	if err != nil {
		return err
	}
	defer byID.Close()
	for number := 1; number <= 8; number++ {
		var found int
		if err := byID.QueryRowContext(ctx, number).Scan(&found); err != nil {
			return err
		}
		if err := Expect(found, number); err != nil {
			return err
		}
	}
	return p.expect(1, "SELECT count(*) FROM pg_prepared_statements WHERE starts_with(statement, 'SELECT id FROM t')")
}

func (p program) expect(wanted int, sql string, arguments ...any) error {
	var found int
	if err := p.one.QueryRowContext(ctx, sql, arguments...).Scan(&found); err != nil {
		return err
	}
	return Expect(found, wanted)
}

func (p program) transaction() error {
	insert := func(id int, end func(*sql.Tx) error) error {
		tx, err := p.one.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		if _, err := tx.Exec("INSERT INTO client_rows VALUES ($1, $2, 'transaction')", Client, id); err != nil {
			return err
		}
		return end(tx)
	}
	if err := errors.Join(insert(-1, (*sql.Tx).Commit), insert(-2, (*sql.Tx).Rollback)); err != nil {
		return err
	}
	return p.expect(-1, "SELECT id FROM client_rows WHERE client = $1 AND note = 'transaction'", Client)
}

// copy goes one way: it has no COPY TO STDOUT.
func (p program) copy() error {
	tx, err := p.one.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	copying, err := tx.Prepare("COPY client_rows (client, id, note) FROM STDIN")
	if err != nil {
		return err
	}
	for id := range Copied {
		if _, err := copying.Exec(Client, id, "copied"); err != nil {
			return err
		}
	}
	if _, err := copying.Exec(); err != nil {
		return err
	}
	if err := errors.Join(copying.Close(), tx.Commit()); err != nil {
		return err
	}
	return p.expect(Copied, "SELECT count(*) FROM client_rows WHERE client = $1 AND note = 'copied'", Client)
}

func (p program) notify() error {
	listener := pq.NewListener(URL, time.Second, time.Minute, nil)
	defer listener.Close()
	if err := listener.Listen("lib_pq"); err != nil {
		return err
	}
	var pid int
	if err := p.one.QueryRowContext(ctx, "SELECT pg_backend_pid()").Scan(&pid); err != nil {
		return err
	}
	if _, err := p.one.ExecContext(ctx, "NOTIFY lib_pq, 'hello'"); err != nil {
		return err
	}
	told := <-listener.Notify
	return Expect(*told, pq.Notification{BePid: pid, Channel: "lib_pq", Extra: "hello"})
}

func (p program) cancel() error {
	sleeper, err := p.db.Conn(ctx)
	if err != nil {
		return err
	}
	defer sleeper.Close()
	until, cancel := context.WithCancel(ctx)
	go func() {
		for p.expect(1, IsSleeping) != nil {
			time.Sleep(20 * time.Millisecond)
		}
		cancel()
	}()
	_, err = sleeper.ExecContext(until, Sleep)
	if err := isError(err, "57014"); err != nil {
		return err
	}
	// It is cancelled on the server, too.
	for p.expect(0, IsSleeping) != nil {
		time.Sleep(20 * time.Millisecond)
	}
	return nil
}

func (p program) error() error {
	_, twice := p.one.ExecContext(ctx, "INSERT INTO t VALUES (1)")
	_, missing := p.one.ExecContext(ctx, "SELECT 1 FROM missing")
	return errors.Join(isError(twice, "23505"), isError(missing, "42P01"), p.expect(1, "SELECT 1"))
}

func isError(err error, sqlstate string) error {
	var told *pq.Error
	if !errors.As(err, &told) {
		return fmt.Errorf("%w where %s is right", err, sqlstate)
	}
	return Expect(string(told.Code), sqlstate)
}

func (p program) big() error {
	rows, err := p.one.QueryContext(ctx, "SELECT generate_series(1, $1::int)", BigRows)
	if err != nil {
		return err
	}
	defer rows.Close()
	count, last := 0, 0
	for rows.Next() {
		if err := rows.Scan(&last); err != nil {
			return err
		}
		count++
	}
	if err := errors.Join(rows.Err(), Expect([]int{count, last}, []int{BigRows, BigRows})); err != nil {
		return err
	}
	var value string
	if err := p.one.QueryRowContext(ctx, "SELECT repeat('x', $1)", BigValue).Scan(&value); err != nil {
		return err
	}
	return Expect(len(value), BigValue)
}

func (p program) ended() error {
	// Taken for a bad connection, so that database/sql tries it on others, which it ends as well.
	_, err := p.db.Exec("SELECT pg_terminate_backend(pg_backend_pid())")
	if err := Expect(errors.Is(err, driver.ErrBadConn), true); err != nil {
		return err
	}
	_, err = p.db.Exec("SELECT 1")
	return err
}

func main() {
	db, err := sql.Open("postgres", URL)
	if err != nil {
		panic(err)
	}
	// One for the steps.
	db.SetMaxOpenConns(PoolSize + 1)
	db.SetMaxIdleConns(PoolSize + 1)
	one, err := db.Conn(ctx)
	if err != nil {
		panic(err)
	}
	p := program{one, db}
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
