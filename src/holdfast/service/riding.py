"""One call as the laptop has it: what was sent and is not with the verb yet, what has come, and how it ended.

A call rides on one connection after another. A frame of output counts when it is here; it is acknowledged when all
of it is written where it should go, so a reader that is slow makes the verb wait.
"""

from __future__ import annotations

import asyncio
import contextlib

from holdfast.deadline import within
from holdfast.link import descriptors
from holdfast.link.descriptors import Sink
from holdfast.service import frames
from holdfast.service.frames import Decoder, Frame, Kept, Kind, Malformed
from holdfast.service.streams import Stream
from holdfast.service.tasks import stop

_LAST_S = 0.5  # for the last word: without it the node forgets the call somewhat later
_BATCH_BYTES = 256 << 10  # of input, between two looks at what else is due


class Cut(Exception):
    """The connection has ended, the call has not."""


class Riding:
    """The state of one call. Use on one event loop."""

    def __init__(self, stdin: int | None, stdout: int, stderr: int, columns: int | None) -> None:
        self.received = 0  # counted frames
        self.status: int | None = None  # once it has ended; negative: by a signal
        self._stdin, self._sinks = stdin, {1: Sink(stdout), 2: Sink(stderr)}
        self._columns = columns
        self._signals: list[int] = []
        self._kept = Kept()
        self._moved = asyncio.Event()  # there may be something to send
        self._room = asyncio.Event()  # for more input
        self._is_greeted = False  # whether the node has said on this connection how many it has
        self.left = asyncio.Event()  # the caller goes
        self.is_known = False  # to the service
        self.asked_s: float | None = None  # when the service was first asked, which it may have heard or not

    def signal(self, number: int) -> None:
        """For the verb, now or as soon as there is a connection."""
        self._signals.append(number)
        self._moved.set()

    def resize(self, columns: int) -> None:
        """The caller's terminal has so many columns now."""
        self._columns = columns
        self._moved.set()

    def leave(self) -> None:
        """The caller goes: the verb hears of it, if there is a connection."""
        self.left.set()
        self._moved.set()

    async def feed(self) -> None:
        """Read the caller's stdin to its end, never further ahead of the verb than a window."""
        data = b"" if self._stdin is None else b"-"
        while True:
            while self._kept.is_full:
                self._room.clear()
                await self._room.wait()
            if self._stdin is not None:
                try:
                    data = await descriptors.read(self._stdin, frames.PAYLOAD_BYTES)
                except OSError:  # a terminal that is gone ends like a file
                    data = b""
            self._kept.add(Frame(Kind.INPUT, data))
            self._moved.set()
            if not data:
                return

    async def ride(self, stream: Stream, first: bytes) -> None:
        """Go on over a connection, of which `first` was read already, until the call or the connection ends.

        Raises Cut, Malformed, and OSError of the caller's own streams.
        """
        self._is_greeted = False
        listening = asyncio.create_task(self._listen(stream, first))
        telling = asyncio.create_task(self._tell(stream))
        try:
            await asyncio.wait({listening, telling}, return_when=asyncio.FIRST_COMPLETED)
            if listening.done() and isinstance(listening.exception(), OSError):
                self.leave()
            if self.status is not None or self.left.is_set():
                await asyncio.wait({telling}, timeout=_LAST_S)
            if self.status is None and self.left.is_set():
                await stop(listening)
                with contextlib.suppress(OSError, asyncio.TimeoutError):
                    await within(_hung_up(stream), _LAST_S)
        finally:
            await stop(listening, telling)
        if self.status is None:
            for task in (listening, telling):
                if not task.cancelled():
                    task.result()

    async def _listen(self, stream: Stream, piece: bytes) -> None:
        for sink in self._sinks.values():  # what was not yet written when the last connection ended
            await sink.flush()
        self._moved.set()
        decoder = Decoder()
        while True:
            for frame in decoder.fed(piece):
                await self._hear(frame)
                if self.status is not None:
                    return
            try:
                piece = await stream.read()
            except OSError as error:
                raise Cut(str(error)) from error
            if not piece:
                raise Cut("the connection was closed")

    async def _hear(self, frame: Frame) -> None:
        if frame.kind is Kind.OUTPUT:
            number, data = frames.output_of(frame)
            self.received += 1
            self._sinks[number].put(data)
            await self._sinks[number].flush()
        elif frame.kind is Kind.ACK:
            self._kept.acknowledge(frames.ack_of(frame))
            self._is_greeted = True
            self._room.set()
        elif frame.kind is Kind.EXIT:
            self.status = frames.exit_of(frame)
            self.received += 1
        else:
            raise Malformed(f"a frame of kind {frame.kind.name} to the laptop")
        self._moved.set()

    @property
    def progress(self) -> int:
        """Grows whenever a frame has come or has arrived."""
        return self.received + self._kept.first

    @property
    def _written(self) -> int:
        """Counted frames that need no more room here."""
        return self.received - sum(not sink.is_empty for sink in self._sinks.values())

    async def _tell(self, stream: Stream) -> None:
        """What is due, whenever something is, until the call is over."""
        acked = signals = at = 0
        columns: int | None = None
        while True:
            self._moved.clear()
            parts: list[Frame] = []
            if self._written > acked:
                acked = self._written
                parts.append(frames.ack(acked))
            parts += [frames.signal(number, n) for n, number in enumerate(self._signals) if n >= signals]
            signals = len(self._signals)
            if self._columns is not None and self._columns != columns:
                columns = self._columns
                parts.append(frames.resize(columns))
            if self._is_greeted:
                at = max(at, self._kept.first)
                batch = self._kept.some(at, _BATCH_BYTES)
                at += len(batch)
                parts += batch
            if self.left.is_set() and self.status is None:
                parts.append(Frame(Kind.LEAVE, b""))
            try:
                await stream.write(b"".join(frame.encoded() for frame in parts))
            except OSError as error:
                raise Cut(str(error)) from error
            if self.status is not None or self.left.is_set():
                return
            if not parts:
                await self._moved.wait()


async def _hung_up(stream: Stream) -> None:
    """The node has heard all of ours. Who closes with bytes unread may take back what it has just sent."""
    while await stream.read():
        pass
