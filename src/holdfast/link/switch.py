"""Many clients' channels on one stream, as a master of OpenSSH has them: each client numbers its own as it likes.

Only the number of a channel is looked at, and whether it opens or closes; windows are between the two ends, so what is
kept here for a client that does not read is no more than it has allowed.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import struct
from dataclasses import dataclass

from holdfast.link import wire
from holdfast.link.channels import (
    CLOSE,
    FAILURE,
    OPEN,
    OPEN_CONFIRMATION,
    OPEN_FAILURE,
    UNSENT_BYTES,
    Channel,
)
from holdfast.link.mux import MasterGone
from holdfast.link.wire import Malformed, Reader, u32

_SIZE = struct.Struct(">I")
_RECIPIENT = 2  # where a message has it: after the padding and the kind


@dataclass
class _Route:
    """One channel. `client` is None when that has left; `theirs` is the other end's number, once it is known."""

    client: asyncio.StreamWriter | None
    number: int  # as the client has it
    theirs: int | None = None
    is_closing: bool = False  # the client, or we for it, have said so
    is_closed: bool = False  # the other end has


class Switch:
    """All clients of the channel `there`, at whose end the messages of channels are understood."""

    def __init__(self, there: Channel, came: bytes) -> None:
        """came: what was read of it already."""
        self._there, self._came = there, bytearray(came)
        self._routes: dict[int, _Route] = {}
        self._numbers = itertools.count()
        self._unsent = bytearray()
        self._moved, self._has_room = asyncio.Event(), asyncio.Event()
        self._has_room.set()
        self._clients: set[asyncio.StreamWriter] = set()

    async def run(self) -> None:
        """Until the stream ends; everybody is hung up then."""
        loop = asyncio.get_running_loop()
        both = [loop.create_task(self._send()), loop.create_task(self._receive())]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in both:
                task.cancel()
            await asyncio.gather(*both, return_exceptions=True)
            for client in self._clients:
                client.close()
            self._has_room.set()

    async def serve(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        """One client until it hangs up; what it has open is closed for it."""
        self._clients.add(client)
        try:
            while not client.is_closing():
                size = _size(await reader.readexactly(_SIZE.size))
                self._from_client(client, bytearray(await reader.readexactly(size)))
                await self._has_room.wait()
        except (OSError, asyncio.IncompleteReadError, Malformed):
            return
        finally:
            self._clients.discard(client)
            for route in list(self._routes.values()):
                if route.client is client:
                    self._abandon(route)
            client.close()

    def _from_client(self, client: asyncio.StreamWriter, message: bytearray) -> None:
        kind = message[1]
        if kind == OPEN:
            reader = Reader(bytes(message[_RECIPIENT:]))
            at = _RECIPIENT + 4 + len(reader.string())
            number = next(self._numbers)
            self._routes[number] = _Route(client, reader.u32())
            message[at : at + 4] = u32(number)
        elif kind == CLOSE:
            (theirs,) = _SIZE.unpack_from(message, _RECIPIENT)
            for number, route in list(self._routes.items()):
                if route.theirs == theirs:
                    route.is_closing = True
                    self._tidy(number, route)
        elif kind < OPEN:
            return  # about no channel: the answer would be nobody's
        self._post(bytes(message))

    def _to_client(self, message: bytearray) -> None:
        if not OPEN_CONFIRMATION <= message[1] <= FAILURE:
            return  # about no channel
        (number,) = _SIZE.unpack_from(message, _RECIPIENT)
        route = self._routes.get(number)
        if route is None:
            raise Malformed(f"a message about channel {number}, which nobody has")
        if message[1] == OPEN_CONFIRMATION:
            (route.theirs,) = _SIZE.unpack_from(message, _RECIPIENT + 4)
        elif message[1] == OPEN_FAILURE:
            route.is_closing = route.is_closed = True
        elif message[1] == CLOSE:
            route.is_closed = True
        if route.client is None:
            self._abandon(route)
        elif not route.client.is_closing():
            message[_RECIPIENT : _RECIPIENT + 4] = u32(route.number)
            route.client.write(wire.framed(bytes(message)))
        self._tidy(number, route)

    def _abandon(self, route: _Route) -> None:
        """Close it as soon as it is open, for a client that has left."""
        route.client = None
        if route.theirs is not None and not route.is_closing:
            route.is_closing = True
            self._post(b"\0" + bytes([CLOSE]) + u32(route.theirs))

    def _tidy(self, number: int, route: _Route) -> None:
        if route.is_closing and route.is_closed:
            self._routes.pop(number, None)

    def _post(self, message: bytes) -> None:
        self._unsent += wire.framed(message)
        self._moved.set()
        if len(self._unsent) > UNSENT_BYTES:
            self._has_room.clear()

    async def _send(self) -> None:
        """What was posted, for as long as the other end takes it."""
        with contextlib.suppress(MasterGone, BrokenPipeError):
            while True:
                await self._moved.wait()
                self._moved.clear()
                data = bytes(self._unsent)
                self._unsent.clear()
                await self._there.write(data)
                if len(self._unsent) <= UNSENT_BYTES:
                    self._has_room.set()

    async def _receive(self) -> None:
        """Hand out what comes, until its end or what is no message."""
        with contextlib.suppress(MasterGone, Malformed):
            while True:
                while len(self._came) >= 4 and len(self._came) >= 4 + (size := _size(self._came[:4])):
                    message = self._came[4 : 4 + size]
                    del self._came[: 4 + size]
                    self._to_client(message)
                piece = await self._there.read()
                if not piece:
                    return
                self._came += piece


def _size(head: bytes | bytearray) -> int:
    """Of the message that follows. Raises Malformed."""
    (size,) = _SIZE.unpack(head)
    if not 6 <= size <= wire.MOST_BYTES:
        raise Malformed(f"a message of {size} bytes")
    return int(size)
