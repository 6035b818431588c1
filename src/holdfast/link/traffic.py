"""What the network has taken from a process and brought to it, as the kernel counts: sock_diag(7), inet_diag.h.

Linux alone: elsewhere nobody is told. One's own sockets are shown without any privilege.
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

_AF_NETLINK, _NETLINK_SOCK_DIAG = 16, 4  # named in `socket` on Linux only
_SOCK_DIAG_BY_FAMILY, _REQUEST, _DUMP, _ERROR, _DONE = 20, 0x1, 0x300, 2, 3
_ESTABLISHED = 1 << 1
_HEADER = struct.Struct("=IHHII")  # length, kind, flags, sequence, port
_INODE_AT, _ATTRIBUTES_AT = 68, 72  # in struct inet_diag_msg
_INFO = 2  # the attribute INET_DIAG_INFO, a struct tcp_info
_COUNTS = struct.Struct("=QQ")  # tcpi_bytes_acked, tcpi_bytes_received
_COUNTS_AT = 120
_ANSWER_BYTES, _ANSWER_S = 1 << 16, 1.0


def carried_bytes(pid: int) -> int | None:
    """Over the TCP connections of `pid` and its children: acknowledged by the other end, or received from it.

    None where that cannot be known. Children: a jump or a proxy command has the connection in ssh's place.
    """
    try:
        inodes = {inode for each in _family(pid) for inode in _sockets(each)}
        return sum(count for family in (socket.AF_INET, socket.AF_INET6) for count in _counted(family, inodes))
    except (OSError, struct.error):
        return None


def _family(pid: int) -> Iterator[int]:
    yield pid
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            yield from _family(int(child))


def _sockets(pid: int) -> Iterator[int]:
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since
            found = re.fullmatch(r"socket:\[(\d+)\]", str(descriptor.readlink()))
            if found:
                yield int(found[1])


def _counted(family: int, inodes: set[int]) -> Iterator[int]:
    wanted = struct.pack("=BBBBI", family, socket.IPPROTO_TCP, 1 << (_INFO - 1), 0, _ESTABLISHED) + bytes(48)
    with socket.socket(_AF_NETLINK, socket.SOCK_DGRAM, _NETLINK_SOCK_DIAG) as asking:
        asking.settimeout(_ANSWER_S)
        size = _HEADER.size + len(wanted)
        asking.send(_HEADER.pack(size, _SOCK_DIAG_BY_FAMILY, _REQUEST | _DUMP, 0, 0) + wanted)
        for told in _messages(asking):
            if struct.unpack_from("=I", told, _INODE_AT)[0] in inodes:
                yield sum(_COUNTS.unpack_from(_attribute(told, _INFO), _COUNTS_AT))


def _messages(asking: socket.socket) -> Iterator[bytes]:
    while True:
        answer = asking.recv(_ANSWER_BYTES)
        while answer:
            size, kind, *_ = _HEADER.unpack_from(answer)
            if kind == _DONE:
                return
            if kind == _ERROR:
                raise OSError("the kernel tells nothing of its sockets")
            yield answer[_HEADER.size : size]
            answer = answer[_aligned(size) :]


def _attribute(told: bytes, wanted: int) -> bytes:
    at = _ATTRIBUTES_AT
    while True:
        size, kind = struct.unpack_from("=HH", told, at)
        if kind == wanted:
            return told[at + 4 : at + size]
        at += _aligned(size)


def _aligned(size: int) -> int:
    return (size + 3) & ~3
