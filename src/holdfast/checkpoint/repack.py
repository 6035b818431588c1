"""Write anew what is still needed of packs that are mostly not.

In an order that a crash cannot turn against us: new packs, read back → the manifests that need them, under the same
position with another hash in the name, durable → the old manifests go → the old packs go. Until the old manifest is
gone there are two of one checkpoint; either will do, and `survey` takes the one that was rewritten more often.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from holdfast.checkpoint import collect, manifest, pack, survey
from holdfast.checkpoint.commit import publish
from holdfast.checkpoint.folder import Folder
from holdfast.checkpoint.known import read_back
from holdfast.checkpoint.manifest import Manifest, PackEntry
from holdfast.checkpoint.packer import Packer
from holdfast.checkpoint.survey import CheckpointInfo, Survey
from holdfast.fsio import get

LIVE_RATIO = 0.5  # a pack of which less than this is needed is worth a look
LEAST_GAIN_BYTES = 16 << 20
MOST_COPIED_BYTES = 256 << 20  # in one go: a save may be waiting


@dataclass(frozen=True, slots=True, kw_only=True)
class Repacked:
    """What one go did."""

    packs: int  # that are needed no more
    copied_bytes: int  # as written
    freed_bytes: int


@dataclass(frozen=True, slots=True)
class _Worn:
    """A pack with little in it that is needed: the records to keep."""

    entry: PackEntry
    records: tuple[pack.Record, ...]

    @property
    def live_bytes(self) -> int:
        return sum(record.end - record.offset for record in self.records)

    @property
    def dead_bytes(self) -> int:
        return self.entry.size_bytes - self.live_bytes


def repack(into: Folder, *, least_gain_bytes: int = LEAST_GAIN_BYTES) -> Repacked | None:
    """One go; None when there is not enough to gain. For the owner. Raises Damaged, OSError; nothing is lost then."""
    found = survey.of(into)
    if any(one.path is not None for one in found.unreadable):
        return None  # nobody knows what that one needs
    into.known.notice(survey.packs(found))
    worn = _worn(into, found)
    gain_bytes = sum(one.dead_bytes for one in worn)
    if not worn or gain_bytes < least_gain_bytes:
        return None
    for one in worn:
        if into.known.verified_s(one.entry.name) is None:
            into.known.verify(one.entry)
    packs, places, written_bytes = _copy(into, worn)
    old = {one.entry.name for one in worn}
    for info in found.checkpoints:
        if old & info.needs.keys():
            publish(into, _rewritten(_read(into, info), places, packs))
    collect.drop_doubles(into)
    return Repacked(packs=len(worn), copied_bytes=written_bytes, freed_bytes=gain_bytes)


def _worn(into: Folder, found: Survey) -> list[_Worn]:
    """The packs to write anew, those with most to gain first, as many as one go may copy."""
    needed: dict[str, set[int]] = {}
    for info in (*found.checkpoints, *found.doubles):
        for name, records in info.needs.items():
            needed.setdefault(name, set()).update(records)
    entries = {entry.name: entry for entry in survey.packs(found)}
    every = [_Worn(entries[name], _live(into, name, offsets)) for name, offsets in needed.items()]
    worn = [one for one in every if one.records and one.live_bytes < LIVE_RATIO * one.entry.size_bytes]
    chosen: list[_Worn] = []
    left = MOST_COPIED_BYTES
    for one in sorted(worn, key=lambda one: (-one.dead_bytes, one.entry.name)):
        left -= one.live_bytes
        if left < 0:
            break
        chosen.append(one)
    return chosen


def _live(into: Folder, name: str, offsets: set[int]) -> tuple[pack.Record, ...]:
    layout = into.known.layout(name)
    return tuple(record for record in layout.records if record.offset in offsets) if layout is not None else ()


def _copy(into: Folder, worn: Iterable[_Worn]) -> tuple[list[PackEntry], Mapping[tuple[str, int], Any], int]:
    """Put the live records into new packs, read back. Returns the packs, (old pack, offset) → place, bytes written."""
    places = {}
    for one in worn:
        into.known.forget(one.entry.name)  # or the packer would find them where they are
    with Packer(into) as packer:
        for one in worn:
            with closing(into.disk.open(pack.path(into.root, one.entry.name), cached=False)) as file:
                for record in one.records:
                    payload = pack.read_stored(file, record, f"pack {one.entry.name[:12]}")
                    places[one.entry.name, record.offset] = packer.add(
                        payload,
                        record.stored_bytes,
                        chunk_id=record.id,
                        codec=record.codec,
                        raw_bytes=record.raw_bytes,
                    )
        packs = packer.finish()
    for entry in packer.written:
        into.known.trust(entry, read_back(into.root, into.disk, entry))
    return packs, places, packer.written_bytes


def _read(into: Folder, info: CheckpointInfo) -> Manifest:
    return manifest.parse(info.path.name, get(into.disk, info.path, limit_bytes=manifest.MAX_MANIFEST_BYTES))


def _rewritten(old: Manifest, places: Mapping[tuple[str, int], Any], packs: list[PackEntry]) -> Manifest:
    """The same checkpoint with its chunks where they are now."""
    entries: list[PackEntry] = []
    index: dict[str, int] = {}

    def moved(chunk: dict[str, Any]) -> dict[str, Any]:
        entry, offset = old.packs[chunk["pack"]], chunk["offset"]
        place = places.get((entry.name, offset))
        if place is not None:
            entry, offset = packs[place.pack], place.offset
        if entry.name not in index:
            index[entry.name] = len(entries)
            entries.append(entry)
        return {**chunk, "pack": index[entry.name], "offset": offset}

    ranks = tuple({**part, "chunks": [moved(chunk) for chunk in part["chunks"]]} for part in old.ranks)
    return dataclasses.replace(old, ranks=ranks, packs=tuple(entries), rewritten=old.rewritten + 1)
