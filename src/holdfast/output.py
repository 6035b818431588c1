"""output.log by its byte offsets: ranges, the holes that rotation leaves, the last lines, and what comes next.

Offsets never move. Rotation punches old blocks out; the kernel tells where (SEEK_DATA), so a hole is told to the
reader and never read as zeros.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

CHUNK_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes from `offset` on; `data` is None where `length` bytes have been rotated away."""

    offset: int
    length: int
    data: bytes | None


class Output:
    """The log, open for reading; a log that is not there yet is an empty one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = -1

    def __enter__(self) -> Output:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def size(self) -> int:
        """Where the log ends now, in bytes."""
        if self._descriptor < 0:
            try:
                self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return 0
        return os.fstat(self._descriptor).st_size

    def pieces(self, start: int, end: int | None = None) -> Iterator[Piece]:
        """What lies from `start` to `end` (default: the end now), holes as pieces without data."""
        stop = self.size() if end is None else min(end, self.size())
        at = start
        while at < stop:
            data_at = min(self._next_data(at), stop)
            if data_at > at:
                yield Piece(at, data_at - at, None)
                at = data_at
                continue
            hole_at = min(os.lseek(self._descriptor, at, os.SEEK_HOLE), stop)
            data = os.pread(self._descriptor, min(CHUNK_BYTES, hole_at - at), at)
            if not data:
                return
            yield Piece(at, len(data), data)
            at += len(data)

    def last_lines(self, count: int, start: int = 0, end: int | None = None) -> int:
        """The offset at which the last `count` lines before `end` begin, not before `start` nor inside a hole."""
        stop = self.size() if end is None else min(end, self.size())
        at, wanted = stop, count + 1  # the newline that ends the last line is not one between lines
        if stop > start and not self._ends_line(stop):
            wanted -= 1
        while at > start:
            begin = max(start, at - CHUNK_BYTES)
            block = b"".join(
                piece.data if piece.data is not None else b"\n" * piece.length for piece in self.pieces(begin, at)
            )
            if block.count(b"\n") >= wanted:
                for _ in range(wanted):
                    newline = block.rindex(b"\n")
                    block = block[:newline]
                return begin + newline + 1
            wanted -= block.count(b"\n")
            at = begin
        return start

    def _ends_line(self, stop: int) -> bool:
        return os.pread(self._descriptor, 1, stop - 1) == b"\n"

    def _next_data(self, at: int) -> int:
        try:
            return os.lseek(self._descriptor, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                return self.size()
            raise


class Cursor:
    """A place in the log that moves on as pieces are taken."""

    def __init__(self, output: Output, at: int) -> None:
        self.output = output
        self.at = at  # offset of the next byte

    def new(self) -> Iterator[Piece]:
        """What has come since."""
        for piece in self.output.pieces(self.at):
            self.at = piece.offset + piece.length
            yield piece
