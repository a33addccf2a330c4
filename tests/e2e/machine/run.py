"""Runs a program on a machine of another kind, and says what became of it.

    run.py KIND PORTS PROGRAM ARGUMENT…

The machine is a network namespace of its own with nothing but a loopback interface. KIND is one of

    no-ipv6-sockets    socket(AF_INET6) is answered by EAFNOSUPPORT: a kernel without IPv6
    ipv6-disabled      net.ipv6.conf.all.disable_ipv6 = 1: there are sockets, and no addresses
    bindv6only         net.ipv6.bindv6only = 1
    localhost-is-ipv6  /etc/hosts knows localhost as ::1 alone
    ipv6-only          there is no 127.0.0.1
    usual              none of that

The program has three minutes to write the event `listen.ready`, or to end. Then each of PORTS (with commas) is connected
to at 127.0.0.1 and ::1. Standard output gets one JSON object:

    exit     its exit code, null where it was serving
    log      its lines
    reached  "127.0.0.1:5432": whether a connection was accepted, …
    livez    status of GET /livez at 127.0.0.1 and ::1 on the last port, null where there is none

Exit code 77: this system has no such machine to give (no namespaces, no seccomp); why is on standard error.
"""

import ctypes
import fcntl
import http.client
import json
import os
import platform
import select
import socket
import struct
import subprocess
import sys
import tempfile
import time

PATIENCE = 180
KINDS = ["no-ipv6-sockets", "ipv6-disabled", "bindv6only", "localhost-is-ipv6", "ipv6-only", "usual"]
CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWNET = 0x20000, 0x10000000, 0x40000000
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
SIOCSIFADDR, SIOCGIFFLAGS, SIOCSIFFLAGS = 0x8916, 0x8913, 0x8914
IFF_UP = 1
libc = ctypes.CDLL(None, use_errno=True)


def main():
    kind, ports, *command = sys.argv[1:]
    if kind not in KINDS:
        raise SystemExit(f"{kind} is none of {KINDS}")
    try:
        make(kind)
    except OSError as error:
        print(f"{kind}: {error}", file=sys.stderr)
        raise SystemExit(77) from None
    print(json.dumps(observe(command, [int(port) for port in ports.split(",")], kind == "no-ipv6-sockets")))


def make(kind):
    """Makes this process's machine one of that kind."""
    enter_namespaces()
    set_up_loopback()
    if kind == "ipv6-disabled":
        write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1")
    elif kind == "bindv6only":
        write("/proc/sys/net/ipv6/bindv6only", "1")
    elif kind == "localhost-is-ipv6":
        with tempfile.NamedTemporaryFile("w") as hosts:
            hosts.write("::1 localhost\n")
            hosts.flush()
            check(libc.mount(hosts.name.encode(), b"/etc/hosts", None, MS_BIND, None))
    elif kind == "ipv6-only":
        request(SIOCSIFADDR, struct.pack("16sHH4s8x", b"lo", socket.AF_INET, 0, bytes(4)))


def enter_namespaces():
    uid, gid = os.getuid(), os.getgid()
    if libc.unshare(CLONE_NEWNET | CLONE_NEWNS) != 0:
        check(libc.unshare(CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWNS))
        write("/proc/self/setgroups", "deny")
        write("/proc/self/uid_map", f"0 {uid} 1")
        write("/proc/self/gid_map", f"0 {gid} 1")
    check(libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None))


def set_up_loopback():
    # netdevice(7): struct ifreq.
    name = struct.pack("16s", b"lo")
    (flags,) = struct.unpack_from("H", request(SIOCGIFFLAGS, name + bytes(24)), 16)
    request(SIOCSIFFLAGS, name + struct.pack("H22x", flags | IFF_UP))


def request(code, ifreq):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        return fcntl.ioctl(control, code, ifreq)


def refuse_ipv6_sockets():
    """Runs in the child. seccomp(2), `man 2 seccomp`, struct sock_filter: code, jump if true, if false, operand."""
    nr = {"x86_64": 41, "aarch64": 198}.get(platform.machine())
    if nr is None:
        raise OSError(f"the number of socket(2) on {platform.machine()} is not known here")
    load, equal, give = 0x20, 0x15, 0x06
    program = b"".join(
        struct.pack("HBBI", *instruction)
        for instruction in [
            (load, 0, 0, 0),
            (equal, 0, 3, nr),
            (load, 0, 0, 16),
            (equal, 0, 1, socket.AF_INET6),
            (give, 0, 0, 0x00050000 | 97),
            (give, 0, 0, 0x7FFF0000),
        ]
    )
    text = ctypes.create_string_buffer(program, len(program))
    filter_ = struct.pack("HP", len(program) // 8, ctypes.addressof(text))
    check(libc.prctl(38, 1, 0, 0, 0))
    check(libc.prctl(22, 2, filter_, 0, 0))


def check(result):
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def write(path, text):
    with open(path, "w") as file:
        file.write(text)


def observe(command, ports, without_ipv6):
    program = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=refuse_ipv6_sockets if without_ipv6 else None,
    )
    try:
        log = read_until_ready(program)
        if program.poll() is not None:
            return {"exit": program.returncode, "log": log, "reached": {}, "livez": {}}
        hosts = ["127.0.0.1", "::1"]
        return {
            "exit": None,
            "log": log,
            "reached": {f"{host}:{port}": is_reached(host, port) for host in hosts for port in ports},
            "livez": {host: livez(host, ports[-1]) for host in hosts},
        }
    finally:
        program.kill()
        program.wait()


def read_until_ready(program):
    give_up, text = time.monotonic() + PATIENCE, b""
    while b'"listen.ready"' not in text or not text.endswith(b"\n"):
        readable, _, _ = select.select([program.stderr], [], [], max(0, give_up - time.monotonic()))
        chunk = os.read(program.stderr.fileno(), 65536) if readable else b""
        if not chunk:
            break
        text += chunk
    if b'"listen.ready"' not in text:
        try:
            program.wait(max(0, give_up - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise SystemExit(f"neither ready nor at its end:\n{text.decode()}") from None
    return text.decode().splitlines()


def is_reached(host, port):
    try:
        socket.create_connection((host, port), PATIENCE).close()
    except OSError:
        return False
    return True


def livez(host, port):
    give_up = time.monotonic() + PATIENCE
    while True:
        connection = http.client.HTTPConnection(host, port, timeout=PATIENCE)
        try:
            connection.request("GET", "/livez")
            status = connection.getresponse().status
        except OSError:
            return None
        finally:
            connection.close()
        # One answer that is late ends nobody, on a machine that does much else.
        if status == 200 or time.monotonic() > give_up:
            return status
        time.sleep(0.1)


main()
