"""Local ports that lead to a host, and stay ours while it is away.

The agent listens itself and opens a channel through the master for each connection: a port on which a master listened
would be anybody's from its death to the next one's birth (docs/decisions/0014-the-agent-keeps-local-ports.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any

from holdfast.errors import HostUnreachable, UsageError
from holdfast.link.channels import Channel, Connection
from holdfast.link.mux import End

WAIT_S = 20.0  # how long a new connection waits for a link that is down
MOST = 256  # connections of one forward at a time: the next ones queue, so that no forward takes every descriptor
_CHUNK_BYTES = 256 << 10
_FULL_S = 0.1  # before the next try where no descriptor is left
_ABORT = struct.pack("ii", 1, 0)  # SO_LINGER: closing says that the connection broke

Reach = Callable[[float], Awaitable[Connection]]  # the link, within so many seconds; raises HostUnreachable


class Forward:
    """A port of this machine, on loopback, whose connections end at `end` as the host sees it."""

    def __init__(self, alias: str, key: str, port: int, end: End, reach: Reach, *, owner: int | None = None) -> None:
        """Listens from now on. port: 0 for the system's choice; owner: the client it lives for, None for nobody.

        Raises UsageError when the port is taken.
        """
        self.alias, self.key, self.end, self.owner = alias, key, end, owner
        self._listener = _listening(port)
        self.port: int = self._listener.getsockname()[1]
        self._reach = reach
        self._open: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(MOST)
        self._why = ""
        self._task = asyncio.get_running_loop().create_task(self._accept())

    @property
    def told(self) -> dict[str, Any]:
        """For a client. `why` is what became of the last connection that could not be made."""
        facts = {"alias": self.alias, "key": self.key, "listen": self.port, "connect": str(self.end)}
        return {**facts, "kept": self.owner is None, "connections": len(self._open), "why": self._why}

    async def close(self) -> None:
        """Give the port back; its connections break."""
        tasks = [self._task, *self._open]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._listener.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._room.acquire()
            try:
                here, _ = await loop.sock_accept(self._listener)
            except OSError as error:
                self._why = f"no connection could be taken: {error.strerror}"
                self._room.release()
                await asyncio.sleep(_FULL_S)
                continue
            task = loop.create_task(self._carry(here))
            self._open.add(task)
            task.add_done_callback(self._carried)

    def _carried(self, task: asyncio.Task[None]) -> None:
        self._open.discard(task)
        self._room.release()

    async def _carry(self, here: socket.socket) -> None:
        """One connection, to its end."""
        here.setblocking(False)
        here.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        here.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)  # unless it comes to a good end
        with here, contextlib.suppress(OSError):  # whoever connected has left
            try:
                channel = await self._channel()
            except HostUnreachable as error:
                self._why = str(error)
                return
            self._why = ""
            with contextlib.suppress(HostUnreachable):  # the link is gone, and the connection with it
                await exchange(here, channel)
                here.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))

    async def _channel(self) -> Channel:
        connection = await self._reach(WAIT_S)
        if self.end.path:
            return await connection.unix(self.end.path)
        return await connection.tcp(self.end.host, self.end.port)


async def exchange(here: socket.socket, channel: Channel) -> None:
    """Bytes both ways until both have ended, or the other side has closed. Raises MasterGone, OSError."""
    loop = asyncio.get_running_loop()
    sending, closed = loop.create_task(_send(here, channel)), loop.create_task(channel.wait())
    try:
        while part := await channel.read():
            await loop.sock_sendall(here, part)
        here.shutdown(socket.SHUT_WR)
        await asyncio.wait([sending, closed], return_when=asyncio.FIRST_COMPLETED)
        if closed.done():
            closed.result()
    finally:
        sending.cancel()
        closed.cancel()
        await channel.close()


async def _send(here: socket.socket, channel: Channel) -> None:
    with contextlib.suppress(HostUnreachable):  # who reads is told
        try:
            while part := await asyncio.get_running_loop().sock_recv(here, _CHUNK_BYTES):
                await channel.write(part)
            await channel.end()
        except OSError:
            await channel.close()


def _listening(port: int) -> socket.socket:
    try:
        listener = socket.create_server(("127.0.0.1", port), backlog=128)
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        raise UsageError(f"port {port} of this machine cannot be had: {error.strerror}", hint="0 means any") from error
    listener.setblocking(False)
    return listener
