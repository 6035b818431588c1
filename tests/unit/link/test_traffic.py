"""What the kernel counts, of connections of our own."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast.link import traffic
from holdfast.link.traffic import carried_bytes
from tests.children import ended
from tests.waiting import until

SENT = 300_000
CHILD = """
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as there:
    there.sendall(bytes(300_000))
    sys.stdin.read()
"""


def has_ipv6() -> bool:
    told = Path("/proc/net/if_inet6")
    return told.exists() and f"{1:032x}" in told.read_text()


def carried(pid: int) -> int:
    found = carried_bytes(pid)
    assert found is not None
    return found


def taken(there: socket.socket) -> None:
    got = 0
    while got < SENT:
        got += len(there.recv(1 << 16))


@pytest.mark.parametrize(("family", "loopback"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_what_is_sent_counts_where_it_is_acknowledged_and_where_it_comes(
    family: socket.AddressFamily, loopback: str
) -> None:
    if family == socket.AF_INET6 and not has_ipv6():
        pytest.skip("this machine has no IPv6")
    before = carried(os.getpid())
    with (
        socket.create_server((loopback, 0), family=family) as listener,
        socket.create_connection(listener.getsockname()[:2]) as here,
        listener.accept()[0] as there,
    ):
        here.sendall(bytes(SENT))
        taken(there)
        until(lambda: carried(os.getpid()) - before >= 2 * SENT)
    assert carried(os.getpid()) <= before


def test_what_is_not_taken_does_not_count() -> None:
    before = carried(os.getpid())  # other tests' servers may have connections here
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as here:
        here.connect(listener.getsockname())
        here.setblocking(False)
        sent = 0
        try:
            while True:
                sent += here.send(bytes(1 << 16))
        except BlockingIOError:
            pass
        assert 0 < carried(os.getpid()) - before < 2 * sent


def test_the_connection_of_a_child_counts_and_that_of_a_stranger_does_not() -> None:
    before = carried(os.getpid())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        words = [sys.executable, "-c", CHILD, str(listener.getsockname()[1])]
        argv = ["sh", "-c", '"$@"; exit', "sh", *words]  # as a proxy command has its program
        with ended(subprocess.Popen(argv, stdin=subprocess.PIPE)) as child, listener.accept()[0] as there:
            taken(there)
            until(lambda: carried(child.pid) >= SENT)
            until(lambda: carried(os.getpid()) - before >= 2 * SENT)  # ours, and that of the child's child
            there.close()
            child.communicate(b"")


def test_of_a_process_that_is_gone_nothing_is_known() -> None:
    child = subprocess.Popen(["true"])
    child.wait()

    assert carried_bytes(child.pid) is None


def _said(kind: int, body: bytes) -> bytes:
    """A message of netlink(7), and what fills it up to a multiple of four."""
    raw = struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body
    return raw + bytes(-len(raw) % 4)


def test_messages_of_any_length_are_told_apart_until_the_last_one() -> None:
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, its:
        its.send(_said(20, b"seven 7") + _said(20, b"one"))
        its.send(_said(20, b"more") + _said(3, bytes(4)))

        assert list(traffic._messages(ours)) == [b"seven 7", b"one", b"more"]


def test_a_kernel_that_tells_nothing_is_no_count_of_zero() -> None:
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, its:
        its.send(_said(2, struct.pack("=i", -2)) + _said(3, bytes(4)))

        with pytest.raises(OSError, match="tells nothing"):
            list(traffic._messages(ours))


def test_an_attribute_ends_where_it_says() -> None:
    attributes = [(1, b"seven 7"), (2, b"info"), (3, b"more")]
    told = bytes(72) + b"".join(
        struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4) for kind, value in attributes
    )

    assert traffic._attribute(told, 2) == b"info"
