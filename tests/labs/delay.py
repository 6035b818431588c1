"""Carry frames between two devices, each so many seconds later: the kernel here has no netem.

Usage: delay.py DEVICE DEVICE SECONDS [BYTES]

With BYTES that many a second leave the first device, and a queue for one second of them lies before it: what comes to a
full one is dropped, as a modem does.
"""

from __future__ import annotations

import heapq
import math
import select
import socket
import sys
import time

_ALL = 3  # ETH_P_ALL
_PACKET, _IGNORE_OUTGOING = 263, 23  # SOL_PACKET: what we send ourselves does not come back to us
_FRAME_BYTES = 65_536
_QUEUE_S = 1.0


def _opened(device: str) -> socket.socket:
    link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL))
    link.setsockopt(_PACKET, _IGNORE_OUTGOING, 1)
    link.bind((device, 0))
    link.setblocking(False)
    return link


def main(one: str, other: str, delay_s: float, rate: float = math.inf) -> None:
    """For ever. rate: bytes a second from `one` to `other`."""
    ends, rates, free_s = [_opened(one), _opened(other)], (rate, math.inf), [0.0, 0.0]
    late: list[tuple[float, int, int, bytes]] = []  # due, order, to, frame
    count = 0
    print("ready", flush=True)
    while True:
        left_s = max(0.0, late[0][0] - time.monotonic()) if late else None
        for link in select.select(ends, [], [], left_s)[0]:
            count += 1
            frame, now_s, side = link.recv(_FRAME_BYTES), time.monotonic(), ends.index(link)
            if free_s[side] > now_s + _QUEUE_S:
                continue
            free_s[side] = max(now_s, free_s[side]) + len(frame) / rates[side]
            heapq.heappush(late, (free_s[side] + delay_s, count, 1 - side, frame))
        while late and late[0][0] <= time.monotonic():
            _, _, to, frame = heapq.heappop(late)
            ends[to].send(frame)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(float, sys.argv[3:]))
