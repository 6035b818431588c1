"""What lies in a checkpoint folder: every checkpoint, every lease, and a sentence for whatever cannot be read.

Reads only; the archiver may write meanwhile, so a file that vanishes between listing and reading is not there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from holdfast.checkpoint import folder, lease, lineage, manifest, pins, table
from holdfast.checkpoint.canonical import Damaged
from holdfast.checkpoint.folder import Folder
from holdfast.checkpoint.lease import Lease
from holdfast.checkpoint.lineage import Position
from holdfast.checkpoint.manifest import Manifest, PackEntry
from holdfast.fsio import DISK, Disk, get

Parsed = TypeVar("Parsed")

NAME_CHARACTERS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointInfo:
    """One checkpoint whose manifest is whole. `live`: on the line that a resume continues. Times in unix seconds."""

    term: int
    sequence: int
    step: int
    epoch: int
    time_s: float
    reason: str
    metrics: dict[str, float]
    world: int
    size_bytes: int  # of all its chunks, each once
    live: bool
    path: Path  # of the manifest
    run: str
    save_id: str
    final: bool
    parent: Position | None
    base: Position | None
    packs: tuple[PackEntry, ...]
    needs: Mapping[str, Mapping[int, int]] = field(repr=False)  # pack name → record offset → bytes of the chunk
    added_bytes: int = 0  # of its chunks, those that no older checkpoint needs too
    name: str = ""  # `checkpoint.name`, rendered
    pinned: bool = False
    rewritten: int = 0  # how often it was repacked, or replaced by another copy

    @property
    def position(self) -> Position:
        """Term and sequence."""
        return Position(self.term, self.sequence)

    def __str__(self) -> str:
        return f"the checkpoint of step {self.step} (term {self.term}, sequence {self.sequence})"


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A checkpoint that once was: its manifest is damaged or gone. `path` is None when it is gone."""

    position: Position
    problem: str
    path: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """All of a checkpoint folder but the packs."""

    checkpoints: tuple[CheckpointInfo, ...]  # oldest first, live and aside, one a position
    doubles: tuple[CheckpointInfo, ...]  # of some of them: the same by another name, see `repack`
    unreadable: tuple[Unreadable, ...]
    lease: Lease | None  # the newest one, if it can be read
    newest_term: int  # ever taken or committed in, 0 for none
    bases: dict[int, Position | None]
    problems: tuple[str, ...]  # with leases

    def line(self) -> list[Position]:
        """Positions of the current line, oldest first, readable or not."""
        known = [one.position for one in self.checkpoints] + [one.position for one in self.unreadable]
        return lineage.live(known, self.bases)


def of(into: Folder) -> Survey:
    """Like `take`, for who writes there: a manifest that was read before is not read again."""
    return take(into.root, into.disk, into.parsed)


def take(root: Path, disk: Disk = DISK, parsed: dict[str, CheckpointInfo] | None = None) -> Survey:
    """Look at the folder at `root`. Raises NewerFormat; OSError when a folder cannot be listed.

    parsed: what is known of manifests already, by file name; kept up to date.
    """
    leases: dict[int, Lease] = {}
    problems: list[str] = []
    names = [name for name in disk.list(lease.folder(root)) if lease.term_of(name) is not None]
    for name in names:
        found = _read(disk, lease.folder(root) / name, lease.MAX_LEASE_BYTES, lease.parse)
        if isinstance(found, Lease):
            leases[found.term] = found
        elif found is not None:
            problems.append(found)
    infos, doubles, unreadable = _checkpoints(root, disk, parsed if parsed is not None else {})
    bases = {info.term: info.base for info in infos} | {term: one.base for term, one in leases.items()}
    terms = [lease.term_of(name) or 0 for name in names] + [info.term for info in infos]
    newest_term = max(terms + [one.position.term for one in unreadable], default=0)
    unreadable += _missing(root, disk, infos, unreadable)
    survey = Survey(
        checkpoints=tuple(infos),
        doubles=tuple(doubles),
        unreadable=tuple(unreadable),
        lease=leases.get(newest_term),
        newest_term=newest_term,
        bases=bases,
        problems=tuple(problems),
    )
    placed = _placed(infos, set(survey.line()), pins.pinned(root, disk))
    return replace(survey, checkpoints=tuple(placed))


def _placed(infos: list[CheckpointInfo], line: set[Position], pinned: set[Position]) -> Iterator[CheckpointInfo]:
    """What its manifest alone does not tell of each: whether it is live, pinned, and what it added."""
    seen: set[tuple[str, int]] = set()
    for info in infos:
        added = 0
        for name, records in info.needs.items():
            for offset, size in records.items():
                if (name, offset) not in seen:
                    seen.add((name, offset))
                    added += size
        yield replace(info, live=info.position in line, pinned=info.position in pinned, added_bytes=added)


def _checkpoints(
    root: Path, disk: Disk, parsed: dict[str, CheckpointInfo]
) -> tuple[list[CheckpointInfo], list[CheckpointInfo], list[Unreadable]]:
    by_position: dict[Position, list[CheckpointInfo]] = {}
    unreadable: list[Unreadable] = []
    names = disk.list(manifest.folder(root))
    for gone in parsed.keys() - set(names):
        del parsed[gone]
    for name in names:
        position, path = manifest.position_of(name), manifest.folder(root) / name
        if position is None:
            continue
        if name not in parsed:
            found = _read(disk, path, manifest.MAX_MANIFEST_BYTES, manifest.parse)
            if isinstance(found, Manifest):
                parsed[name] = info_of(found, path)
            elif found is not None:
                unreadable.append(Unreadable(position, found, path))
        if name in parsed:
            by_position.setdefault(position, []).append(parsed[name])
    infos = [max(alike, key=_prefer) for _, alike in sorted(by_position.items())]
    doubles = [one for alike in by_position.values() for one in sorted(alike, key=_prefer)[:-1]]
    return infos, doubles, unreadable


def _prefer(info: CheckpointInfo) -> tuple[int, str]:
    """Of two manifests of one checkpoint the one that was rewritten more often comes last."""
    return info.rewritten, info.path.name


def _missing(root: Path, disk: Disk, infos: list[CheckpointInfo], unreadable: list[Unreadable]) -> list[Unreadable]:
    """The newest commit, if somebody removed its manifest."""
    name = folder.hinted(root, disk)
    position = manifest.position_of(name) if name is not None else None
    known = {info.position for info in infos} | {one.position for one in unreadable}
    if position is None or position in known:
        return []
    return [Unreadable(position, f"manifest {name} is missing", None)]


def _read(disk: Disk, path: Path, limit_bytes: int, parse: Callable[[str, bytes], Parsed]) -> Parsed | str | None:
    """The parsed file; or what is wrong with it; or None when it has vanished meanwhile."""
    try:
        return parse(path.name, get(disk, path, limit_bytes=limit_bytes))
    except FileNotFoundError:
        return None
    except (Damaged, OSError, OverflowError) as error:
        return str(error)


def info_of(found: Manifest, path: Path) -> CheckpointInfo:
    """The checkpoint of a manifest at `path`; whether it is live or pinned, and what it added, is for `take` to say."""
    head, needs = found.head, _needs(found)
    name = head.get("name")
    return CheckpointInfo(
        term=found.position.term,
        sequence=found.position.sequence,
        step=head["step"],
        epoch=head["epoch"],
        time_s=float(head["time_s"]),
        reason=head["reason"],
        metrics=table.numbers(head["metrics"]),
        world=len(found.ranks),
        size_bytes=sum(sum(records.values()) for records in needs.values()),
        live=False,
        path=path,
        run=head["run"],
        save_id=head["save_id"],
        final=head["final"],
        parent=found.parent,
        base=found.base,
        packs=found.packs,
        needs=needs,
        rewritten=found.rewritten,
        name=name[:NAME_CHARACTERS] if isinstance(name, str) else "",
    )


def _needs(found: Manifest) -> dict[str, dict[int, int]]:
    return {
        entry.name: {chunk["offset"]: chunk["bytes"] for chunk in chunks}
        for entry, chunks in zip(found.packs, found.chunks_by_pack, strict=True)
    }


def paths_at(root: Path, position: Position, disk: Disk = DISK) -> Iterator[Path]:
    """The manifests at a position. There are two while a checkpoint is repacked, and either will do."""
    for name in disk.list(manifest.folder(root)):
        if manifest.position_of(name) == position:
            yield manifest.folder(root) / name


def packs(survey: Survey) -> Iterator[PackEntry]:
    """Every pack that some readable manifest names, live or aside; one that several name comes several times."""
    for info in (*survey.checkpoints, *survey.doubles):
        yield from info.packs
