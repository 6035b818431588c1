"""The end that has the files: says what there is, and gives what is asked for."""

from __future__ import annotations

import json
import os
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from holdfast import runs
from holdfast.sync import frames as words
from holdfast.sync.frames import Frames, decoded, printable
from holdfast.sync.known import Hashes, place_of, source_of
from holdfast.sync.manifest import FILE, MOST_PATHS_BYTES, Entry, Hostile
from holdfast.sync.scan import Line, scan
from holdfast.sync.tree import Tree

PART = struct.Struct(">IB")  # number of the entry, flags; then bytes, or for zeros how many
LAST, BROKEN, ZEROS = 1, 2, 4
SIZE = struct.Struct(">I")
PART_BYTES = 256 << 10
_ALL_ZERO = bytes(PART_BYTES)
_MOST_HEARD_BYTES = 2 * MOST_PATHS_BYTES  # of one turn
_ROUNDS = 3  # for files that are written to meanwhile

Progress = Callable[[int, int], None]  # bytes done, bytes in all


@dataclass
class Outcome:
    """What one round did. moved_bytes: of files, here and there; zeros count."""

    lines: list[Line] = field(default_factory=list)
    moved_bytes: int = 0
    seconds: float = 0.0

    def paths(self, what: str) -> list[str]:
        """Those with that fate."""
        return [line.path for line in self.lines if line.what == what]

    def after(self, earlier: Outcome) -> Outcome:
        """Both as one: what is kept or changing is what the later one says."""
        done = [line for line in earlier.lines if line.what in ("brought", "made", "deleted")]
        return Outcome(done + self.lines, earlier.moved_bytes + self.moved_bytes, earlier.seconds + self.seconds)


class Sender:
    """Brings one folder, round after round."""

    def __init__(self, root: Path, frames: Frames, progress: Progress = lambda done, total: None) -> None:
        self._root, self._frames, self._progress = root, frames, progress
        self._place = place_of(root)
        self._source = source_of(self._place)

    def bring(self) -> Outcome:
        """A round, and more where a file was written to meanwhile. Raises Cut, Told, Hostile, UsageError."""
        outcome = self._round()
        for _ in range(_ROUNDS - 1):
            if outcome.paths("changing"):
                outcome = self._round().after(outcome)
        return outcome

    def leave(self) -> None:
        """There will be no other round."""
        self._frames.send(words.BYE)
        self._frames.flush()

    def _round(self) -> Outcome:
        began_s = time.monotonic()
        hashes = Hashes(self._place)
        with Tree(self._root) as tree:
            entries, skipped = self._tell(tree, hashes)
            hashes.save()
            wants, doomed, outcome = self._hear(len(entries))
            if wants is not None:
                self._give(tree, entries, wants, doomed)
                _, _, outcome = self._hear(len(entries))
        outcome.lines = skipped + outcome.lines
        outcome.seconds = time.monotonic() - began_s
        return outcome

    def _tell(self, tree: Tree, hashes: Hashes) -> tuple[list[Entry], list[Line]]:
        begin = {"version": words.VERSION, "source": self._source}
        self._frames.send(words.BEGIN, json.dumps(begin).encode())
        entries: list[Entry] = []
        skipped: list[Line] = []
        for each in scan(tree, hashes, runs.home()):
            if isinstance(each, Line):
                skipped.append(each)
                continue
            entries.append(each)
            if len(entries) % words.LIST_ITEMS == 0:
                self._frames.send_list(words.ENTRIES, [entry.encoded() for entry in entries[-words.LIST_ITEMS :]])
        rest = len(entries) % words.LIST_ITEMS
        self._frames.send_list(words.ENTRIES, [entry.encoded() for entry in entries[len(entries) - rest :]])
        self._frames.send(words.END)
        self._frames.flush()
        return entries, skipped

    def _hear(self, count: int) -> tuple[list[tuple[int, int]] | None, list[str], Outcome]:
        """What is asked for, None when it is over; what is gone perhaps; what became of it all."""
        wants: list[tuple[int, int]] = []
        doomed: list[str] = []
        outcome, heard_bytes = Outcome(), 0
        while heard_bytes <= _MOST_HEARD_BYTES:
            kind, body = self._frames.receive()
            heard_bytes += len(body)
            if kind == words.WANT:
                wants += [_want(item, count) for item in decoded(body, list)]
            elif kind == words.DOOMED:
                doomed += [str(path) for path in decoded(body, list)]
            elif kind == words.TOLD:
                outcome.lines += [_line(item) for item in decoded(body, list)]
            elif kind == words.TURN:
                return wants, doomed, outcome
            elif kind == words.DONE:
                outcome.moved_bytes = int(decoded(body, int))
                return None, doomed, outcome
            else:
                raise Hostile(f"the other end sends a message {kind} nobody asked for")
        raise Hostile(f"the other end says more than {_MOST_HEARD_BYTES} bytes about {count} files")

    def _give(self, tree: Tree, entries: list[Entry], wants: list[tuple[int, int]], doomed: list[str]) -> None:
        gone = [path for path in doomed if _is_gone(tree, path)]
        self._frames.send_list(words.GONE, gone)
        total = sum(entries[number].size_bytes - offset for number, offset in wants)
        done = 0
        for number, offset in wants:
            for body, size in _parts(tree, number, entries[number], offset):
                self._frames.send(words.PART, body)
                done += size
                self._progress(done, total)
        self._frames.send(words.END)
        self._frames.flush()


def _parts(tree: Tree, number: int, entry: Entry, offset: int) -> Iterator[tuple[bytes, int]]:
    """Frames of one file from `offset` on, and how many bytes of it each is. A file that is not as told ends broken."""
    left = entry.size_bytes - offset
    if entry.kind != FILE or left < 0:
        raise Hostile(f"the other end asks for {entry.path!r} from byte {offset}")
    try:
        descriptor = tree.open(entry.path)
    except OSError:
        yield PART.pack(number, LAST | BROKEN), 0  # it was removed, or made unreadable, since it was told of
        return
    try:
        while True:
            data = os.pread(descriptor, min(PART_BYTES, left), entry.size_bytes - left)
            left -= len(data)
            broken = BROKEN if left and not data else 0
            last = LAST if broken or not left else 0
            if data == _ALL_ZERO:
                yield PART.pack(number, last | ZEROS) + SIZE.pack(len(data)), len(data)
            else:
                yield PART.pack(number, last | broken) + data, len(data)
            if last:
                return
    finally:
        os.close(descriptor)


def _is_gone(tree: Tree, path: str) -> bool:
    """What the rules leave out now is still there, and not gone."""
    return bool(path) and "\0" not in path and tree.status(path) is None


def _want(item: object, count: int) -> tuple[int, int]:
    if not isinstance(item, list) or len(item) != 2 or not all(type(number) is int for number in item):
        raise Hostile("the other end asks in a way that nobody can read")
    number, offset = item
    if not 0 <= number < count or offset < 0:
        raise Hostile(f"the other end asks for file {number} of {count}, from byte {offset}")
    return number, offset


def _line(item: object) -> Line:
    if not isinstance(item, list) or len(item) != 3 or not all(type(text) is str for text in item):
        raise Hostile("the other end tells what nobody can read")
    return Line(printable(item[0]), item[1], printable(item[2]))
