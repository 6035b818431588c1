"""The two directions of a session as each end remembers them, whatever connection carries them.

Pure. `Outgoing` keeps what the other end has not taken, `Incoming` what has come and is not delivered here.
"""

from __future__ import annotations

from holdfast.relay.frames import PIECE_BYTES, WINDOW_BYTES, BadFrame, Frame, Kind


class Outgoing:
    """Bytes on their way to the other end, kept until they were taken there."""

    def __init__(self) -> None:
        self._kept = bytearray()
        self._first = 0  # offset of the first byte kept
        self._next = 0  # what goes next over the connection of now
        self._ended = False
        self.taken = 0

    @property
    def total(self) -> int:
        """Offset behind everything there is."""
        return self._first + len(self._kept) + self._ended

    @property
    def room(self) -> int:
        """How many bytes may be added, 0 or more."""
        return max(0, WINDOW_BYTES - len(self._kept))

    @property
    def is_over(self) -> bool:
        """Whether the end was taken."""
        return self._ended and self.taken == self.total

    def add(self, data: bytes) -> None:
        """More to send."""
        self._kept += data

    def end(self) -> None:
        """There will be no more."""
        self._ended = True

    def rewind(self, received: int) -> None:
        """Another connection begins, and the other end has `received`. Raises BadFrame."""
        if not self.taken <= received <= self.total:
            raise BadFrame(f"{received} bytes are said to have come, of {self.taken} to {self.total}")
        self._next = received

    def acknowledged(self, offset: int) -> None:
        """The other end has taken everything before `offset`. Raises BadFrame."""
        if offset > self._next:
            raise BadFrame(f"{offset} bytes are said to be taken, of {self._next} sent")
        if offset <= self.taken:
            return
        size = min(offset - self._first, len(self._kept))
        del self._kept[:size]
        self._first += size
        self.taken = offset

    def take(self) -> Frame | None:
        """What to send next, or None for now."""
        at = self._next - self._first
        if at < len(self._kept):
            piece = Frame(Kind.DATA, self._next, bytes(self._kept[at : at + PIECE_BYTES]))
            self._next += len(piece.data)
            return piece
        if self._ended and self._next < self.total:
            self._next += 1
            return Frame(Kind.END, self._next - 1)
        return None


class Incoming:
    """Bytes that have come: `received` counts all of them, `delivered` those that have gone on."""

    def __init__(self) -> None:
        self._waiting = bytearray()  # and not what came piece by piece: single bytes would take many times their room
        self._ended = False
        self.received = 0
        self.delivered = 0

    @property
    def is_over(self) -> bool:
        """Whether the end was delivered."""
        return self._ended and self.delivered == self.received

    @property
    def at_end(self) -> bool:
        """Whether only the end is left to deliver."""
        return self._ended and self.delivered == self.received - 1

    def arrived(self, frame: Frame) -> None:
        """Data, or the end. Raises BadFrame when it is out of order or more than the window."""
        if frame.offset != self.received or self._ended:
            raise BadFrame(f"bytes from {frame.offset} where {self.received} is next")
        if frame.kind is Kind.END:
            self._ended = True
            self.received += 1
            return
        if self.received + len(frame.data) - self.delivered > WINDOW_BYTES:
            raise BadFrame(f"more than {WINDOW_BYTES} bytes that were not asked for")
        self._waiting += frame.data
        self.received += len(frame.data)

    def take(self) -> bytes:
        """The next bytes to deliver; b"" for none now."""
        data = bytes(self._waiting[:PIECE_BYTES])
        del self._waiting[:PIECE_BYTES]
        return data

    def went_on(self, size: int) -> None:
        """`size` more were delivered; 1 for the end."""
        self.delivered += size
