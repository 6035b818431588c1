"""A verb that somebody elsewhere has called: a child, its streams as frames, and whoever is connected to it now."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import mmap
import os
import signal
import struct
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from holdfast.errors import UsageError
from holdfast.service import frames
from holdfast.service.forking import Child
from holdfast.service.frames import Decoder, Frame, Kept, Kind, Malformed
from holdfast.service.pipes import Inlet, Outlets
from holdfast.service.tasks import stop

Verb = Callable[[Sequence[str]], int]

_COLUMNS = struct.Struct("=H")
_PIECE_BYTES = 256 << 10


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be run. `terminals`: which of the streams 0, 1, 2 end at a terminal of the caller."""

    argv: tuple[str, ...]
    cwd: str | None = None  # None: the home of the user
    env: Mapping[str, str] = field(default_factory=dict)  # over the service's own
    columns: int | None = None
    terminals: tuple[int, ...] = ()

    @staticmethod
    def of(body: Mapping[str, Any]) -> Order:
        """From a request. Raises UsageError."""
        argv, cwd, env = body.get("argv"), body.get("cwd"), body.get("env") or {}
        columns, terminals = body.get("columns"), body.get("terminals") or []
        if not isinstance(argv, list) or not all(map(_is_word, argv)):
            raise UsageError("argv is not a list of words")
        if cwd is not None and not _is_word(cwd):
            raise UsageError("cwd is not a path")
        if not isinstance(env, dict) or not all(name and "=" not in name and _is_word(name) for name in env):
            raise UsageError("env is not an object of variables")
        if not all(map(_is_word, env.values())):
            raise UsageError("env has a value that is no text")
        if columns is not None and (type(columns) is not int or not 0 < columns <= 0xFFFF):
            raise UsageError("columns is not a number from 1 to 65535")
        if not isinstance(terminals, list) or any(stream not in (0, 1, 2) for stream in terminals):
            raise UsageError("terminals is not a list of streams")
        return Order(tuple(argv), cwd, env, columns, tuple(terminals))


def _is_word(value: object) -> bool:
    try:
        return isinstance(value, str) and b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        return False


class Call:
    """One, from its fork until its exit is acknowledged. Use on one event loop."""

    def __init__(self, order: Order, verb: Verb) -> None:
        """Begin it. Raises OSError, and then nothing is left of it."""
        self._columns = mmap.mmap(-1, _COLUMNS.size)  # of the caller's terminal, shared with the child
        self._columns[:] = _COLUMNS.pack(order.columns or 0)
        pipes: list[tuple[int, int]] = []
        try:
            while len(pipes) < 3:  # which may be more than there are descriptors for
                pipes.append(os.pipe())
            (its_in, our_in), (our_out, its_out), (our_err, its_err) = pipes
            self._child = Child(lambda: _be(order, verb, self._columns), (its_in, its_out, its_err), order.terminals)
        except BaseException:
            for descriptor in itertools.chain(*pipes):
                os.close(descriptor)
            raise
        for descriptor in (its_in, its_out, its_err):
            os.close(descriptor)
        self._moved = asyncio.Event()  # there may be something to send
        self._kept = Kept()
        self._inlet = Inlet(our_in, self._moved.set)
        self._outlets = Outlets({our_out: 1, our_err: 2}, self._kept, self._has_read)
        self._has_said_exit = False
        self._signals = 0  # that were passed on
        self._talk: asyncio.Task[None] | None = None
        self._left_s = time.monotonic()  # when the last connection ended
        self.is_abandoned = False  # and has heard of it
        self.was_left = False  # by a caller who said so
        self._child.ended.add_done_callback(self._has_ended)

    @property
    def has_ended(self) -> bool:
        """The verb is no more; its last words may still be here."""
        return self._child.ended.done()

    @property
    def is_over(self) -> bool:
        """The laptop knows how it ended."""
        return self._has_said_exit and self._kept.first == self._kept.end

    def alone_s(self) -> float:
        """Seconds without a connection."""
        return 0.0 if self._talk is not None else time.monotonic() - self._left_s

    def signal(self, number: int) -> None:
        """To the verb's process group, once it has ended to nobody."""
        with contextlib.suppress(PermissionError):  # all that are left have become another user
            self._child.signal(number)

    def abandon(self) -> None:
        """Nobody has been with it for too long."""
        self.is_abandoned = True
        self.signal(signal.SIGHUP)

    def close(self) -> None:
        """Forget it; a verb that lives finds its streams closed."""
        self._inlet.close()
        self._outlets.close()
        self._columns.close()

    def _has_read(self) -> None:
        if self.has_ended and self._outlets.are_over and not self._has_said_exit:
            self._has_said_exit = True
            self._kept.add(frames.exit_(self._child.ended.result()))
        self._moved.set()

    def _has_ended(self, _status: asyncio.Future[int]) -> None:
        self._outlets.finish()
        self._has_read()

    # -- whoever is connected

    def has_frames_after(self, received: int) -> bool:
        """Whether somebody who has so many counted frames can go on here."""
        return self._kept.first <= received <= self._kept.end

    async def attach(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, first: bytes, received: int
    ) -> None:
        """Serve one connection until it ends or another one comes. `first`: bytes that were read of it already.

        received: how many counted frames the laptop has, as `has_frames_after` allows.
        """
        while self._talk is not None and not self._talk.done():
            await stop(self._talk)
        if not self.has_frames_after(received):
            return
        self._inlet.forget()
        talk = self._talk = asyncio.create_task(self._converse(reader, writer, first, received))
        try:
            await asyncio.wait([talk])
        finally:
            await stop(talk)
            if self._talk is talk:
                self._talk, self._left_s = None, time.monotonic()
        if not talk.cancelled():
            talk.result()

    async def _converse(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, first: bytes, received: int
    ) -> None:
        both = {asyncio.create_task(self._listen(reader, first)), asyncio.create_task(self._tell(writer, received))}
        try:
            done, _ = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            await stop(*both)

    async def _listen(self, reader: asyncio.StreamReader, piece: bytes) -> None:
        decoder = Decoder()
        while True:
            for frame in decoder.fed(piece):
                self._hear(frame)
            if self.is_over or self.was_left:
                return
            piece = await reader.read(_PIECE_BYTES)
            if not piece:
                return

    def _hear(self, frame: Frame) -> None:
        if frame.kind is Kind.INPUT:
            self._inlet.take(frame.payload)
        elif frame.kind is Kind.ACK:
            self._kept.acknowledge(frames.ack_of(frame))
            self._outlets.resume()
        elif frame.kind is Kind.SIGNAL:
            self._pass_on(*frames.signal_of(frame))
        elif frame.kind is Kind.RESIZE:
            self._columns[:] = _COLUMNS.pack(frames.resize_of(frame))
            self.signal(signal.SIGWINCH)
        elif frame.kind is Kind.LEAVE:
            self.was_left = True
            self.abandon()
        else:
            raise Malformed(f"a frame of kind {frame.kind.name} to the node")

    def _pass_on(self, number: int, ordinal: int) -> None:
        """After a cut the laptop sends every signal of the call again."""
        if number not in signal.valid_signals() or ordinal > self._signals:
            raise Malformed(f"signal {number} as the one after {self._signals} others, with number {ordinal}")
        if ordinal == self._signals:
            self._signals += 1
            self.signal(number)

    async def _tell(self, writer: asyncio.StreamWriter, at: int) -> None:
        """Counted frames from number `at` on, and how many came."""
        told = -1
        while True:
            self._moved.clear()
            at = max(at, self._kept.first)
            parts = self._kept.some(at, _PIECE_BYTES)
            at += len(parts)
            if self._inlet.count > told:
                told = self._inlet.count
                parts.append(frames.ack(told))
            writer.writelines(part.encoded() for part in parts)
            await writer.drain()
            if not parts:
                await self._moved.wait()


def _be(order: Order, verb: Verb, columns: mmap.mmap) -> int:
    """In the child."""

    def resized(*_: object) -> None:
        (wide,) = _COLUMNS.unpack(columns[:])
        if wide:
            os.environ["COLUMNS"] = str(wide)

    os.environ.update(order.env)
    signal.signal(signal.SIGWINCH, resized)
    resized()
    where = order.cwd or str(Path.home())
    try:
        os.chdir(where)
    except OSError as error:
        sys.stderr.write(f"error: {where}: {error.strerror}\n")
        return UsageError.exit_code
    return verb(order.argv)
