"""What all programs do alike: prints a line for each step, keeps a pool as it is told. See ../README.md."""

import os
import sys
import threading
import traceback

CLIENT = os.environ["CLIENT"]
URL = os.environ["DATABASE_URL"]
POOL_SIZE = 4
# For an answer, on a machine that does much else. In seconds.
PATIENCE = 120

STEPS = ("query", "prepared", "transaction", "copy", "notify", "cancel", "error", "big", "ended")

BIG_ROWS = 100_000
BIG_VALUE = 16 << 20
COPIED = 10_000
# With the name of the client, of which there is one in each world.
IS_SLEEPING = (
    "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND pid <> pg_backend_pid()"
    " AND starts_with(query, 'SELECT pg_sleep(600) -- " + CLIENT + "')"
)
SLEEP = f"SELECT pg_sleep(600) -- {CLIENT}"


def run(client):
    """Does the steps that `client` has methods for, then keeps its pool.

    `client.connection()` is a context manager that takes a connection of the pool and gives a function: it runs a
    statement and returns the one value of its result. `client.close()` ends the pool.
    """
    threading.excepthook = lambda failure: fail("thread", failure.exc_value)
    where = "start"
    try:
        for where in STEPS:
            if step := getattr(client, where, None):
                step()
                say(f"ok {where}")
        where = "pool"
        use_all(client)
        say("ok pool")
        workers = None
        for command in sys.stdin:
            where = command.strip()
            if where == "busy":
                workers = Workers(client)
                say("ok busy")
            elif where == "idle":
                say(f"ok idle {workers.stop()}")
            elif where == "use":
                use_all(client)
                say("ok use")
            elif where == "end":
                break
            else:
                raise ValueError("unknown command")
        where = "end"
        client.close()
        say("ok end")
    except BaseException as error:
        fail(where, error)


class Workers:
    """Threads that use the pool until they are stopped. Made once each has had an answer."""

    def __init__(self, client):
        self.client = client
        self.over = threading.Event()
        self.begun = threading.Barrier(POOL_SIZE + 1)
        self.counts = [0] * POOL_SIZE
        self.threads = [threading.Thread(target=self.work, args=(number,)) for number in range(POOL_SIZE)]
        for thread in self.threads:
            thread.start()
        self.begun.wait(PATIENCE)

    def work(self, number):
        try:
            while not self.over.is_set():
                with self.client.connection() as value:
                    expect(value("SELECT count(*) FROM t"), 100)
                self.counts[number] += 1
                if self.counts[number] == 1:
                    self.begun.wait(PATIENCE)
                self.over.wait(0.01)
        except BaseException as error:
            fail("busy", error)

    def stop(self):
        self.over.set()
        for thread in self.threads:
            thread.join(PATIENCE)
        return sum(self.counts)


def use_all(client):
    """Takes all connections of the pool at the same time."""
    together = threading.Barrier(POOL_SIZE)

    def work():
        try:
            with client.connection() as value:
                together.wait(PATIENCE)
                expect(value("SELECT count(*) FROM t"), 100)
                together.wait(PATIENCE)
        except BaseException as error:
            fail("use", error)

    threads = [threading.Thread(target=work) for _ in range(POOL_SIZE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)


def expect(found, wanted):
    if found != wanted:
        raise AssertionError(f"{found!r} where {wanted!r} is right")


def say(line):
    print(line, flush=True)


def fail(where, error):
    """Ends the program, whatever its threads do."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    say(f"failed {where}: {text}")
    traceback.print_exception(error)
    sys.stderr.flush()
    os._exit(1)
