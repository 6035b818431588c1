"""One byte stream each way, over one connection after the other. Both ends of the relay run this.

What has come is acknowledged when it was delivered, not when it arrived: so the other end never has more than a window
under way, and this one always reads. A sign of life is seen whatever the local reader does.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from websockets.asyncio.connection import Connection
from websockets.exceptions import ConnectionClosed

from holdfast.deadline import within
from holdfast.relay.frames import OVER, PIECE_BYTES, BadFrame, Frame, Kind, pack, unpack
from holdfast.relay.liveness import TICK_S, Verdict, judge
from holdfast.relay.replay import Incoming, Outgoing

ACK_BYTES = 256 << 10  # an acknowledgement at the latest after so many
ACK_S = 0.1  # or after that long
_BROKEN = frozenset({1002, 1003, 1007, 1009})  # close codes that say: the other end broke the protocol
_CUT = 1006


@dataclass(frozen=True, slots=True)
class Ended:
    """Why a connection carries no more: a close code and the reason the other end gave."""

    code: int
    reason: str = ""


async def unpaced(_size_bytes: int) -> None:
    """At once."""


class Stream:
    """Between `source` and `sink` here and those at the other end."""

    def __init__(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        *,
        pace: Callable[[int], Awaitable[None]] = unpaced,
    ) -> None:
        self._source = source
        self._sink = sink
        self._pace = pace
        self._out = Outgoing()
        self._in = Incoming()
        self._to_send = asyncio.Event()
        self._to_deliver = asyncio.Event()
        self._to_acknowledge = asyncio.Event()
        self._room = asyncio.Event()
        self._over = asyncio.Event()
        self._pumping: asyncio.Future[Any]
        self._heard_s = 0.0
        self._said = -1  # acknowledged over the connection of now
        self.is_heard = False  # whether the other end has said anything, ever
        self.moved_s = time.monotonic()  # when data last went through

    @property
    def received(self) -> int:
        """Offset up to which everything has come from the other end."""
        return self._in.received

    @property
    def is_delivered(self) -> bool:
        """Whether everything the other end had to say was delivered here, its end included."""
        return self._in.is_over

    def begin(self) -> None:
        """Read the source and feed the sink, until both have ended."""
        self._pumping = asyncio.gather(self._read(), self._deliver())

    async def end(self) -> None:
        """Neither any more. A failure was told by `carry`."""
        self._pumping.cancel()
        await asyncio.gather(self._pumping, return_exceptions=True)

    async def carry(self, connection: Connection, received: int) -> Ended:
        """Use `connection`, whose other end has `received`, for as long as it lives. Raises BadFrame."""
        self._out.rewind(received)
        self._said = -1
        self._to_send.set()
        self._heard_s = time.monotonic()
        works: list[Coroutine[Any, Any, Ended]] = [
            self._send(connection),
            self._receive(connection),
            self._acknowledge(connection),
            self._watch(connection),
            self._until_over(),
        ]
        tasks = [asyncio.ensure_future(work) for work in works]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return Ended(OVER) if self._over.is_set() else _why(done)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self) -> None:
        while True:
            while not self._out.room:
                self._room.clear()
                await self._room.wait()
            try:
                data = await self._source.read(min(PIECE_BYTES, self._out.room))
            except OSError:  # the peer of the source is gone: what it had to say has ended
                data = b""
            await self._pace(len(data))
            self._out.add(data) if data else self._out.end()
            self.moved_s = time.monotonic()
            self._to_send.set()
            if not data:
                return

    async def _deliver(self) -> None:
        while not self._in.is_over:
            data = self._in.take()
            if data:
                await self._pace(len(data))
                with contextlib.suppress(OSError):  # nobody reads any more: what comes is dropped, until the end
                    self._sink.write(data)
                    await self._sink.drain()
                self._went_on(len(data))
            elif self._in.at_end:
                with contextlib.suppress(OSError):
                    self._sink.write_eof()
                self._went_on(1)
            else:
                self._to_deliver.clear()
                await self._to_deliver.wait()

    def _went_on(self, size: int) -> None:
        self._in.went_on(size)
        self.moved_s = time.monotonic()
        self._to_acknowledge.set()

    async def _send(self, connection: Connection) -> Ended:
        while True:
            frame = self._out.take()
            if frame is None:
                self._to_send.clear()
                await self._to_send.wait()
            else:
                await connection.send(pack(frame))

    async def _receive(self, connection: Connection) -> Ended:
        while True:
            frame = unpack(await connection.recv())
            self._heard_s = time.monotonic()
            self.is_heard = True
            if frame.kind is Kind.ACK:
                self._out.acknowledged(frame.offset)
                self._room.set()
                self._look_whether_over()
            else:
                self._in.arrived(frame)
                self._to_deliver.set()

    async def _acknowledge(self, connection: Connection) -> Ended:
        while True:
            while self._said == self._in.delivered:
                self._to_acknowledge.clear()
                await self._to_acknowledge.wait()
            if self._said >= 0:  # the first at once: it tells the other end that this connection is in use
                await self._gather()
            taken = self._in.delivered
            await connection.send(pack(Frame(Kind.ACK, taken)))
            self._said = taken
            self._look_whether_over()

    async def _gather(self) -> None:
        """Until it is worth an acknowledgement."""
        with contextlib.suppress(asyncio.TimeoutError):
            await within(self._enough(), ACK_S)

    async def _enough(self) -> None:
        while self._in.delivered - self._said < ACK_BYTES and not self._in.is_over:
            self._to_acknowledge.clear()
            await self._to_acknowledge.wait()

    def _look_whether_over(self) -> None:
        if self._out.is_over and self._in.is_over and self._said == self._in.delivered:
            self._over.set()

    async def _until_over(self) -> Ended:
        await asyncio.shield(self._pumping)  # it has no other way to say that it failed
        await self._over.wait()
        return Ended(OVER)

    async def _watch(self, connection: Connection) -> Ended:
        """End the connection when it is silent for too long; never waits for the connection itself."""
        pinging: asyncio.Task[None] | None = None
        while True:
            before_s = time.time()
            await asyncio.sleep(TICK_S)
            verdict = judge(time.monotonic() - self._heard_s, time.time() - before_s)
            if verdict is Verdict.DEAD:
                connection.transport.abort()
                return Ended(_CUT)
            if verdict is Verdict.PING and (pinging is None or pinging.done()):
                pinging = asyncio.ensure_future(self._ping(connection))

    async def _ping(self, connection: Connection) -> None:
        with contextlib.suppress(ConnectionClosed):
            await (await connection.ping())
            self._heard_s = time.monotonic()


def _why(done: set[asyncio.Task[Ended]]) -> Ended:
    for task in done:
        error = task.exception()
        if isinstance(error, ConnectionClosed):
            close = error.rcvd
            if error.sent is not None and error.sent.code in _BROKEN:
                raise BadFrame(error.sent.reason or f"close code {error.sent.code}")
            return Ended(close.code, close.reason) if close is not None else Ended(_CUT)
        if error is not None:
            raise error
    return next(iter(done)).result()
