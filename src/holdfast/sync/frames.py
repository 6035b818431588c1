"""The words of both ends: a kind and a length, `>BI`, then at most 1 MiB. docs/concepts/link.md says what each means.

The end that is reached writes `GREETING` first, and whoever reached it passes over what a shell says before that.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import struct
from collections.abc import Sequence
from typing import Any

from holdfast.errors import HoldfastError, HostUnreachable
from holdfast.sync.manifest import Hostile

GREETING = b"\0holdfast sync 1\n"
VERSION = 1

BEGIN, ENTRIES, END = 1, 2, 3  # a manifest
WANT, DOOMED, TURN = 4, 5, 6  # what of it is asked for
GONE, PART = 7, 8  # the pack, ended by END
TOLD, DONE = 9, 10  # what became of it
ERROR, BYE = 11, 12

MOST_BYTES = 1 << 20  # of a frame
LIST_ITEMS = 500  # of a list, a frame: even with the longest paths within MOST_BYTES, mostly
_HEAD = struct.Struct(">BI")
_FLUSH_BYTES = 256 << 10
_READ_BYTES = 256 << 10
_NOISE_BYTES = 64 << 10
START_S = 60.0  # for a Python there to begin
SILENT_S = 60.0  # without a byte, or room for one, while a pack is on its way
_MOST_SAID = 2000


class Cut(HostUnreachable):
    """The connection ended in the middle. What has arrived whole stays."""


class Told(HoldfastError):
    """The other end could not go on, and said why."""

    def __init__(self, message: str, *, hint: str = "", exit_code: int = 1) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = exit_code


class Frames:
    """One end of a conversation on two descriptors, which stay the caller's."""

    def __init__(self, reading: int, writing: int, *, awaits: bool = False) -> None:
        """awaits: the other end is about to begin; nothing is written, and what it says not taken, before it greets."""
        self._reading, self._writing = reading, writing
        self.awaits = awaits
        os.set_blocking(writing, False)
        for descriptor in (reading, writing):
            _widen(descriptor)
        self._out = bytearray()
        self._have, self._at = bytearray(), 0

    def greet(self) -> None:
        """Say that what follows is ours."""
        self._out += GREETING
        self.flush()

    def _begin(self) -> None:
        """Pass over what is said before the greeting. Raises Cut with its last line when nothing else comes."""
        if not self.awaits:
            return
        try:
            while (at := self._have.find(GREETING)) < 0:
                if len(self._have) > _NOISE_BYTES:
                    raise Cut(f"{len(self._have)} bytes came, and nothing of holdfast")
                self._more(START_S)
        except Cut as cut:
            said = printable(self._have[-_MOST_SAID:].decode(errors="replace").strip())
            raise Cut(f"holdfast did not start there: {said or cut}", hint=cut.hint) from None
        self._at = at + len(GREETING)
        self.awaits = False

    def send(self, kind: int, body: bytes = b"") -> None:
        """Sooner or later; `flush` for at once. Raises Cut, or Told when the other end has left with a word."""
        self._out += _HEAD.pack(kind, len(body))
        self._out += body
        if len(self._out) >= _FLUSH_BYTES:
            self.flush()

    def send_list(self, kind: int, items: Sequence[object]) -> None:
        """In as many frames as it takes."""
        for at in range(0, len(items), LIST_ITEMS):
            self._send_items(kind, items[at : at + LIST_ITEMS])

    def _send_items(self, kind: int, items: Sequence[object]) -> None:
        body = json.dumps(items, separators=(",", ":")).encode()
        if len(body) <= MOST_BYTES:
            self.send(kind, body)
            return
        middle = len(items) // 2  # paths of thousands of bytes
        self._send_items(kind, items[:middle])
        self._send_items(kind, items[middle:])

    def flush(self) -> None:
        """Return when all of it was taken. Raises Cut, Told."""
        self._begin()
        left = memoryview(bytes(self._out))
        self._out.clear()
        while left:
            self._wait(self._writing, select.POLLOUT, SILENT_S)
            try:
                left = left[os.write(self._writing, left) :]
            except BlockingIOError:
                continue
            except OSError as error:
                self._last_words()
                raise Cut(f"the other end has hung up: {error.strerror}") from error

    def fail(self, error: HoldfastError) -> None:
        """Tell why we cannot go on; no matter whether anybody still listens."""
        self._out.clear()  # at the end of a frame or not: what was flushed was whole frames
        said = {"error": str(error), "hint": error.hint, "exit_code": error.exit_code}
        try:
            self.send(ERROR, json.dumps(said).encode())
            self.flush()
        except (Cut, Told):
            return  # it knows already

    def receive(self, within_s: float | None = None) -> tuple[int, bytes]:
        """The next frame. Raises Cut, Told, Hostile."""
        self._begin()
        kind, size = _HEAD.unpack(self._exactly(_HEAD.size, within_s))
        if size > MOST_BYTES:
            raise Hostile(f"the other end sends a message of {size} bytes")
        body = self._exactly(size, within_s)
        if kind == ERROR:
            raise _told(body)
        return kind, body

    def _exactly(self, size: int, within_s: float | None) -> bytes:
        while len(self._have) - self._at < size:
            if self._at:
                del self._have[: self._at]
                self._at = 0
            self._more(within_s)
        end = self._at + size
        taken = bytes(memoryview(self._have)[self._at : end])
        self._at = end
        return taken

    def _more(self, within_s: float | None) -> None:
        self._wait(self._reading, select.POLLIN, within_s)
        try:
            data = os.read(self._reading, _READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            raise Cut(f"the connection was lost: {error.strerror}") from error
        if not data:
            raise Cut("the other end has hung up")
        self._have += data

    def _wait(self, descriptor: int, event: int, within_s: float | None) -> None:
        poll = select.poll()
        poll.register(descriptor, event)
        if not poll.poll(None if within_s is None else within_s * 1000):
            raise Cut(f"the other end did nothing for {within_s:g} s")

    def _last_words(self) -> None:
        """Raises Told when the other end said why it left."""
        try:
            while True:
                self.receive(SILENT_S)
        except Cut:
            return


def _widen(descriptor: int) -> None:
    """Let a pipe hold more, so that both ends work at once."""
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with contextlib.suppress(OSError):  # no pipe, or the user has too much in pipes already: it works as it is
            fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, MOST_BYTES)


def decoded(body: bytes, kind: type) -> Any:
    """JSON of that type. Raises Hostile."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, kind):
        raise Hostile("the other end sends what nobody can read")
    return value


def printable(text: str) -> str:
    """Without what would steer a terminal."""
    return "".join(c if c.isprintable() else "�" for c in text)


def _told(body: bytes) -> Told:
    said = decoded(body, dict)
    code = said.get("exit_code")
    return Told(
        printable(str(said.get("error", ""))[:_MOST_SAID]),
        hint=printable(str(said.get("hint", ""))[:_MOST_SAID]),
        exit_code=code if type(code) is int and 1 <= code <= 125 else 1,
    )
