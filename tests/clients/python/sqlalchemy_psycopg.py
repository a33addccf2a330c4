"""SQLAlchemy on psycopg 3, with its own pool."""

import contextlib
import threading
import time

import sqlalchemy as sa

from contract import BIG_ROWS, BIG_VALUE, CLIENT, COPIED, IS_SLEEPING, PATIENCE, SLEEP, URL, expect, run


class Client:
    def __init__(self):
        url = URL.replace("postgresql://", "postgresql+psycopg://", 1)
        pool = {"pool_size": 4, "max_overflow": 0, "pool_timeout": PATIENCE}
        self.engine = sa.create_engine(url, pool_pre_ping=True, **pool)

    @contextlib.contextmanager
    def connection(self):
        with self.engine.connect() as connection:
            yield lambda sql: connection.exec_driver_sql(sql).scalar()

    def close(self):
        self.engine.dispose()

    def query(self):
        query = sa.text(
            "SELECT CAST(:number AS int) + 1, CAST(:text AS text), CAST(:half AS float8), CAST(:day AS date)"
        )
        with self.engine.connect() as connection:
            row = connection.execute(query, {"number": 41, "text": "é€", "half": 0.5, "day": None}).one()
        expect(tuple(row), (42, "é€", 0.5, None))

    def prepared(self):
        # The driver prepares what it has executed five times.
        with self.engine.connect() as connection:
            for number in range(8):
                found = connection.execute(sa.text("SELECT id FROM t WHERE id = :id"), {"id": number + 1})
                expect(found.scalar(), number + 1)
            query = "SELECT count(*) FROM pg_prepared_statements WHERE starts_with(statement, 'SELECT id FROM t')"
            expect(connection.exec_driver_sql(query).scalar(), 1)

    def transaction(self):
        insert = sa.insert(ROWS)
        with self.engine.begin() as connection:
            connection.execute(insert, {"client": CLIENT, "id": -1, "note": "transaction"})
        with contextlib.suppress(ZeroDivisionError), self.engine.begin() as connection:
            connection.execute(insert, {"client": CLIENT, "id": -2, "note": "transaction"})
            raise ZeroDivisionError
        query = sa.select(ROWS.c.id).where(ROWS.c.client == CLIENT, ROWS.c.note == "transaction")
        with self.engine.connect() as connection:
            expect(connection.scalars(query).all(), [-1])

    def copy(self):
        # Of the driver, below it.
        with self.engine.begin() as connection:
            driver = connection.connection.driver_connection
            with driver.cursor().copy("COPY client_rows FROM STDIN") as copy:
                for number in range(COPIED):
                    copy.write_row((CLIENT, number, "copied"))
            query = "COPY (SELECT id FROM client_rows WHERE client = %s AND note = 'copied' ORDER BY id) TO STDOUT"
            with driver.cursor().copy(query, (CLIENT,)) as copy:
                expect([int(row[0]) for row in copy.rows()], list(range(COPIED)))

    def cancel(self):
        with self.engine.connect() as sleeper:
            driver = sleeper.connection.driver_connection
            threading.Thread(target=self.cancel_once_it_runs, args=(driver,)).start()
            try:
                sleeper.exec_driver_sql(SLEEP)
                raise AssertionError("not cancelled")
            except sa.exc.OperationalError as error:
                expect(error.orig.sqlstate, "57014")
            sleeper.rollback()
            expect(sleeper.exec_driver_sql("SELECT 1").scalar(), 1)

    def cancel_once_it_runs(self, driver):
        with self.connection() as value:
            while value(IS_SLEEPING) != 1:
                time.sleep(0.02)
        driver.cancel_safe(timeout=PATIENCE)

    def error(self):
        with self.engine.connect() as connection:
            for sql, sqlstate in (("INSERT INTO t VALUES (1)", "23505"), ("SELECT 1 FROM missing", "42P01")):
                try:
                    connection.exec_driver_sql(sql)
                    raise AssertionError("no error")
                except sa.exc.DBAPIError as error:
                    expect((error.orig.sqlstate, error.connection_invalidated), (sqlstate, False))
                connection.rollback()
            expect(connection.exec_driver_sql("SELECT 1").scalar(), 1)

    def big(self):
        with self.engine.connect() as connection:
            rows = connection.exec_driver_sql("SELECT generate_series(1, %s)", (BIG_ROWS,)).scalars().all()
            expect((len(rows), rows[-1]), (BIG_ROWS, BIG_ROWS))
            value = connection.exec_driver_sql("SELECT repeat('x', %s)", (BIG_VALUE,)).scalar()
            expect(len(value), BIG_VALUE)

    def ended(self):
        try:
            with self.connection() as value:
                value("SELECT pg_terminate_backend(pg_backend_pid())")
            raise AssertionError("not ended")
        except sa.exc.OperationalError as error:
            expect((error.orig.sqlstate, error.connection_invalidated), ("57P01", True))
        with self.connection() as value:
            expect(value("SELECT 1"), 1)


ROWS = sa.table("client_rows", sa.column("client"), sa.column("id"), sa.column("note"))

run(Client())
