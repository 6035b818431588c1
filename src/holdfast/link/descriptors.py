"""The caller's own streams, used by an event loop without a change to them: they may be shared with a shell.

A descriptor is asked whether it is ready and then given no more than it takes without waiting. What cannot be asked (a
file) never waits for long.
"""

from __future__ import annotations

import asyncio
import os
import select
import stat

_PIPE_BYTES = select.PIPE_BUF  # a pipe that is writable takes so many (POSIX)


class Sink:
    """Where output goes. A `flush` that is cancelled goes on at its byte with the next one."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._rest = memoryview(b"")
        self._asks = _can_be_asked(descriptor)
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)

    @property
    def is_empty(self) -> bool:
        """All that was put is written."""
        return not self._rest

    def put(self, data: bytes) -> None:
        """What `flush` writes; only when all before it is written."""
        self._rest = memoryview(data)

    async def flush(self) -> None:
        """Raises OSError as the descriptor does, BrokenPipeError when its reader has left."""
        while self._rest:
            if self._asks and not self._poll.poll(0):
                await _writable(self._descriptor)
            most = _PIPE_BYTES if self._asks else len(self._rest)
            self._rest = self._rest[os.write(self._descriptor, self._rest[:most]) :]


async def read(descriptor: int, size_bytes: int) -> bytes:
    """What is there, at least a byte; b"" at its end. Raises OSError."""
    if _can_be_asked(descriptor):
        await readable(descriptor)
    return os.read(descriptor, size_bytes)


def _can_be_asked(descriptor: int) -> bool:
    mode = os.fstat(descriptor).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(descriptor)


async def _writable(descriptor: int) -> None:
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_writer(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_writer(descriptor)


async def readable(descriptor: int) -> None:
    """Wait until there is something to read, or its end."""
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)
