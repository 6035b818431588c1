"""From slots to a durable checkpoint.

The order is the whole point: packs written, fsynced, renamed, their folders fsynced → read back from the medium and
verified → manifest written, fsynced, renamed without replace, its folder fsynced → acknowledged; only then may
`collect` remove anything. A crash anywhere leaves the old checkpoint or the new one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import islice
from typing import Any

from holdfast.checkpoint import lineage, manifest, pack, survey
from holdfast.checkpoint.canonical import Damaged
from holdfast.checkpoint.folder import Folder
from holdfast.checkpoint.known import read_back
from holdfast.checkpoint.lineage import Position
from holdfast.checkpoint.manifest import Manifest, PackEntry
from holdfast.checkpoint.packer import Packer, hash_of
from holdfast.checkpoint.parallel import ordered
from holdfast.checkpoint.slots import align
from holdfast.checkpoint.table import check_slot_table
from holdfast.errors import HoldfastError


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
    written_bytes: int  # packs, whole; less than the checkpoint's size when chunks of it were there already
    write_seconds: float
    verify_seconds: float


def commit(into: Folder, parts: Sequence[Part], *, name: str = "", until_s: float | None = None) -> Committed:
    """Save `parts`, ranks in order, all of one save id. Durable and verified when this returns.

    name: how people call it; stands in rank 0's table. until_s: `time.monotonic()` past which the save is given up.
    Raises Damaged for a table that cannot be, Superseded, TooSlow, OSError (ENOSPC among them); `collect.sweep` clears
    up then.
    """
    for rank, part in enumerate(parts):
        _check_part(part, rank, parts)
    found = survey.of(into)
    own = Position(parts[0].table["term"], parts[0].table["sequence"])
    if found.newest_term > own.term:
        raise Superseded(own.term, found.newest_term)
    started = time.monotonic()
    into.known.notice(survey.packs(found))
    packer, packs, chunks = _store(into, parts, until_s)
    written = time.monotonic()
    for entry in packer.written:
        into.known.trust(entry, read_back(into.root, into.disk, entry))
    verified = time.monotonic()
    ranks = [_rank(part, stored) for part, stored in zip(parts, chunks, strict=True)]
    if name:
        ranks[0]["table"]["name"] = name
    made = _manifest(own, found, packs, ranks)
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


Chunks = list[dict[str, Any]]


def _store(into: Folder, parts: Sequence[Part], until_s: float | None) -> tuple[Packer, list[PackEntry], list[Chunks]]:
    """Put every chunk of every rank into packs, hashed ahead on threads.

    Returns the packer, all packs that are needed, and each rank's chunks as a manifest has them.
    """
    with ExitStack() as views:  # closed last: until then packs are written straight from the slots
        chunks = [(part.slot, chunk) for part in parts for chunk in part.table["chunks"]]
        payloads = [views.enter_context(_payload(slot, chunk)) for slot, chunk in chunks]
        sizes = [chunk["bytes"] for _, chunk in chunks]
        placed = []
        with (
            Packer(into, until_s=until_s) as packer,
            closing(ordered(lambda one: hash_of(*one), zip(payloads, sizes, strict=True))) as hashes,
        ):
            for (_, chunk), payload, chunk_id in zip(chunks, payloads, hashes, strict=True):
                place = packer.add(payload, chunk["bytes"], chunk_id=chunk_id)
                placed.append({**chunk, "id": chunk_id, "pack": place.pack, "offset": place.offset})
            packs = packer.finish()
    each = iter(placed)
    return packer, packs, [list(islice(each, len(part.table["chunks"]))) for part in parts]


def _rank(part: Part, chunks: Chunks) -> dict[str, Any]:
    """The manifest's entry of a rank."""
    return {"table": {name: value for name, value in part.table.items() if name != "chunks"}, "chunks": chunks}


def _payload(slot: memoryview, chunk: dict[str, Any]) -> memoryview:
    """The chunk's bytes with zeros up to 4 KiB: straight from the slot, or a copy should its padding not be zero."""
    start, size = chunk["offset"], chunk["bytes"]
    view = slot[start : start + align(size)]
    if pack.is_zero(view[size:]):
        return view
    with view:
        return pack.padded(view[:size])


def publish(into: Folder, made: Manifest) -> None:
    """The commit itself: give the manifest its name, durably. Raises Damaged when it is too long, OSError."""
    if len(made.raw) > manifest.MAX_MANIFEST_BYTES:
        raise Damaged(f"the manifest has {len(made.raw)} bytes, more than the {manifest.MAX_MANIFEST_BYTES} readable")
    manifest.parse(made.file_name, made.raw)
    try:
        into.put(f"manifests/{made.file_name}", made.raw)
    except FileExistsError:  # committed by an archiver that died before it could say so
        into.put(f"manifests/{made.file_name}", made.raw, replace=True)
