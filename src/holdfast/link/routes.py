"""Whether addresses and routes of this machine change: rtnetlink(7). Linux alone: elsewhere nobody is told."""

from __future__ import annotations

import contextlib
import socket

_AF_NETLINK, _NETLINK_ROUTE = 16, 0  # named in `socket` on Linux only
_GROUPS = 0x10 | 0x40 | 0x100 | 0x400  # addresses and routes, of IPv4 and of IPv6
_PART_BYTES = 1 << 16


def listen() -> socket.socket | None:
    """A socket that can be read after each change; None where the kernel tells nobody."""
    try:
        changes = socket.socket(_AF_NETLINK, socket.SOCK_DGRAM, _NETLINK_ROUTE)
    except OSError:
        return None
    try:
        changes.bind((0, _GROUPS))
        changes.setblocking(False)
    except OSError:
        changes.close()
        return None
    return changes


def heard(changes: socket.socket) -> None:
    """Pass over what has been told: that there was something is all that matters."""
    with contextlib.suppress(OSError):  # nothing is left, or there was more than is kept
        while changes.recv(_PART_BYTES):
            pass
