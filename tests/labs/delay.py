"""Carry frames between two devices, each so many seconds later: the kernel here has no netem.

Usage: delay.py DEVICE DEVICE SECONDS
"""

from __future__ import annotations

import heapq
import select
import socket
import sys
import time

_ALL = 3  # ETH_P_ALL
_PACKET, _IGNORE_OUTGOING = 263, 23  # SOL_PACKET: what we send ourselves does not come back to us
_FRAME_BYTES = 65_536


def _opened(device: str) -> socket.socket:
    link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL))
    link.setsockopt(_PACKET, _IGNORE_OUTGOING, 1)
    link.bind((device, 0))
    link.setblocking(False)
    return link


def main(one: str, other: str, delay_s: float) -> None:
    """For ever."""
    ends = [_opened(one), _opened(other)]
    late: list[tuple[float, int, int, bytes]] = []  # due, order, to, frame
    count = 0
    print("ready", flush=True)
    while True:
        left_s = max(0.0, late[0][0] - time.monotonic()) if late else None
        for link in select.select(ends, [], [], left_s)[0]:
            count += 1
            frame = link.recv(_FRAME_BYTES)
            heapq.heappush(late, (time.monotonic() + delay_s, count, 1 - ends.index(link), frame))
        while late and late[0][0] <= time.monotonic():
            _, _, to, frame = heapq.heappop(late)
            ends[to].send(frame)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
