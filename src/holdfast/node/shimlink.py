"""The supervisor's end of shim.sock: ask, be answered, and collect what the shim says unasked.

A `ShimLink` is one connection; the `Contact` is with the run's shim, whichever that is, and goes on when one dies.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from holdfast import process
from holdfast.errors import HoldfastError
from holdfast.runs import RunDir

ANSWER_S = 20.0  # a spawn waits for exec, which may wait for a slow file system
RETRY_S = 0.02

Message = dict[str, Any]
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


class Contact:
    """The run's shim, whichever that is now. When one dies the next is met, and started where there is none.

    `met` is given each shim's hello, and the pid of the one that it has replaced, else 0; `heard` what a shim says
    unasked; `lost` is called when one has died, before the next is met.
    """

    def __init__(
        self,
        run: RunDir,
        selector: selectors.BaseSelector,
        *,
        met: Callable[[Message, int], None],
        heard: Callable[[Message], None],
        lost: Callable[[], None],
    ) -> None:
        self.secrets: dict[str, str] = {}  # as the shim has them, for the next one
        self.link: ShimLink | None = None
        self._run, self._selector = run, selector
        self._met, self._heard, self._lost = met, heard, lost
        self._slots: Slots = {}
        self._pid = 0  # of the last one met

    def meet(self) -> None:
        """Connect, starting a shim if there is none. Raises HoldfastError."""
        before = self._pid
        self.link = link = connect(self._run, self.secrets, self._slots)
        self._pid = link.pid
        self._selector.register(link.sock, selectors.EVENT_READ, self._readable)
        self.secrets.update(link.hello.get("secrets", {}))
        self._met(link.hello, before if before != link.pid else 0)

    def ask(self, message: Message) -> Message:
        """Ask the shim, the next one if this one dies. Not for what must not be done twice."""
        answer = self.ask_once(message)
        while answer is None:
            answer = self.ask_once(message)
        return answer

    def ask_once(self, message: Message) -> Message | None:
        """Ask the shim; None when it died, and the next one has been met since."""
        try:
            if self.link is not None:
                return self.link.ask(message)
        except (OSError, ValueError):
            self._lose()
        return None

    def deliver(self) -> None:
        """Hand on what was said while an answer was waited for."""
        while self.link is not None and self.link.pushes:
            self._hand_on(self.link.pushes.popleft())

    def _readable(self) -> None:
        try:
            if self.link is not None:
                self.link.pump()
        except (OSError, ValueError):
            self._lose()

    def _lose(self) -> None:
        if self.link is not None:
            self._selector.unregister(self.link.sock)
            self.link.close()
            pushes = list(self.link.pushes)
            self.link = None
            for push in pushes:
                self._hand_on(push)
        self._lost()
        self.meet()

    def _hand_on(self, push: Message) -> None:
        if push["event"] == "secrets":
            self.secrets.update(push["values"])
        else:
            self._heard(push)
