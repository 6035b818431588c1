"""What the two ends of a call say to each other: frames of a kind and a payload. Pure.

Frames of the kinds in `COUNTED` are numbered in each direction, from 0, by their order alone. An end keeps those that
it has sent until the other end says how many it has used up; after a cut the count says where to go on.
docs/concepts/link.md has the table.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

from holdfast.errors import HoldfastError

UPGRADE = "holdfast-call"  # what HTTP is left for
PAYLOAD_BYTES = 64 << 10  # at most, of one frame
WINDOW_BYTES = 4 << 20  # payloads that are not acknowledged; then whoever makes them waits
COST_BYTES = 128  # of keeping a frame, counted with its payload: a verb may write single bytes

_HEAD = struct.Struct(">BI")
_COUNT, _EXIT, _SIGNAL, _COLUMNS = struct.Struct(">Q"), struct.Struct(">i"), struct.Struct(">BI"), struct.Struct(">H")


class Kind(IntEnum):
    """What a frame is about."""

    INPUT = 0  # to the node
    OUTPUT = 1  # to the laptop
    ACK = 2  # both ways
    SIGNAL = 3  # to the node
    EXIT = 4  # to the laptop, the last
    RESIZE = 5  # to the node
    LEAVE = 6  # to the node, the last


COUNTED = frozenset({Kind.INPUT, Kind.OUTPUT, Kind.EXIT})


class Malformed(HoldfastError):
    """The other end says what no frame of the protocol is."""


class Frame(NamedTuple):
    """One, whole."""

    kind: Kind
    payload: bytes

    def encoded(self) -> bytes:
        return _HEAD.pack(self.kind, len(self.payload)) + self.payload


def output(stream: int, data: bytes) -> Frame:
    """Bytes of stdout (1) or stderr (2), fewer than `PAYLOAD_BYTES`."""
    return Frame(Kind.OUTPUT, bytes([stream]) + data)


def output_of(frame: Frame) -> tuple[int, bytes]:
    """Its stream and bytes. Raises Malformed."""
    if not frame.payload or frame.payload[0] not in (1, 2):
        raise Malformed(f"output of no known stream: {frame.payload[:1]!r}")
    return frame.payload[0], frame.payload[1:]


def ack(count: int) -> Frame:
    """So many counted frames have been used up since the call began."""
    return Frame(Kind.ACK, _COUNT.pack(count))


def ack_of(frame: Frame) -> int:
    return _only(_COUNT, frame)[0]


def exit_(status: int) -> Frame:
    """The end; negative: the number of the signal that ended the verb."""
    return Frame(Kind.EXIT, _EXIT.pack(status))


def exit_of(frame: Frame) -> int:
    return _only(_EXIT, frame)[0]


def signal(number: int, ordinal: int) -> Frame:
    """The `ordinal`-th signal of this call, from 0: who has had it drops it."""
    return Frame(Kind.SIGNAL, _SIGNAL.pack(number, ordinal))


def signal_of(frame: Frame) -> tuple[int, int]:
    number, ordinal = _only(_SIGNAL, frame)
    return number, ordinal


def resize(columns: int) -> Frame:
    return Frame(Kind.RESIZE, _COLUMNS.pack(min(columns, 0xFFFF)))


def resize_of(frame: Frame) -> int:
    return _only(_COLUMNS, frame)[0]


def _only(shape: struct.Struct, frame: Frame) -> tuple[int, ...]:
    if len(frame.payload) != shape.size:
        raise Malformed(f"a frame of kind {frame.kind.name} with {len(frame.payload)} bytes, not {shape.size}")
    return shape.unpack(frame.payload)


class Decoder:
    """Whole frames out of pieces of a stream; holds less than one."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def fed(self, piece: bytes) -> Iterator[Frame]:
        """The frames that `piece` completes. Raises Malformed."""
        self._rest += piece
        at = 0
        try:
            while len(self._rest) - at >= _HEAD.size:
                number, size = _HEAD.unpack_from(self._rest, at)
                if number not in Kind.__members__.values() or size > PAYLOAD_BYTES:
                    raise Malformed(f"a frame of kind {number} with {size} bytes")
                end = at + _HEAD.size + size
                if len(self._rest) < end:
                    return
                frame = Frame(Kind(number), bytes(memoryview(self._rest)[at + _HEAD.size : end]))
                at = end
                yield frame
        finally:
            del self._rest[:at]


class Kept:
    """Counted frames on their way: those before `first` are acknowledged, the others are here."""

    def __init__(self) -> None:
        self.first = 0
        self._frames: deque[Frame] = deque()
        self._bytes = 0

    @property
    def end(self) -> int:
        """The number that the next frame gets."""
        return self.first + len(self._frames)

    @property
    def is_full(self) -> bool:
        return self._bytes >= WINDOW_BYTES

    def add(self, frame: Frame) -> None:
        self._frames.append(frame)
        self._bytes += len(frame.payload) + COST_BYTES

    def some(self, number: int, limit_bytes: int) -> list[Frame]:
        """Those from `number` on, until there are so many bytes."""
        found: list[Frame] = []
        size = 0
        while number + len(found) < self.end and size < limit_bytes:
            found.append(self._frames[number + len(found) - self.first])
            size += len(found[-1].payload) + COST_BYTES
        return found

    def acknowledge(self, count: int) -> None:
        """The other end has used up the first `count`. Raises Malformed for more than there are."""
        if count > self.end:
            raise Malformed(f"{count} frames acknowledged, {self.end} were sent")
        while self.first < count:
            self._bytes -= len(self._frames.popleft().payload) + COST_BYTES
            self.first += 1
