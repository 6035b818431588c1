"""Words of SSH messages: RFC 4251 section 5, also used by the control socket of a multiplexing master."""

from __future__ import annotations

import asyncio
import socket
import struct

_U32 = struct.Struct(">I")
MOST_BYTES = 256 << 10  # of one message: OpenSSH itself allows no more


class Malformed(ValueError):
    """A message ends early, or is longer than any may be."""


def u32(*numbers: int) -> bytes:
    """Each as four bytes."""
    return struct.pack(f">{len(numbers)}I", *numbers)


def string(value: bytes | str) -> bytes:
    """Length and bytes; text as UTF-8."""
    raw = value.encode() if isinstance(value, str) else value
    return _U32.pack(len(raw)) + raw


TRUE, FALSE = b"\1", b"\0"


def framed(message: bytes) -> bytes:
    """A message with its length before it."""
    return string(message)


async def received(connected: socket.socket) -> bytes:
    """The next framed message. Raises Malformed for one that is too long, ConnectionResetError at the end, OSError."""
    size = Reader(await _exactly(connected, 4)).u32()
    if size > MOST_BYTES:
        raise Malformed(f"a message of {size} bytes")
    return await _exactly(connected, size)


async def _exactly(connected: socket.socket, size: int) -> bytes:
    loop, parts = asyncio.get_running_loop(), bytearray()
    while len(parts) < size:
        part = await loop.sock_recv(connected, size - len(parts))
        if not part:
            raise ConnectionResetError("closed")
        parts += part
    return bytes(parts)


class Reader:
    """What is left of a message; every method takes from its front and raises Malformed where too little is there."""

    def __init__(self, message: bytes) -> None:
        self._message, self._at = message, 0

    @property
    def is_empty(self) -> bool:
        """Whether all of it was taken."""
        return self._at == len(self._message)

    def take(self, size_bytes: int) -> bytes:
        """So many bytes as they are."""
        end = self._at + size_bytes
        if end > len(self._message):
            raise Malformed(f"a message of {len(self._message)} bytes ends before byte {end}")
        taken = self._message[self._at : end]
        self._at = end
        return taken

    def byte(self) -> int:
        return self.take(1)[0]

    def u32(self) -> int:
        return int(_U32.unpack(self.take(4))[0])

    def string(self) -> bytes:
        return self.take(self.u32())

    def text(self) -> str:
        """A string for people: what is no UTF-8 in it is replaced."""
        return self.string().decode(errors="replace")
