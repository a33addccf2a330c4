"""Finds promtool, Prometheus's own tool, for the tests of metrics and alerts.

    python3 tests/monitoring/promtool.py [--fetch]

Looks for it in target/tools and on the PATH. With --fetch it gets Debian's package `prometheus` where it finds none,
takes the one program out of it, and installs nothing; where that cannot be done (another system, no network, no
lists of packages and not root), it says so in a line and still ends with 0. JSON goes to stdout:
{"program": "…/promtool"} or {"missing": "…"}.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

TOOLS = Path(__file__).resolve().parents[2] / "target" / "tools"
PROGRAM = TOOLS / "bin" / "promtool"
# Of one command of apt, in seconds.
LIMIT = 120


class Missing(Exception):
    """It cannot be had."""


def main(arguments):
    try:
        program = find() or (fetch() if "--fetch" in arguments else None)
        answer = {"program": str(program)} if program else {"missing": "promtool is not there: make test-monitoring"}
    except Missing as missing:
        answer = {"missing": f"promtool: {missing}"}
        print(f"monitoring: {answer['missing']}", file=sys.stderr, flush=True)
    json.dump(answer, sys.stdout)
    print()


def find():
    return PROGRAM if os.access(PROGRAM, os.X_OK) else shutil.which("promtool")


def fetch():
    for program in ["apt-get", "dpkg-deb"]:
        if not shutil.which(program):
            raise Missing(f"there is no {program} to get it with")
    PROGRAM.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=PROGRAM.parent) as folder:
        if download(folder) and os.geteuid() == 0:
            # There may be no lists of packages yet, or old ones.
            run(["apt-get", "-qq", "update"], folder)
            download(folder)
        packages = list(Path(folder).glob("prometheus_*.deb"))
        if len(packages) != 1:
            raise Missing("apt-get cannot download Debian's package prometheus")
        failure = run(["dpkg-deb", "--extract", str(packages[0]), f"{folder}/content"], folder)
        program = Path(folder) / "content" / "usr" / "bin" / "promtool"
        if failure or run([str(program), "--version"], folder):
            raise Missing(f"what was downloaded does not run: {failure}")
        program.rename(PROGRAM)
    return PROGRAM


def download(folder):
    return run(["apt-get", "-q", "download", "prometheus"], folder)


def run(command, folder):
    """What it says where it fails."""
    try:
        done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=LIMIT)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return done.stdout.strip() or f"exit code {done.returncode}" if done.returncode else None


if __name__ == "__main__":
    main(sys.argv[1:])
