"""Find the checkpoint to continue from, and bring it back: verified byte for byte, or named as damaged and passed over.

Reading never trusts: the manifest is checked against its name, every pack against the manifest, every byte of every
pack against its footer, while it is read. What a slot receives is therefore what a rank once sealed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypeAlias

from holdfast.checkpoint import contents, folder, manifest, pack, survey
from holdfast.checkpoint.canonical import Damaged
from holdfast.checkpoint.growing import Growing, growing
from holdfast.checkpoint.known import KnownPacks
from holdfast.checkpoint.lineage import Position
from holdfast.checkpoint.manifest import Manifest, PackEntry
from holdfast.checkpoint.slots import HEADER_BYTES, Slot, align
from holdfast.checkpoint.survey import CheckpointInfo, Survey, Unreadable
from holdfast.errors import NoValidCheckpoint, StoreRefused
from holdfast.fsio import DISK, Disk, get

__all__ = ["CheckpointInfo", "Chosen", "Want", "checkpoints", "choose", "fill", "problems", "reading", "verify"]


# {"step": N}: that step's checkpoint, live before aside, then the newest. {"term": T, "sequence": S}: exactly that one.
Want: TypeAlias = Literal["newest", "nothing"] | dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """What to continue from; `info` None for a start from nothing. `fell_back`: a sentence for each one passed over.

    brought: it is the other copy of one that is damaged here.
    """

    info: CheckpointInfo | None
    fell_back: tuple[str, ...] = ()
    brought: bool = False


def checkpoints(root: Path, disk: Disk = DISK) -> list[CheckpointInfo]:
    """Every checkpoint with a whole manifest, newest last, live and aside; packs are not looked at."""
    return list(survey.take(root, disk).checkpoints)


def problems(root: Path, disk: Disk = DISK) -> list[str]:
    """What is wrong with the folder apart from packs: damaged or missing manifests, leases, format.json."""
    found = survey.take(root, disk)
    return [*folder.format_problems(root, disk), *found.problems, *(one.problem for one in found.unreadable)]


@contextmanager
def reading(root: Path, info: CheckpointInfo, disk: Disk = DISK) -> Iterator[Manifest]:
    """The whole manifest; while inside, nothing that it names is collected. Raises Damaged, OSError.

    A checkpoint that was repacked since it was listed is found under its new name.
    """
    for path in chain([info.path], survey.paths_at(root, info.position, disk)):
        try:
            lock = disk.lock(path, shared=True)
        except FileNotFoundError:
            continue
        if lock is not None:
            with closing(lock):
                yield manifest.parse(path.name, get(disk, path, limit_bytes=manifest.MAX_MANIFEST_BYTES))
            return
    raise Damaged(f"{info} was removed meanwhile")


def verify(root: Path, info: CheckpointInfo, disk: Disk = DISK) -> list[str]:
    """Read all of a checkpoint and say what is wrong with it, a sentence each; empty means intact."""
    try:
        with reading(root, info, disk) as found:
            contents.of_all(found)
            return [said for index in range(len(found.packs)) for said in _pack_problems(root, disk, found, index)]
    except (Damaged, OSError, OverflowError) as error:
        return [str(error)]


def _pack_problems(root: Path, disk: Disk, found: Manifest, index: int) -> list[str]:
    try:
        _check_pack(root, disk, found, index, _needed(found, index), pack.no_sink)
    except (Damaged, OSError) as error:
        return [str(error)]
    return []


def choose(
    root: Path,
    want: Want = "newest",
    *,
    attempt: Callable[[CheckpointInfo], list[str]] | None = None,
    another: Callable[[Position], CheckpointInfo | None] = lambda position: None,
    parsed: dict[str, CheckpointInfo] | None = None,
    disk: Disk = DISK,
) -> Chosen:
    """The checkpoint to continue from, with none of its bytes unread.

    attempt: reads a candidate and says what is wrong with it, empty for nothing; by default `verify`. another: brings
    another copy of a damaged one into the folder, tried before anything older; None when there is none. parsed: as
    in `survey.take`.
    Newest falls back along the live line. Raises NoValidCheckpoint when there are checkpoints and none is intact, or
    the one asked for is not.
    """
    attempt = attempt or (lambda info: verify(root, info, disk))
    found = survey.take(root, disk, parsed)
    said: list[str] = list(found.problems) if want == "newest" else []
    tried = 0
    for candidate in _candidates(found, want):
        tried += 1
        wrong = [candidate.problem] if isinstance(candidate, Unreadable) else attempt(candidate)
        if not wrong and isinstance(candidate, CheckpointInfo):
            return Chosen(info=candidate, fell_back=tuple(said))
        said.append(f"{_named(candidate)} was passed over: {'; '.join(wrong[:3])}")
        copy = another(candidate.position)
        if copy is not None and not attempt(copy):
            return Chosen(info=copy, fell_back=tuple(said), brought=True)
    if tried or isinstance(want, dict):
        run = next((info.run for info in found.checkpoints), root.parent.name)
        raise NoValidCheckpoint(run, tried, why=" · ".join(said[:3]) or f"none at {json.dumps(want)}")
    return Chosen(info=None, fell_back=tuple(said))


def _candidates(found: Survey, want: Want) -> Iterator[CheckpointInfo | Unreadable]:
    """What to try, in that order."""
    if want == "nothing":
        return
    if isinstance(want, dict):
        asked = [info for info in reversed(found.checkpoints) if is_asked(info, want)]
        yield from sorted(asked, key=lambda info: not info.live)
        return
    every: list[CheckpointInfo | Unreadable] = [*found.checkpoints, *found.doubles, *found.unreadable]
    by_position: dict[Position, list[CheckpointInfo | Unreadable]] = {}
    for one in every:
        by_position.setdefault(one.position, []).append(one)
    for position in reversed(found.line()):
        yield from by_position[position]


def is_asked(info: CheckpointInfo, want: dict[str, int]) -> bool:
    """Whether a `want` by step or by place means this one. Pure."""
    if "step" in want:
        return info.step == want["step"]
    return (info.term, info.sequence) == (want.get("term"), want.get("sequence"))


def _named(one: CheckpointInfo | Unreadable) -> str:
    if isinstance(one, CheckpointInfo):
        return str(one)
    return f"the checkpoint of term {one.position.term}, sequence {one.position.sequence}"


def fill(
    root: Path,
    info: CheckpointInfo,
    rank: int,
    slot: Slot,
    *,
    whole: bool,
    known: KnownPacks | None = None,
    disk: Disk = DISK,
) -> None:
    """Put rank `rank`'s part of a checkpoint into `slot`, chunks and table, verified. The states are the caller's.

    whole: check the chunks of all ranks on the way, not only those of this one. known: is told of each pack that was
    read to its last byte. Raises Damaged, OSError, and StoreRefused when the slot cannot grow.
    """
    with reading(root, info, disk) as found:
        for entry, layout in _fill(root, found, rank, slot, whole=whole, disk=disk):
            if known is not None:
                disk.sync_folder(pack.path(root, entry.name).parent)  # whoever wrote it may have died before that
                known.trust(entry, layout)


def _fill(
    root: Path, found: Manifest, rank: int, slot: Slot, *, whole: bool, disk: Disk
) -> list[tuple[PackEntry, pack.Layout]]:
    """As `fill`; returns the packs of which nothing was left unread."""
    read = []
    if rank >= len(found.ranks):
        raise Damaged(f"the checkpoint has {len(found.ranks)} ranks, there is none for rank {rank}")
    for one in range(len(found.ranks)) if whole else [rank]:
        contents.check_rank(found, one)
    part = found.ranks[rank]
    chunks, end = _places(part["chunks"])
    table = {**part["table"], "chunks": chunks}
    sinks = [_Sinks() for _ in found.packs]
    for stored, placed in zip(part["chunks"], chunks, strict=True):
        sinks[stored["pack"]].add(stored["offset"], placed["offset"], align(stored["bytes"]))
    with growing(slot, end) as memory:
        for index, into in enumerate(sinks):
            wanted = _needed(found, index) if whole else into.first.keys()
            if wanted:
                layout = _check_pack(root, disk, found, index, wanted, into.of(memory))
                read += [(found.packs[index], layout)] if len(wanted) == len(layout.records) else []
    for into in sinks:
        into.copy(slot)
    _write_table(slot, table, end)
    return read


def _write_table(slot: Slot, table: dict[str, Any], at: int) -> None:
    try:
        slot.write_table(table, at)
    except OSError as error:
        raise StoreRefused(f"there is no memory for a slot with a table at {at}: {error.strerror}") from error


class _Sinks:
    """Where in the slot the chunks of one pack go. Several may be the same record: it is read once and copied."""

    def __init__(self) -> None:
        self.first: dict[int, tuple[int, int]] = {}  # offset of the record -> offset in the slot, size in bytes
        self._again: list[tuple[int, int, int]] = []  # from, to, size

    def add(self, record: int, offset: int, size_bytes: int) -> None:
        if record in self.first:
            self._again.append((self.first[record][0], offset, size_bytes))
        else:
            self.first[record] = (offset, size_bytes)

    def of(self, memory: Growing) -> pack.SinkOf:
        return lambda record: memory.memory(*self.first[record]) if record in self.first else None

    def copy(self, slot: Slot) -> None:
        for source, target, size in self._again:
            slot.view[target : target + size] = slot.view[source : source + size]


def _places(stored: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], int]:
    """The chunks as a slot's table has them, one after the other from the first page on, and where the table goes."""
    placed, offset = [], HEADER_BYTES
    for chunk in stored:
        kept = {name: value for name, value in chunk.items() if name not in ("id", "pack")}
        placed.append({**kept, "offset": offset})
        offset += align(chunk["bytes"])
    return placed, offset


def _needed(found: Manifest, index: int) -> set[int]:
    """Offsets of the records of one pack that a checkpoint needs."""
    return {chunk["offset"] for chunk in found.chunks_by_pack[index]}


def _check_pack(
    root: Path, disk: Disk, found: Manifest, index: int, wanted: Collection[int], sinks: pack.SinkOf
) -> pack.Layout:
    """Read records of one pack, by offset, and hold the pack against the manifest. Raises Damaged, OSError.

    What other checkpoints have in that pack is not looked at: damage there is no damage here.
    """
    entry = found.packs[index]
    chunks = ((chunk["offset"], chunk["id"], chunk["bytes"]) for chunk in found.chunks_by_pack[index])
    with pack.opened(disk, root, entry.name, entry.size_bytes, cached=False) as file:
        layout = pack.read_layout(file, entry.name)
        records = pack.find(layout, entry.name, chunks)
        pack.check(file, entry.name, [record for record in records if record.offset in wanted], sinks)
        return layout
