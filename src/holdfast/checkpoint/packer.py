"""Puts chunks into packs, unless a pack that the folder knows holds them already.

Gathers them until a pack is full, and writes it while the next one fills.

    with Packer(into) as packer:
        places = [packer.add(pack.padded(raw), len(raw)) for raw in chunks]
        entries = packer.finish()  # places[n].pack is an index into these
        …publish a manifest that names them…

The packs are durable when `finish` returns, and not yet read back. Until a manifest names them only their writer knows
of them: the folder's owner because it collects nothing meanwhile, a guest (`Folder.join`) because it has not left yet.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from types import TracebackType

from blake3 import blake3

from holdfast.checkpoint import canonical, codecs, pack
from holdfast.checkpoint.canonical import Damaged
from holdfast.checkpoint.folder import Folder
from holdfast.checkpoint.known import read_back
from holdfast.checkpoint.manifest import PackEntry
from holdfast.checkpoint.pack import Layout, Record
from holdfast.errors import HoldfastError
from holdfast.fsio import BLOCK

WRITERS = 2  # packs on their way to the disk at once, besides the one that fills


class TooSlow(HoldfastError):
    """A save took longer than it may."""

    exit_code = 11


@dataclass(frozen=True, slots=True)
class Place:
    """Where a chunk lies: index into what `Packer.finish` returns, and the offset of its record in that pack."""

    pack: int
    offset: int


class Packer:
    """Writes packs into a folder; every method raises OSError when the disk does."""

    def __init__(self, into: Folder, *, until_s: float | None = None) -> None:
        """until_s: `time.monotonic()` past which no further pack is begun; TooSlow is raised instead."""
        self.written: list[PackEntry] = []  # by us; what was there already is not among them
        self._into, self._until_s = into, until_s
        self._places: dict[str, Place] = {}
        self._packs: list[PackEntry | None] = []  # None: still to be written
        self._reused: dict[str, int] = {}  # name of a pack that was there → its index
        self._filling = 0  # index of the pack that `_records` are for
        self._records: list[Record] = []
        self._payloads: list[memoryview] = []
        self._pool = ThreadPoolExecutor(WRITERS)
        self._busy: deque[Future[None]] = deque()

    def __enter__(self) -> Packer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._pool.shutdown(cancel_futures=True)

    @property
    def written_bytes(self) -> int:
        """Of the packs in `written`."""
        return sum(entry.size_bytes for entry in self.written)

    def add(
        self, stored: memoryview, size_bytes: int, *, chunk_id: str = "", codec: int = codecs.NONE, raw_bytes: int = 0
    ) -> Place:
        """Put one chunk into a pack, unless it is in one; returns where it lies.

        stored: what is to be in the record, `size_bytes` and zeros up to a whole block (`pack.padded`), not to be
        changed before `finish` returns. chunk_id: the hash of the raw chunk, where it is known. For another codec than
        0 chunk_id and raw_bytes must be given. Raises OSError and TooSlow, also for packs of earlier chunks.
        """
        chunk_id = chunk_id or hash_of(stored, size_bytes)
        place = self._places.get(chunk_id) or self._known(chunk_id)
        if place is None:
            raw_bytes = raw_bytes if codec != codecs.NONE else size_bytes
            record = Record(id=chunk_id, offset=0, raw_bytes=raw_bytes, stored_bytes=size_bytes, codec=codec)
            place = self._gather(record, stored)
        self._places[chunk_id] = place
        return place

    def finish(self) -> list[PackEntry]:
        """Write what is left. Returns every pack that a place names, durable."""
        self._flush()
        while self._busy:
            self._busy.popleft().result()
        return [entry for entry in self._packs if entry is not None]

    def _known(self, chunk_id: str) -> Place | None:
        """The place of a chunk in a pack of an earlier save."""
        found = self._into.known.find(chunk_id)
        if found is None:
            return None
        entry, record = found
        if entry.name not in self._reused:
            self._reused[entry.name] = len(self._packs)
            self._packs.append(entry)
        return Place(self._reused[entry.name], record.offset)

    def _gather(self, record: Record, payload: memoryview) -> Place:
        padded_bytes = self._end - len(self._records) * BLOCK + record.padded_bytes
        if not pack.room(len(self._records) + 1, padded_bytes):
            self._flush()
        if not self._records:
            self._filling = len(self._packs)
            self._packs.append(None)
        self._records.append(dataclasses.replace(record, offset=self._end))
        self._payloads.append(payload)
        return Place(self._filling, self._records[-1].offset)

    @property
    def _end(self) -> int:
        return self._records[-1].end if self._records else 0

    def _flush(self) -> None:
        if not self._records:
            return
        plan, payloads = Layout(tuple(self._records)), self._payloads
        self._records, self._payloads = [], []
        while len(self._busy) >= WRITERS:
            self._busy.popleft().result()
        self._busy.append(self._pool.submit(self._store, self._filling, plan, payloads))

    def _store(self, index: int, plan: Layout, payloads: list[memoryview]) -> None:
        if self._until_s is not None and time.monotonic() > self._until_s:
            raise TooSlow("the save took longer than checkpoint.timeout", hint="is the disk slow, or the time short?")
        entry = PackEntry(canonical.digest(plan.footer), plan.footer_at + len(plan.tail()))
        if not self._reuse(entry):
            self._write(entry.name, plan, payloads)
            self.written.append(entry)
        self._packs[index] = entry

    def _reuse(self, entry: PackEntry) -> bool:
        """Whether an intact pack of that name is there already, left by a save that failed; it is durable then."""
        target = self._into.pack_path(entry.name)
        if target.name not in self._into.disk.list(target.parent):
            return False
        try:
            read_back(self._into.root, self._into.disk, entry)
        except (Damaged, OSError):
            return False
        self._into.disk.sync_folder(target.parent)
        return True

    def _write(self, name: str, plan: Layout, payloads: list[memoryview]) -> None:
        disk, target = self._into.disk, self._into.pack_path(name)
        temporary = self._into.temporary / target.name
        disk.remove(temporary)
        with closing(disk.create(temporary, cached=False)) as file:
            pack.write(file, plan, payloads)
            file.sync()
        disk.rename(temporary, target, replace=True)  # a damaged one of that name, if any
        disk.sync_folder(target.parent)


def hash_of(stored: memoryview, size_bytes: int) -> str:
    """The id of a chunk that is stored as it is."""
    with stored[:size_bytes] as raw:
        return blake3(raw).hexdigest()
