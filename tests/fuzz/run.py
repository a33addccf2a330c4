"""Runs the fuzz targets that `make fuzz` has built, all side by side, and says what came of it.

    python3 tests/fuzz/run.py SECONDS TARGET …

What a run finds worth keeping goes on in the next one, from target/fuzz/corpus; a finding ends its target, stays in
target/fuzz/findings and makes the run a failure.
"""

import pathlib
import platform
import re
import subprocess
import sys
import time

SEEDS = pathlib.Path("tests/fuzz/corpus")
WORK = pathlib.Path("target/fuzz")
# Long enough for the longest first packet and a few messages.
MAX_LEN = 12_000
# For one input; the slowest is a proof of the most rounds that a server may ask for.
INPUT_TIMEOUT = 30
# Between lines that say how far it is.
REPORT_EVERY = 60


def main(seconds, targets):
    binaries = WORK / f"{platform.machine()}-unknown-linux-gnu" / "release"
    findings = WORK / "findings"
    findings.mkdir(parents=True, exist_ok=True)
    runs = {}
    for target in targets:
        corpus = WORK / "corpus" / target
        corpus.mkdir(parents=True, exist_ok=True)
        log = (WORK / f"{target}.log").open("w")
        command = [
            binaries / target, corpus, SEEDS / target, f"-max_total_time={seconds}", f"-max_len={MAX_LEN}",
            f"-timeout={INPUT_TIMEOUT}", f"-artifact_prefix={findings}/{target}-", "-print_final_stats=1",
        ]
        runs[target] = subprocess.Popen(list(map(str, command)), stdout=log, stderr=subprocess.STDOUT)
    began = time.monotonic()
    while any(run.poll() is None for run in runs.values()):
        try:
            next(run for run in runs.values() if run.poll() is None).wait(REPORT_EVERY)
        except subprocess.TimeoutExpired:
            print(f"{time.monotonic() - began:.0f} s of {seconds} s", file=sys.stderr, flush=True)

    print(f"{'target':16}{'executions':>12}{'edges':>8}{'features':>10}{'inputs':>8}  outcome")
    for target, run in runs.items():
        text = (WORK / f"{target}.log").read_text(errors="replace")
        done = re.findall(r"stat::number_of_executed_units: *(\d+)", text)
        seen = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", text)
        edges, features, inputs = seen[-1] if seen else ("-", "-", "-")
        outcome = "nothing found" if run.returncode == 0 else f"FOUND: see {findings}/{target}-* and {WORK}/{target}.log"
        print(f"{target:16}{done[-1] if done else '-':>12}{edges:>8}{features:>10}{inputs:>8}  {outcome}")
    sys.exit(any(run.returncode for run in runs.values()))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
