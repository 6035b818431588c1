"""From slots to a durable checkpoint.

The order is the whole point: packs written, fsynced, renamed, their folders fsynced → read back from the medium and
verified → manifest written, fsynced, renamed without replace, its folder fsynced → acknowledged; only then may
`collect` remove anything. A crash anywhere leaves the old checkpoint or the new one.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

from blake3 import blake3

from holdfast.checkpoint import canonical, lineage, manifest, pack, survey
from holdfast.checkpoint.canonical import Damaged
from holdfast.checkpoint.folder import Folder
from holdfast.checkpoint.lineage import Position
from holdfast.checkpoint.manifest import Manifest, PackEntry
from holdfast.checkpoint.parallel import ordered
from holdfast.checkpoint.slots import align
from holdfast.checkpoint.table import check_slot_table
from holdfast.errors import HoldfastError
from holdfast.fsio import BLOCK


class Superseded(HoldfastError):
    """A save of a term that is over."""

    exit_code = 11

    def __init__(self, term: int, newest: int) -> None:
        super().__init__(f"term {term} is over, term {newest} was taken: this save came too late")


@dataclass(frozen=True, slots=True)
class Part:
    """One rank's share of a save: its slot's table and the slot's bytes."""

    table: dict[str, Any]
    slot: memoryview


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """A durable checkpoint. The read-back is counted apart from the writing."""

    manifest: Manifest
    file_name: str
    written_bytes: int  # less than the checkpoint's size when packs were there already
    write_seconds: float
    verify_seconds: float


def commit(into: Folder, parts: Sequence[Part]) -> Committed:
    """Save `parts`, ranks in order, all of one save id. Durable and verified when this returns.

    Raises Damaged for a table that cannot be, Superseded, OSError (ENOSPC among them); `collect.sweep` clears up then.
    """
    for rank, part in enumerate(parts):
        _check_part(part, rank, parts)
    found = survey.take(into.root, into.disk)
    own = Position(parts[0].table["term"], parts[0].table["sequence"])
    if found.newest_term > own.term:
        raise Superseded(own.term, found.newest_term)
    started = time.monotonic()
    packer = _Packer(into)
    ranks = packer.store(parts)
    written = time.monotonic()
    for entry in packer.packs:
        read_back(into, entry)
    verified = time.monotonic()
    made = _manifest(own, found, packer.packs, ranks)
    publish(into, made)
    return Committed(
        manifest=made,
        file_name=made.file_name,
        written_bytes=packer.written_bytes,
        write_seconds=written - started + time.monotonic() - verified,
        verify_seconds=verified - written,
    )


def _check_part(part: Part, rank: int, parts: Sequence[Part]) -> None:
    what = f"slot table of rank {rank}"
    check_slot_table(part.table, part.slot.nbytes, what)
    first = parts[0].table
    if (part.table["rank"], part.table["world"]) != (rank, len(parts)) or any(
        part.table[name] != first[name] for name in ("save_id", "term", "step")
    ):
        raise Damaged(f"{what} belongs to another save than that of rank 0")


def _manifest(own: Position, found: survey.Survey, packs: list[PackEntry], ranks: list[dict[str, Any]]) -> Manifest:
    line = found.line()
    before = lineage.parent(own, line)
    return Manifest(
        position=own,
        parent=before,
        base=found.bases[own.term] if own.term in found.bases else lineage.parent(Position(own.term, -1), line),
        packs=tuple(packs),
        ranks=tuple(ranks),
    )


class _Packer:
    """Hashes chunks ahead on threads, gathers them into packs and writes each pack when it is full."""

    def __init__(self, into: Folder) -> None:
        self.packs: list[PackEntry] = []
        self.written_bytes = 0
        self._into = into
        self._places: dict[str, tuple[int, int]] = {}  # chunk id → pack index, record offset
        self._ids: list[tuple[str, int]] = []
        self._payloads: list[memoryview] = []
        self._payload_bytes = 0

    def store(self, parts: Sequence[Part]) -> list[dict[str, Any]]:
        """Write all chunks; returns the manifest's `ranks`."""
        with ExitStack() as views:
            payloads = [views.enter_context(_payload(part.slot, c)) for part in parts for c in part.table["chunks"]]
            sizes = [chunk["bytes"] for part in parts for chunk in part.table["chunks"]]
            ids: list[str] = []
            with closing(ordered(_hash, zip(payloads, sizes, strict=True))) as hashes:
                for payload, size, chunk_id in zip(payloads, sizes, hashes, strict=True):
                    self._add(chunk_id, size, payload)
                    ids.append(chunk_id)
            self._flush()
        named = iter(ids)
        return [
            {
                "table": {name: value for name, value in part.table.items() if name != "chunks"},
                "chunks": [self._placed(chunk, next(named)) for chunk in part.table["chunks"]],
            }
            for part in parts
        ]

    def _placed(self, chunk: dict[str, Any], chunk_id: str) -> dict[str, Any]:
        index, offset = self._places[chunk_id]
        return {**chunk, "id": chunk_id, "pack": index, "offset": offset}

    def _add(self, chunk_id: str, size: int, payload: memoryview) -> None:
        if chunk_id in self._places:
            return
        if not pack.room(len(self._ids) + 1, self._payload_bytes + payload.nbytes):
            self._flush()
        self._places[chunk_id] = (len(self.packs), len(self._ids) * BLOCK + self._payload_bytes)
        self._ids.append((chunk_id, size))
        self._payloads.append(payload)
        self._payload_bytes += payload.nbytes

    def _flush(self) -> None:
        if not self._ids:
            return
        plan = pack.layout(self._ids)
        name = canonical.digest(plan.footer)
        if not self._reuse(name):
            self._write(name, plan)
        self.packs.append(PackEntry(name, plan.footer_at + len(plan.tail())))
        self._ids, self._payloads, self._payload_bytes = [], [], 0

    def _reuse(self, name: str) -> bool:
        """Whether an intact pack of that name is there already; if so it is durable afterwards."""
        target = self._into.pack_path(name)
        if target.name not in self._into.disk.list(target.parent):
            return False
        try:
            with closing(self._into.disk.open(target, cached=False)) as file:
                pack.check(file, name, pack.read_layout(file, name))
        except (Damaged, OSError):
            return False
        self._into.disk.sync_folder(target.parent)
        return True

    def _write(self, name: str, plan: pack.Layout) -> None:
        disk, target = self._into.disk, self._into.pack_path(name)
        temporary = self._into.root / "tmp" / target.name
        disk.remove(temporary)
        with closing(disk.create(temporary, cached=False)) as file:
            pack.write(file, plan, self._payloads)
            file.sync()
            self.written_bytes += file.size()
        disk.rename(temporary, target, replace=True)  # a damaged one of that name, if any
        disk.sync_folder(target.parent)


def _payload(slot: memoryview, chunk: dict[str, Any]) -> memoryview:
    """The chunk's bytes with zeros up to 4 KiB: straight from the slot, or a copy should its padding not be zero."""
    start, size = chunk["offset"], chunk["bytes"]
    view = slot[start : start + align(size)]
    if pack.is_zero(view[size:]):
        return view
    with view:
        copy = mmap.mmap(-1, view.nbytes)
        copy[:size] = view[:size]
        return memoryview(copy)


def _hash(payload_and_size: tuple[memoryview, int]) -> str:
    payload, size = payload_and_size
    with payload[:size] as raw:
        return blake3(raw).hexdigest()


def read_back(into: Folder, entry: PackEntry) -> None:
    """Read a pack from the medium and check every byte. Raises Damaged, OSError."""
    with closing(into.disk.open(pack.path(into.root, entry.name), cached=False)) as file:
        if file.size() != entry.size_bytes:
            raise Damaged(f"pack {entry.name[:12]} has {file.size()} bytes instead of {entry.size_bytes}")
        pack.check(file, entry.name, pack.read_layout(file, entry.name))


def publish(into: Folder, made: Manifest) -> None:
    """The commit itself: give the manifest its name, durably. Raises Damaged when it is too long, OSError."""
    if len(made.raw) > manifest.MAX_MANIFEST_BYTES:
        raise Damaged(f"the manifest has {len(made.raw)} bytes, more than the {manifest.MAX_MANIFEST_BYTES} readable")
    manifest.parse(made.file_name, made.raw)
    try:
        into.put(f"manifests/{made.file_name}", made.raw)
    except FileExistsError:  # committed by an archiver that died before it could say so
        into.put(f"manifests/{made.file_name}", made.raw, replace=True)
