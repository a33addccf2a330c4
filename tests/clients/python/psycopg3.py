"""psycopg 3 with psycopg_pool."""

import contextlib
import threading
import time

import psycopg
from psycopg_pool import ConnectionPool

from contract import BIG_ROWS, BIG_VALUE, CLIENT, COPIED, IS_SLEEPING, PATIENCE, SLEEP, URL, expect, run


class Client:
    def __init__(self):
        self.one = psycopg.connect(URL, autocommit=True)
        self.pool = ConnectionPool(
            URL, min_size=4, max_size=4, check=ConnectionPool.check_connection, timeout=PATIENCE
        )

    @contextlib.contextmanager
    def connection(self):
        with self.pool.connection() as connection:
            yield lambda sql: connection.execute(sql).fetchone()[0]

    def close(self):
        self.pool.close()
        self.one.close()

    def value(self, sql, arguments=()):
        return self.one.execute(sql, arguments).fetchone()[0]

    def query(self):
        row = self.one.execute("SELECT %s::int + 1, %s::text, %s::float8, %s::date", (41, "é€", 0.5, None)).fetchone()
        expect(row, (42, "é€", 0.5, None))

    def prepared(self):
        for number in range(8):
            found = self.one.execute("SELECT id FROM t WHERE id = %s", (number + 1,), prepare=True).fetchone()
            expect(found, (number + 1,))
        expect(self.value("SELECT count(*) FROM pg_prepared_statements WHERE starts_with(statement, 'SELECT id FROM t')"), 1)

    def transaction(self):
        insert = "INSERT INTO client_rows VALUES (%s, %s, 'transaction')"
        with self.one.transaction():
            self.one.execute(insert, (CLIENT, -1))
        with contextlib.suppress(psycopg.Rollback), self.one.transaction() as transaction:
            self.one.execute(insert, (CLIENT, -2))
            raise psycopg.Rollback(transaction)
        rows = self.one.execute("SELECT id FROM client_rows WHERE client = %s AND note = 'transaction'", (CLIENT,))
        expect(rows.fetchall(), [(-1,)])

    def copy(self):
        with self.one.cursor() as cursor:
            with cursor.copy("COPY client_rows FROM STDIN") as copy:
                for number in range(COPIED):
                    copy.write_row((CLIENT, number, "copied"))
            query = "COPY (SELECT id FROM client_rows WHERE client = %s AND note = 'copied' ORDER BY id) TO STDOUT"
            with cursor.copy(query, (CLIENT,)) as copy:
                expect([int(row[0]) for row in copy.rows()], list(range(COPIED)))

    def notify(self):
        with psycopg.connect(URL, autocommit=True) as other:
            self.one.execute("LISTEN psycopg3")
            other.execute("NOTIFY psycopg3, 'hello'")
            (told,) = self.one.notifies(timeout=PATIENCE, stop_after=1)
            expect((told.channel, told.payload, told.pid), ("psycopg3", "hello", other.info.backend_pid))

    def cancel(self):
        with psycopg.connect(URL, autocommit=True) as sleeper:
            threading.Thread(target=cancel_once_it_runs, args=(self, sleeper)).start()
            try:
                sleeper.execute(SLEEP)
                raise AssertionError("not cancelled")
            except psycopg.errors.QueryCanceled as error:
                expect(error.sqlstate, "57014")
            expect(sleeper.execute("SELECT 1").fetchone(), (1,))

    def error(self):
        for sql, sqlstate in (("INSERT INTO t VALUES (1)", "23505"), ("SELECT 1 FROM missing", "42P01")):
            try:
                self.one.execute(sql)
                raise AssertionError("no error")
            except psycopg.Error as error:
                expect(error.sqlstate, sqlstate)
        expect(self.value("SELECT 1"), 1)

    def big(self):
        rows = self.one.execute("SELECT generate_series(1, %s)", (BIG_ROWS,)).fetchall()
        expect((len(rows), rows[-1]), (BIG_ROWS, (BIG_ROWS,)))
        expect(len(self.value("SELECT repeat('x', %s)", (BIG_VALUE,))), BIG_VALUE)

    def ended(self):
        try:
            with self.connection() as value:
                value("SELECT pg_terminate_backend(pg_backend_pid())")
            raise AssertionError("not ended")
        except psycopg.errors.AdminShutdown as error:
            expect(error.sqlstate, "57P01")
        with self.connection() as value:
            expect(value("SELECT 1"), 1)


def cancel_once_it_runs(client, sleeper):
    while client.value(IS_SLEEPING) != 1:
        time.sleep(0.02)
    sleeper.cancel_safe(timeout=PATIENCE)


run(Client())
