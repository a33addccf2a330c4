"""Ends what a test process started when that process ends, however it ends.

Reads lines from stdin, a pipe of which only the test process holds the other end:

    process PID SIGNAL   a server, and the number of the signal that it is stopped with
    folder PATH          a folder to remove once the servers have ended
    forget WHAT          a PID or PATH of before that is gone

The end of the pipe, which a SIGKILL of the test process brings about as well, is the order to clean up.
"""

import os
import shutil
import signal
import sys
import time

# Servers that have not stopped by then are killed, and folders that still fill up are left, in seconds.
PATIENCE = 30


def main():
    # A Ctrl-C in the terminal is for the test process: its end is ours.
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTTOU):
        signal.signal(ignored, signal.SIG_IGN)

    processes, folders = {}, set()
    for line in sys.stdin:
        word, _, rest = line.rstrip("\n").partition(" ")
        if word == "process":
            pid, number = map(int, rest.split())
            processes[pid] = (birth(pid), number)
        elif word == "folder":
            folders.add(rest)
        elif word == "forget":
            folders.discard(rest)
            processes.pop(int(rest) if rest.isdigit() else None, None)

    processes = {pid: (born, number) for pid, (born, number) in processes.items() if born}
    for pid, (born, number) in processes.items():
        send(pid, born, signal.SIGCONT)
        send(pid, born, number)
    wait_until(lambda: not any(birth(pid) == born for pid, (born, _) in processes.items()))
    for pid, (born, _) in processes.items():
        send(pid, born, signal.SIGKILL)
    wait_until(lambda: not any(birth(pid) == born for pid, (born, _) in processes.items()))

    # A server's own children may be a moment behind it.
    wait_until(lambda: not any([remains(folder) for folder in folders]))


def birth(pid):
    """What tells this process from another of the same number; None if it has ended."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            fields = stat.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def send(pid, born, number):
    if birth(pid) == born:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass


def remains(folder):
    shutil.rmtree(folder, ignore_errors=True)
    return os.path.lexists(folder)


def wait_until(done):
    deadline = time.monotonic() + PATIENCE
    while not done() and time.monotonic() < deadline:
        time.sleep(0.01)


if __name__ == "__main__":
    main()
