"""Ways from a laptop to the socket of a service: bytes both ways, from where a `Calls` is to where the service is.

A way is asked for again whenever the bytes have ended. It raises ConnectionRefusedError or FileNotFoundError where it
is certain that no service listens, any other OSError where the link is away, which is tried again, and a HoldfastError
for what a person has to mend.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol, TypeAlias

from holdfast.deadline import within
from holdfast.errors import HostUnreachable
from holdfast.link.channels import Channel, Connection
from holdfast.link.client import NeedsAuthentication
from holdfast.link.mux import MasterGone, Refused

_PIECE_BYTES = 256 << 10
_CLOSE_S = 1.0


class Stream(Protocol):
    """One connection to a service. All raise OSError when the link is gone."""

    async def read(self) -> bytes:
        """What has come, at least a byte; b"" at its end."""

    async def write(self, data: bytes) -> None:
        """All of it, as fast as the other side takes it."""

    async def close(self) -> None:
        """Give it up."""


Connect: TypeAlias = Callable[[], Awaitable[Stream]]


def unix(path: Path) -> Connect:
    """To a service of this machine."""

    async def connect() -> Stream:
        return _Local(*await asyncio.open_unix_connection(str(path)))

    return connect


def through(reach: Callable[[], Awaitable[Connection]], path: str) -> Connect:
    """To the service that listens at `path` on another machine, by channels of the connection that `reach` gives."""

    async def connect() -> Stream:
        try:
            return _Remote(await (await reach()).unix(path))
        except Refused as error:
            raise ConnectionRefusedError(str(error)) from error
        except NeedsAuthentication:
            raise
        except HostUnreachable as error:
            raise ConnectionResetError(str(error)) from error

    return connect


class _Local:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def read(self) -> bytes:
        return await self._reader.read(_PIECE_BYTES)

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def close(self) -> None:
        self._writer.close()
        try:
            await within(self._writer.wait_closed(), _CLOSE_S)
        except (OSError, asyncio.TimeoutError):  # what was not taken is not waited for
            self._writer.transport.abort()


class _Remote:
    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    async def read(self) -> bytes:
        try:
            return await self._channel.read()
        except MasterGone as error:
            raise ConnectionResetError(str(error)) from error

    async def write(self, data: bytes) -> None:
        try:
            await self._channel.write(data)
        except MasterGone as error:
            raise ConnectionResetError(str(error)) from error

    async def close(self) -> None:
        await self._channel.close()
