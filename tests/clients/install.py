"""Gets the client libraries of one language into target/clients, from its own registry, as pinned.

    python3 tests/clients/install.py LANGUAGE

Takes what is there already, so that it works offline from the second time on. Any number of runs at once are
fine, and so is an interrupted one: whatever appears under its own name is whole. The name has a hash of what is
pinned, so that other pins make another folder. Progress goes to stderr. JSON goes to stdout: `missing`, a line
about a toolchain that is not installed, or `programs`, how each is started:

    {"programs": {"psycopg3": {"argv": ["/usr/bin/python3", "…/psycopg3.py"], "env": {"PYTHONPATH": "…"}}}}
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCES = Path(__file__).resolve().parent
CLIENTS = SOURCES.parents[1] / "target" / "clients"


class Missing(Exception):
    """A toolchain is not installed."""


def python():
    if sys.version_info < (3, 10):
        raise Missing("the pinned packages need Python 3.10 or later")
    folder = SOURCES / "python"
    pins = folder / "requirements.txt"
    tag = f"{sys.implementation.cache_tag}-{os.uname().machine}"

    def install(to):
        require("pip", [sys.executable, "-m", "pip", "--version"], "apt-get install -y python3-pip")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
        command += ["--no-deps", "--only-binary=:all:", "--no-warn-script-location", "--root-user-action=ignore"]
        run("pip", [*command, f"--target={to}", f"--requirement={pins}"])

    packages = place("python", [pins], install, tag)
    env = {"PYTHONPATH": str(packages), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUTF8": "1"}
    programs = [path for path in folder.glob("*.py") if path.name != "contract.py"]
    return {path.stem: {"argv": [sys.executable, str(path)], "env": env} for path in programs}


def tools():
    """Those that come with the servers, which the tests have anyway: PGBIN says where."""
    env = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONUTF8": "1"}
    programs = (SOURCES / "tools").glob("*.py")
    return {path.stem: {"argv": [sys.executable, str(path)], "env": env} for path in programs}


def java():
    require("java", ["java", "-version"], "apt-get install -y openjdk-17-jdk-headless maven")
    folder = SOURCES / "java"
    pom, sources = folder / "pom.xml", sorted(folder.glob("*.java"))

    def install(to):
        require("javac", ["javac", "-version"], "apt-get install -y openjdk-17-jdk-headless")
        require("mvn", ["mvn", "--version"], "apt-get install -y maven")
        to.mkdir()
        command = ["mvn", "--batch-mode", "--no-transfer-progress", f"-Dmaven.repo.local={CLIENTS / 'maven'}"]
        command += [f"--file={pom}", "dependency:copy-dependencies", f"-DoutputDirectory={to / 'lib'}"]
        run("mvn", command)
        run("javac", ["javac", "--release=17", "-encoding", "UTF-8", "-cp", to / "lib" / "*", "-d", to / "classes", *sources])

    place_of = place("java", [pom, *sources], install)
    # Small programs that live for seconds.
    options = ["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xmx512m"]
    argv = ["java", *options, "-cp", f"{place_of / 'classes'}:{place_of / 'lib'}/*"]
    programs = [path.stem for path in sources if path.stem != "Contract"]
    return {snake(name): {"argv": [*argv, name], "env": {}} for name in programs}


def rust():
    require("cargo", ["cargo", "--version"], "rustup")
    folder = SOURCES / "rust"
    names = sorted(path.stem for path in (folder / "src" / "bin").glob("*.rs"))
    sources = [folder / "Cargo.toml", folder / "Cargo.lock", *folder.glob("src/**/*.rs")]

    def install(to):
        command = ["cargo", "build", "--quiet", "--locked", f"--manifest-path={folder / 'Cargo.toml'}"]
        # Named otherwise than what is finished, so that it stays for the next time.
        built = CLIENTS / "cargo"
        run("cargo", [*command, f"--target-dir={built}"])
        to.mkdir()
        for name in names:
            shutil.copy(built / "debug" / name, to / name)

    place_of = place("rust", sources, install)
    return {name: {"argv": [str(place_of / name)], "env": {}} for name in names}


def node():
    version = require("node", ["node", "--version"], "apt-get install -y nodejs npm")
    if int(version.lstrip("v").split(".")[0]) < 20:
        raise Missing(f"the pinned packages need Node 20 or later, this is {version}")
    folder = SOURCES / "node"
    pins = [folder / "package.json", folder / "package-lock.json"]

    def install(to):
        require("npm", ["npm", "--version"], "apt-get install -y npm")
        to.mkdir()
        for pin in pins:
            shutil.copy(pin, to)
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", f"--cache={CLIENTS / 'npm'}"]
        run("npm", command, cwd=to)
        # Packages are looked for from where a program is.
        (to / "programs").symlink_to(folder)

    place_of = place("node", pins, install)
    argv = ["node", "--preserve-symlinks", "--preserve-symlinks-main"]
    names = [path.stem for path in folder.glob("*.mjs") if path.stem != "contract"]
    return {name: {"argv": [*argv, str(place_of / "programs" / f"{name}.mjs")], "env": {}} for name in names}


def go():
    version = require("go", ["go", "env", "GOVERSION"], "1.25 or later, from https://go.dev")
    if [int(part) for part in re.findall(r"\d+", version)[:2]] < [1, 25]:
        raise Missing(f"the pinned modules need Go 1.25 or later, this is {version}")
    folder = SOURCES / "go"
    names = sorted(path.parent.name for path in folder.glob("*/main.go"))
    sources = [folder / "go.mod", folder / "go.sum", *folder.glob("*/*.go")]

    def install(to):
        own = {"GOMODCACHE": CLIENTS / "gomod", "GOCACHE": CLIENTS / "gobuild", "GOTOOLCHAIN": "local"}
        own |= {"GOFLAGS": "-modcacherw -mod=readonly -trimpath", "CGO_ENABLED": "0"}
        environment = {**os.environ, **{name: str(value) for name, value in own.items()}}
        to.mkdir()
        run("go", ["go", "build", f"-o={to}/", *(f"./{name}" for name in names)], cwd=folder, env=environment)

    place_of = place("go", sources, install)
    return {name: {"argv": [str(place_of / name)], "env": {}} for name in names}


LANGUAGES = {"tools": tools, "python": python, "java": java, "rust": rust, "node": node, "go": go}


def main(language):
    try:
        found = {"programs": LANGUAGES[language]()}
    except Missing as missing:
        found = {"missing": str(missing)}
    json.dump(found, sys.stdout)
    print()


def require(name, command, remedy):
    """What the toolchain `name` answers, or it is missing."""
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except OSError:
        done = None
    if done is None or done.returncode:
        raise Missing(f"{name} is not installed ({remedy})")
    return done.stdout.decode(errors="replace").strip()


def place(language, pins, install, tag=""):
    """The folder that `install` has filled, from what the files `pins` say. Filled once."""
    digest = hashlib.sha256(tag.encode())
    for path in sorted(pins):
        digest.update(path.read_bytes())
    folder = CLIENTS / f"{language}-{digest.hexdigest()[:16]}"
    if folder.exists():
        return folder
    with alone(language):
        if folder.exists():
            return folder
        say(language, "installing what is pinned, once")
        part = Path(tempfile.mkdtemp(prefix=f".part-{language}-", dir=CLIENTS))
        try:
            install(part / "whole")
            # Those of other pins are of no use any more.
            for old in CLIENTS.glob(f"{language}-*"):
                remove(old)
            (part / "whole").rename(folder)
        finally:
            remove(part)
    return folder


@contextlib.contextmanager
def alone(language):
    """Holds the lock of the language, and clears away what interrupted runs have left."""
    CLIENTS.mkdir(parents=True, exist_ok=True)
    with open(CLIENTS / f".lock-{language}", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(language, "waiting for another installation to end")
            fcntl.flock(lock, fcntl.LOCK_EX)
        for part in CLIENTS.glob(f".part-{language}-*"):
            remove(part)
        yield


def run(name, command, **options):
    """Runs it to its end; its output is seen where it fails."""
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, **options}
    done = subprocess.run([str(word) for word in command], **options)
    if done.returncode:
        output = (done.stdout or b"").decode(errors="replace").strip()
        fail(name, f"could not install what is pinned:\n{output}")


def snake(name):
    """`HikariPool` is `hikari_pool`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def remove(path):
    shutil.rmtree(path, ignore_errors=True)


def say(name, text):
    print(f"clients: {name}: {text}", file=sys.stderr, flush=True)


def fail(name, text):
    say(name, text)
    sys.exit(1)


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in LANGUAGES:
        sys.exit(f"usage: install.py {'|'.join(LANGUAGES)}")
    try:
        main(sys.argv[1])
    except KeyboardInterrupt:
        sys.exit(130)
