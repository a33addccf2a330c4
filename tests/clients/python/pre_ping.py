"""SQLAlchemy's `pool_pre_ping` on each of its drivers, over TLS, on connections that end while they rest.

Not of the contract: it is told `use`, takes all connections of each engine and has an answer on each, and says on one
line what each driver's ping met before: `used {DRIVER: {"pings": [TEXT, …], "error": TEXT or null}, …}`.
"""

import asyncio
import json
import os
import ssl
import sys
import threading

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

URL = sa.make_url(os.environ["DATABASE_URL"])
# For an answer, on a machine that does much else. In seconds.
PATIENCE = 120
HELD = 2
POOL = {"pool_pre_ping": True, "pool_size": HELD, "max_overflow": 0, "pool_timeout": PATIENCE}


def url(driver):
    """Those that are no libpq are told of TLS otherwise."""
    plain = URL.set(drivername=f"postgresql+{driver}")
    return plain if driver.startswith("psycopg") else plain.set(query={})


class Driver:
    def __init__(self, name, **arguments):
        self.engine = sa.create_engine(url(name), connect_args=arguments, **POOL)
        self.pings = watch(self.engine)

    def use(self):
        connections = []
        try:
            for _ in range(HELD):
                connections.append(self.engine.connect())
            for connection in connections:
                answer(connection)
        finally:
            for connection in connections:
                connection.close()


class Asyncpg:
    """On an event loop that runs all the time, as in an application."""

    def __init__(self, tls):
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.engine = create_async_engine(url("asyncpg"), connect_args={"ssl": tls}, **POOL)
        self.pings = watch(self.engine.sync_engine)

    def use(self):
        asyncio.run_coroutine_threadsafe(self.use_all(), self.loop).result(PATIENCE)

    async def use_all(self):
        connections = []
        try:
            for _ in range(HELD):
                connections.append(await self.engine.connect())
            for connection in connections:
                await connection.run_sync(answer)
        finally:
            for connection in connections:
                await connection.close()


def answer(connection):
    if connection.exec_driver_sql("SELECT count(*) FROM t").scalar() != 100:
        raise AssertionError("not what is in the table")


def watch(engine):
    """What its pings meet, from now on."""
    pings = []

    @sa.event.listens_for(engine, "handle_error")
    def met(context):
        if context.is_pre_ping:
            pings.append(" ".join(str(context.original_exception).split()))

    return pings


def use(driver):
    driver.pings.clear()
    error = None
    try:
        driver.use()
    except Exception as failure:
        error = " ".join(f"{type(failure).__name__}: {failure}".split())
    return {"pings": list(driver.pings), "error": error}


def main():
    tls = ssl.create_default_context(cafile=URL.query["sslrootcert"])
    drivers = {
        "psycopg2": Driver("psycopg2"),
        "psycopg": Driver("psycopg"),
        "asyncpg": Asyncpg(tls),
        "pg8000": Driver("pg8000", ssl_context=tls),
    }
    for _ in sys.stdin:
        print("used", json.dumps({name: use(driver) for name, driver in drivers.items()}), flush=True)


main()
