"""asyncpg with its own pool, on an event loop in a thread of its own."""

import asyncio
import contextlib
import io
import threading

import asyncpg

from contract import BIG_ROWS, BIG_VALUE, CLIENT, COPIED, IS_SLEEPING, PATIENCE, SLEEP, URL, expect, run


class Client:
    def __init__(self):
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.one = self.wait(asyncpg.connect(URL))
        self.pool = self.wait(self.open_pool())

    async def open_pool(self):
        return await asyncpg.create_pool(URL, min_size=4, max_size=4)

    def wait(self, coroutine):
        """What comes of it on the loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(PATIENCE)

    @contextlib.contextmanager
    def connection(self):
        connection = self.wait(self.acquire())
        try:
            yield lambda sql: self.wait(connection.fetchval(sql))
        finally:
            self.wait(self.pool.release(connection))

    async def acquire(self):
        return await self.pool.acquire()

    def close(self):
        self.wait(self.pool.close())
        self.wait(self.one.close())

    def query(self):
        query = "SELECT $1::int + 1, $2::text, $3::float8, $4::date"
        expect(tuple(self.wait(self.one.fetchrow(query, 41, "é€", 0.5, None))), (42, "é€", 0.5, None))

    def prepared(self):
        async def prepared():
            by_id = await self.one.prepare("SELECT id FROM t WHERE id = $1")
            for number in range(8):
                expect(await by_id.fetchval(number + 1), number + 1)
            names = "SELECT count(*) FROM pg_prepared_statements WHERE name = $1"
            expect(await self.one.fetchval(names, by_id.get_name()), 1)

        self.wait(prepared())

    def transaction(self):
        async def transaction():
            insert = "INSERT INTO client_rows VALUES ($1, $2, 'transaction')"
            async with self.one.transaction():
                await self.one.execute(insert, CLIENT, -1)
            with contextlib.suppress(ZeroDivisionError):
                async with self.one.transaction():
                    await self.one.execute(insert, CLIENT, -2)
                    raise ZeroDivisionError
            rows = await self.one.fetch("SELECT id FROM client_rows WHERE client = $1 AND note = 'transaction'", CLIENT)
            expect([row[0] for row in rows], [-1])

        self.wait(transaction())

    def copy(self):
        async def copy():
            records = ((CLIENT, number, "copied") for number in range(COPIED))
            await self.one.copy_records_to_table("client_rows", records=records)
            query = "SELECT id FROM client_rows WHERE client = $1 AND note = 'copied' ORDER BY id"
            out = io.BytesIO()
            await self.one.copy_from_query(query, CLIENT, output=out)
            expect([int(line) for line in out.getvalue().split()], list(range(COPIED)))

        self.wait(copy())

    def notify(self):
        async def notify():
            told = self.loop.create_future()
            other = await asyncpg.connect(URL)
            await self.one.add_listener("asyncpg", lambda _, pid, channel, text: told.set_result((channel, text, pid)))
            await other.execute("NOTIFY asyncpg, 'hello'")
            expect(await asyncio.wait_for(told, PATIENCE), ("asyncpg", "hello", other.get_server_pid()))
            await other.close()

        self.wait(notify())

    def cancel(self):
        async def cancel():
            sleeper = await asyncpg.connect(URL)
            task = asyncio.create_task(sleeper.execute(SLEEP))
            while await self.one.fetchval(IS_SLEEPING) != 1:
                await asyncio.sleep(0.02)
            # The driver cancels the statement when its task is cancelled, and then awaits the server's answer.
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            expect(await sleeper.fetchval("SELECT 1"), 1)
            expect(await self.one.fetchval(IS_SLEEPING), 0)
            await sleeper.close()

        self.wait(cancel())

    def error(self):
        async def error():
            for sql, sqlstate in (("INSERT INTO t VALUES (1)", "23505"), ("SELECT 1 FROM missing", "42P01")):
                try:
                    await self.one.execute(sql)
                    raise AssertionError("no error")
                except asyncpg.PostgresError as error:
                    expect(error.sqlstate, sqlstate)
            expect(await self.one.fetchval("SELECT 1"), 1)

        self.wait(error())

    def big(self):
        async def big():
            rows = await self.one.fetch("SELECT generate_series(1, $1::int)", BIG_ROWS)
            expect((len(rows), rows[-1][0]), (BIG_ROWS, BIG_ROWS))
            expect(len(await self.one.fetchval("SELECT repeat('x', $1)", BIG_VALUE)), BIG_VALUE)

        self.wait(big())

    def ended(self):
        try:
            with self.connection() as value:
                value("SELECT pg_terminate_backend(pg_backend_pid())")
            raise AssertionError("not ended")
        except asyncpg.ConnectionDoesNotExistError as error:
            expect(error.__cause__.sqlstate, "57P01")
        with self.connection() as value:
            expect(value("SELECT 1"), 1)


run(Client())
