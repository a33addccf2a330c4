"""psycopg2 with its own pool, which neither checks nor replaces what it lends."""

import contextlib
import io
import select
import threading
import time

import psycopg2
import psycopg2.errors
from psycopg2.pool import ThreadedConnectionPool

from contract import BIG_ROWS, BIG_VALUE, CLIENT, COPIED, IS_SLEEPING, PATIENCE, SLEEP, URL, expect, run


class Client:
    def __init__(self):
        self.one = psycopg2.connect(URL)
        self.one.autocommit = True
        self.pool = ThreadedConnectionPool(4, 4, URL)

    @contextlib.contextmanager
    def connection(self):
        connection = self.take()
        try:
            connection.autocommit = True
            yield lambda sql: rows(connection, sql)[0][0]
        finally:
            # One that has ended is not kept.
            self.pool.putconn(connection)

    def take(self):
        """A connection that lives."""
        while True:
            connection = self.pool.getconn()
            try:
                connection.cursor().execute("SELECT 1")
                connection.rollback()
                return connection
            except psycopg2.OperationalError:
                self.pool.putconn(connection, close=True)

    def close(self):
        self.pool.closeall()
        self.one.close()

    def query(self):
        (row,) = rows(self.one, "SELECT %s::int + 1, %s::text, %s::float8, %s::date", (41, "é€", 0.5, None))
        expect(row, (42, "é€", 0.5, None))

    def prepared(self):
        # It has no API of its own for these.
        rows(self.one, "PREPARE by_id (int) AS SELECT id FROM t WHERE id = $1", fetch=False)
        for number in range(8):
            expect(rows(self.one, "EXECUTE by_id (%s)", (number + 1,)), [(number + 1,)])
        expect(rows(self.one, "SELECT count(*) FROM pg_prepared_statements WHERE name = 'by_id'"), [(1,)])

    def transaction(self):
        insert = "INSERT INTO client_rows VALUES (%s, %s, 'transaction')"
        self.one.autocommit = False
        rows(self.one, insert, (CLIENT, -1), fetch=False)
        self.one.commit()
        rows(self.one, insert, (CLIENT, -2), fetch=False)
        self.one.rollback()
        self.one.autocommit = True
        query = "SELECT id FROM client_rows WHERE client = %s AND note = 'transaction'"
        expect(rows(self.one, query, (CLIENT,)), [(-1,)])

    def copy(self):
        lines = "".join(f"{CLIENT}\t{number}\tcopied\n" for number in range(COPIED))
        out = io.StringIO()
        with self.one.cursor() as cursor:
            cursor.copy_expert("COPY client_rows FROM STDIN", io.StringIO(lines))
            query = f"SELECT id FROM client_rows WHERE client = '{CLIENT}' AND note = 'copied' ORDER BY id"
            cursor.copy_expert(f"COPY ({query}) TO STDOUT", out)
        expect([int(line) for line in out.getvalue().splitlines()], list(range(COPIED)))

    def notify(self):
        with contextlib.closing(psycopg2.connect(URL)) as other:
            other.autocommit = True
            rows(self.one, "LISTEN psycopg2", fetch=False)
            rows(other, "NOTIFY psycopg2, 'hello'", fetch=False)
            while not self.one.notifies:
                if not select.select([self.one], [], [], PATIENCE)[0]:
                    raise AssertionError("no notification")
                self.one.poll()
            (told,) = self.one.notifies
            expect((told.channel, told.payload, told.pid), ("psycopg2", "hello", other.info.backend_pid))

    def cancel(self):
        with contextlib.closing(psycopg2.connect(URL)) as sleeper:
            sleeper.autocommit = True
            threading.Thread(target=cancel_once_it_runs, args=(self.one, sleeper)).start()
            try:
                rows(sleeper, SLEEP)
                raise AssertionError("not cancelled")
            except psycopg2.errors.QueryCanceled as error:
                expect(error.pgcode, "57014")
            expect(rows(sleeper, "SELECT 1"), [(1,)])

    def error(self):
        for sql, sqlstate in (("INSERT INTO t VALUES (1)", "23505"), ("SELECT 1 FROM missing", "42P01")):
            try:
                rows(self.one, sql)
                raise AssertionError("no error")
            except psycopg2.Error as error:
                expect(error.pgcode, sqlstate)
        expect(rows(self.one, "SELECT 1"), [(1,)])

    def big(self):
        found = rows(self.one, "SELECT generate_series(1, %s)", (BIG_ROWS,))
        expect((len(found), found[-1]), (BIG_ROWS, (BIG_ROWS,)))
        expect(len(rows(self.one, "SELECT repeat('x', %s)", (BIG_VALUE,))[0][0]), BIG_VALUE)

    def ended(self):
        try:
            with self.connection() as value:
                value("SELECT pg_terminate_backend(pg_backend_pid())")
            raise AssertionError("not ended")
        except psycopg2.OperationalError as error:
            # The end of the connection hides the server's words from it, as it does without pglease.
            expect(error.pgcode, None)
        with self.connection() as value:
            expect(value("SELECT 1"), 1)


def rows(connection, sql, arguments=None, fetch=True):
    with connection.cursor() as cursor:
        cursor.execute(sql, arguments)
        return cursor.fetchall() if fetch else None


def cancel_once_it_runs(watcher, sleeper):
    while rows(watcher, IS_SLEEPING) != [(1,)]:
        time.sleep(0.02)
    sleeper.cancel()


run(Client())
