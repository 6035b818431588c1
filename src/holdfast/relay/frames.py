"""What a WebSocket message says: kind, offset and perhaps bytes. docs/concepts/link.md has the table.

Pure. An offset counts bytes of one direction from the session's begin; its end counts as one more.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

MOST_FRAME_BYTES = 256 << 10
WINDOW_BYTES = 8 << 20  # sent and not yet taken at the other end; then who produces waits
PIECE_BYTES = 64 << 10  # of data in a frame: small, so that a slow line shows a sign of life every few seconds
_HEAD = struct.Struct(">BQ")

OVER = 1000  # close codes: both directions have ended, or the client has left
REFUSED = 4000  # the session has ended for the reason beside it


class BadFrame(Exception):
    """The other end broke the protocol: nothing that it says can be believed."""


class Kind(IntEnum):
    """First byte of a message."""

    DATA = 0  # offset of the first byte, bytes
    END = 1  # offset: how many bytes there were
    ACK = 2  # offset up to which everything was taken


class Frame(NamedTuple):
    """One message."""

    kind: Kind
    offset: int
    data: bytes = b""


def pack(frame: Frame) -> bytes:
    """As it goes over the line."""
    return _HEAD.pack(frame.kind, frame.offset) + frame.data


def unpack(message: bytes | str) -> Frame:
    """What came over the line. Raises BadFrame."""
    if isinstance(message, str) or len(message) < _HEAD.size:
        raise BadFrame("a message that is no frame")
    number, offset = _HEAD.unpack_from(message)
    if number not in tuple(Kind):
        raise BadFrame(f"a frame of unknown kind {number}")
    data = message[_HEAD.size :]
    if bool(data) is not (number == Kind.DATA):
        raise BadFrame(f"a frame of kind {number} with {len(data)} bytes")
    return Frame(Kind(number), offset, data)
