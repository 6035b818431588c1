"""The supervisor's end of shim.sock: ask, be answered, and collect what the shim says unasked."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from holdfast import process
from holdfast.errors import HoldfastError
from holdfast.runs import RunDir

ANSWER_S = 20.0  # a spawn waits for exec, which may wait for a slow file system
RETRY_S = 0.02


Slots = dict[int, list[int]]  # rank → descriptors of its slots, for the next shim: nobody here looks into them


class ShimLink:
    """A connection that said hello. `pushes` fills while waiting for answers and in `pump`."""

    def __init__(self, path: Path, slots: Slots) -> None:
        """Connect, offer the `slots` we keep, and say hello. Raises OSError when nobody listens."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pushes: deque[dict[str, Any]] = deque()
        self._slots = slots
        try:
            self.sock.settimeout(ANSWER_S)
            self.sock.connect(str(path))
            raw = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            self.pid = int(struct.unpack("=iII", raw)[0])
            for rank, fds in slots.items():  # first: the hello says that there is no more to come
                self.ask({"op": "offer", "role": "supervisor", "rank": rank}, fds)
            self.hello = self.ask({"op": "hello", "role": "supervisor"})
        except BaseException:
            self.sock.close()
            raise

    def ask(self, message: Mapping[str, Any], fds: Sequence[int] = ()) -> dict[str, Any]:
        """Send, and return the answer. Raises OSError when the shim is gone."""
        process.send(self.sock, message, fds)
        while True:
            reply = self._receive()
            if "event" not in reply:
                return reply
            self._pushed(reply)

    def _receive(self) -> dict[str, Any]:
        message, fds = process.receive(self.sock)
        if message.get("event") == "slots":
            fds, self._slots[message["rank"]] = self._slots.get(message["rank"], []), fds
        for descriptor in fds:
            os.close(descriptor)
        return message

    def _pushed(self, message: dict[str, Any]) -> None:
        if message["event"] != "slots":
            self.pushes.append(message)

    def pump(self) -> None:
        """Collect pushes that are here already. Raises ConnectionError when the shim is gone."""
        self.sock.settimeout(0)
        try:
            while True:
                self._pushed(self._receive())
        except BlockingIOError:
            return
        finally:
            self.sock.settimeout(ANSWER_S)

    def close(self) -> None:
        """Hang up, with what the shim has sent in hand: it may be dead, and its slots nowhere else."""
        with contextlib.suppress(OSError, ValueError):
            self.pump()
        self.sock.close()


def connect(run: RunDir, secrets: Mapping[str, str], slots: Slots, *, within_s: float = 60.0) -> ShimLink:
    """A link to the run's shim, which is started when there is none. Raises HoldfastError after `within_s`."""
    deadline_s = time.monotonic() + within_s
    while True:
        with contextlib.suppress(OSError):  # none listens: start one
            return ShimLink(run.runtime / "shim.sock", slots)
        try:
            process.start_shim(run, secrets=secrets)
            return ShimLink(run.runtime / "shim.sock", slots)
        except (HoldfastError, OSError):  # another one holds the lock and is about to listen, or is about to die
            if time.monotonic() > deadline_s:
                raise
        time.sleep(RETRY_S)
