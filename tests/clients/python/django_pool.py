"""Django on psycopg 3, with the pool that it has had since 5.1."""

import contextlib
import threading
import time
from urllib.parse import urlsplit

import django
from django.conf import settings
from django.db import DatabaseError, IntegrityError, OperationalError, connection, models, transaction

from contract import BIG_ROWS, BIG_VALUE, CLIENT, COPIED, IS_SLEEPING, PATIENCE, SLEEP, URL, expect, run

url = urlsplit(URL)
settings.configure(
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "HOST": url.hostname,
            "PORT": url.port,
            "NAME": url.path.lstrip("/"),
            "USER": url.username,
            "CONN_HEALTH_CHECKS": True,
            "OPTIONS": {
                "sslmode": "disable",
                "pool": {"min_size": 4, "max_size": 4, "timeout": PATIENCE},
                # What makes prepared statements of those that are executed often; off by default.
                "server_side_binding": True,
                "prepare_threshold": 5,
            },
        }
    },
    USE_TZ=True,
)
django.setup()


class Row(models.Model):
    pk = models.CompositePrimaryKey("client", "id")
    client = models.TextField()
    id = models.IntegerField()
    note = models.TextField()

    class Meta:
        app_label = "clients"
        db_table = "client_rows"
        managed = False


class T(models.Model):
    id = models.IntegerField(primary_key=True)

    class Meta:
        app_label = "clients"
        db_table = "t"
        managed = False


class Client:
    @contextlib.contextmanager
    def connection(self):
        # Each thread has its own; at the end of a request it goes back to the pool.
        try:
            yield value
        finally:
            connection.close()

    def close(self):
        connection.close_pool()

    def query(self):
        with connection.cursor() as cursor:
            cursor.execute("SELECT %s::int + 1, %s::text, %s::float8, %s::date", (41, "é€", 0.5, None))
            expect(cursor.fetchone(), (42, "é€", 0.5, None))
        expect(T.objects.filter(id__gt=90).aggregate(n=models.Count("id"))["n"], 10)

    def prepared(self):
        for number in range(8):
            expect(T.objects.get(id=number + 1).id, number + 1)
        query = "SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE 'SELECT \"t\".\"id\" FROM \"t\" WHERE%'"
        expect(value(query), 1)

    def transaction(self):
        with transaction.atomic():
            Row.objects.create(client=CLIENT, id=-1, note="transaction")
        with contextlib.suppress(ZeroDivisionError), transaction.atomic():
            Row.objects.create(client=CLIENT, id=-2, note="transaction")
            raise ZeroDivisionError
        expect(list(Row.objects.filter(client=CLIENT, note="transaction").values_list("id", flat=True)), [-1])

    def copy(self):
        with connection.cursor() as cursor:
            with cursor.copy("COPY client_rows FROM STDIN") as copy:
                for number in range(COPIED):
                    copy.write_row((CLIENT, number, "copied"))
            query = f"SELECT id FROM client_rows WHERE client = '{CLIENT}' AND note = 'copied' ORDER BY id"
            with cursor.copy(f"COPY ({query}) TO STDOUT") as copy:
                expect([int(row[0]) for row in copy.rows()], list(range(COPIED)))

    def cancel(self):
        connection.ensure_connection()
        threading.Thread(target=cancel_once_it_runs, args=(connection.connection,)).start()
        try:
            value(SLEEP)
            raise AssertionError("not cancelled")
        except OperationalError as error:
            expect(error.__cause__.sqlstate, "57014")
        expect(value("SELECT 1"), 1)

    def error(self):
        try:
            T.objects.create(id=1)
            raise AssertionError("no error")
        except IntegrityError as error:
            expect(error.__cause__.sqlstate, "23505")
        try:
            value("SELECT 1 FROM missing")
            raise AssertionError("no error")
        except DatabaseError as error:
            expect(error.__cause__.sqlstate, "42P01")
        expect(value("SELECT 1"), 1)

    def big(self):
        with connection.cursor() as cursor:
            cursor.execute("SELECT generate_series(1, %s)", (BIG_ROWS,))
            rows = cursor.fetchall()
            expect((len(rows), rows[-1]), (BIG_ROWS, (BIG_ROWS,)))
            cursor.execute("SELECT repeat('x', %s)", (BIG_VALUE,))
            expect(len(cursor.fetchone()[0]), BIG_VALUE)

    def ended(self):
        try:
            with self.connection():
                value("SELECT pg_terminate_backend(pg_backend_pid())")
            raise AssertionError("not ended")
        except OperationalError as error:
            expect(error.__cause__.sqlstate, "57P01")
        with self.connection():
            expect(value("SELECT 1"), 1)


def value(sql):
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0]


def cancel_once_it_runs(sleeper):
    while value(IS_SLEEPING) != 1:
        time.sleep(0.02)
    sleeper.cancel_safe(timeout=PATIENCE)
    connection.close()


run(Client())
