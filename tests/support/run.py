"""Runs a command and ends when it and everything that it started has ended, with the status of the command.

    python3 tests/support/run.py COMMAND [ARGUMENT …]

A test's servers end a moment after the test does. Whoever runs the tests sees no process of theirs afterwards;
one that stays is named and makes the run a failure.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time

PR_SET_CHILD_SUBREAPER = 36
# For what the command has left, in seconds: removing the data of a few hundred databases takes its time.
PATIENCE = 120


def main(command):
    # Orphans of the command become children of this process instead of the system's first.
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        sys.exit(f"run.py: prctl: {os.strerror(ctypes.get_errno())}")
    child = subprocess.Popen(command)
    # Ctrl-C reaches the command by itself, and this process waits for what the command then does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    status = child.wait()

    deadline = time.monotonic() + PATIENCE
    while left := children():
        if time.monotonic() > deadline:
            print("left behind:", *left, sep="\n  ", file=sys.stderr)
            sys.exit(status or 1)
        time.sleep(0.02)
    sys.exit(status if status >= 0 else 128 - status)


def children():
    """Command lines of the children that are still there, after those that have ended are put away."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return []
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat") as stat:
                parent = int(stat.read().rpartition(")")[2].split()[1])
            if parent == os.getpid():
                with open(f"/proc/{entry}/cmdline") as line:
                    found.append(f"{entry} {line.read().replace(chr(0), ' ').strip()}")
        except OSError:
            continue
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
