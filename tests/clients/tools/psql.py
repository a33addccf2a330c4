"""psql as somebody at a terminal has it: a session that has ended is connected again, the statement is not repeated."""

import contextlib
import os
import pty
import queue
import re
import signal
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "python"))

from contract import BIG_ROWS, BIG_VALUE, CLIENT, COPIED, IS_SLEEPING, PATIENCE, POOL_SIZE, URL, expect, run

PSQL = os.environ["PGBIN"] + "/psql"


class Session:
    """A psql, and a terminal without echo."""

    def __init__(self):
        ours, theirs = pty.openpty()
        attributes = termios.tcgetattr(theirs)
        attributes[1] &= ~termios.OPOST
        attributes[3] &= ~termios.ECHO
        termios.tcsetattr(theirs, termios.TCSANOW, attributes)
        options = ["-X", "-q", "-A", "-t", "-n", "-P", "pager=off", "-v", "VERBOSITY=verbose"]
        options += ["-v", "PROMPT1=", "-v", "PROMPT2=", "-v", "PROMPT3="]
        self.psql = subprocess.Popen([PSQL, *options, URL], stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        self.terminal = open(ours, "r+b", buffering=0)
        self.lines = queue.Queue()
        self.count = 0
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        # It ends with an error of its own.
        with contextlib.suppress(OSError), open(self.terminal.fileno(), "rb", closefd=False) as output:
            for line in output:
                self.lines.put(line.decode().rstrip("\n"))
        self.lines.put(None)

    def begin(self, *commands):
        """Types these, and something to know the end of their output by."""
        self.count += 1
        text = "".join(f"{command}\n" for command in (*commands, f"\\echo done {self.count}"))
        # A terminal takes no more than 4 KiB at once.
        self.terminal.write(text.encode())

    def output(self):
        lines = []
        while (line := self.lines.get(timeout=PATIENCE)) != f"done {self.count}":
            if line is None:
                raise AssertionError(f"psql has ended: {lines}")
            lines.append(line)
        return lines

    def ask(self, *commands):
        self.begin(*commands)
        return self.output()

    def value(self, sql):
        lines = self.ask(f"{sql};")
        if TOLD in lines[0] and lines[-1] == RECONNECTED:
            # It was not executed.
            lines = self.ask(f"{sql};")
        (line,) = lines
        return int(line) if line.isdigit() else line

    def close(self):
        self.terminal.write(b"\\q\n")
        expect(self.psql.wait(PATIENCE), 0)
        self.terminal.close()


class Client:
    def __init__(self):
        self.one = Session()
        self.pool = queue.SimpleQueue()
        for _ in range(POOL_SIZE):
            self.pool.put(Session())

    @contextlib.contextmanager
    def connection(self):
        session = self.pool.get(timeout=PATIENCE)
        yield session.value
        self.pool.put(session)

    def close(self):
        for _ in range(POOL_SIZE):
            self.pool.get().close()
        self.one.close()

    def query(self):
        expect(self.one.ask("SELECT 41 + 1, 'é€', 0.5, NULL;"), ["42|é€|0.5|"])

    def prepared(self):
        self.one.ask("PREPARE by_id (int) AS SELECT id FROM t WHERE id = $1;")
        for number in range(1, 9):
            expect(self.one.ask(f"EXECUTE by_id ({number});"), [str(number)])
        expect(self.one.value("SELECT count(*) FROM pg_prepared_statements WHERE name = 'by_id'"), 1)

    def transaction(self):
        insert = f"INSERT INTO client_rows VALUES ('{CLIENT}', %d, 'transaction');"
        self.one.ask("BEGIN;", insert % -1, "COMMIT;")
        self.one.ask("BEGIN;", insert % -2, "ROLLBACK;")
        query = f"SELECT id FROM client_rows WHERE client = '{CLIENT}' AND note = 'transaction';"
        expect(self.one.ask(query), ["-1"])

    def copy(self):
        lines = "".join(f"{CLIENT}\t{number}\tcopied\n" for number in range(COPIED))
        Path("copied.tsv").write_text(lines)
        expect(self.one.ask("\\copy client_rows FROM 'copied.tsv'"), [])
        rows = f"SELECT id FROM client_rows WHERE client = '{CLIENT}' AND note = 'copied' ORDER BY id"
        expect(self.one.ask(f"\\copy ({rows}) TO STDOUT"), [str(number) for number in range(COPIED)])

    def notify(self):
        with self.connection() as value:
            pid = value("SELECT pg_backend_pid()")
            expect(self.one.ask("LISTEN psql;"), [])
            value("SELECT pg_notify('psql', 'hello')")
        # It looks for notifications behind each statement.
        (_, told) = self.one.ask("SELECT 1;")
        wanted = f'Asynchronous notification "psql" with payload "hello" received from server process with PID {pid}.'
        expect(told, wanted)

    def cancel(self):
        self.one.begin(f"SELECT pg_sleep(600) /* {CLIENT} */;")
        with self.connection() as value:
            while value(IS_SLEEPING.replace("-- " + CLIENT, f"/* {CLIENT} */")) != 1:
                time.sleep(0.02)
        # What Ctrl-C does.
        self.one.psql.send_signal(signal.SIGINT)
        expect("ERROR:  57014: canceling statement due to user request" in self.one.output(), True)
        expect(self.one.value("SELECT 1"), 1)

    def error(self):
        for sql, sqlstate in (("INSERT INTO t VALUES (1);", "23505"), ("SELECT 1 FROM missing;", "42P01")):
            expect(re.match("ERROR:  (.....): ", self.one.ask(sql)[0]).group(1), sqlstate)
        expect(self.one.value("SELECT 1"), 1)

    def big(self):
        rows = self.one.ask(f"SELECT generate_series(1, {BIG_ROWS});")
        expect((len(rows), rows[-1]), (BIG_ROWS, str(BIG_ROWS)))
        expect(len(self.one.ask(f"SELECT repeat('x', {BIG_VALUE});")[0]), BIG_VALUE)

    def ended(self):
        lines = self.one.ask("SELECT pg_terminate_backend(pg_backend_pid());")
        expect((TOLD in lines[0], lines[-1]), (True, RECONNECTED))
        expect(self.one.value("SELECT 1"), 1)


TOLD = "FATAL:  57P01: terminating connection"
RECONNECTED = "The connection to the server was lost. Attempting reset: Succeeded."

run(Client())
