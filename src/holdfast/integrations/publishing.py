"""Bind parts to a checkpoint: packs to where the manifest names them, then the manifest, then what it replaces goes.

The manifest's appearance is the commit. Until then readers of that name see the checkpoint before, or none.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from holdfast.checkpoint import collect, commit, lineage, load, manifest, pack, survey
from holdfast.checkpoint.folder import Folder, hint_at_latest, hinted
from holdfast.checkpoint.lineage import Position
from holdfast.checkpoint.manifest import Manifest, PackEntry
from holdfast.errors import HoldfastError, UsageError
from holdfast.fsio import DISK
from holdfast.integrations import catalog, parts, places
from holdfast.integrations.catalog import Entry
from holdfast.integrations.parts import Sealed

_STEP = re.compile(r"step[-_=]?(\d{1,15})", re.IGNORECASE)
_NO_STATE: dict[str, Any] = {"$": "dict", "items": []}


class Torn(HoldfastError):
    """The parts at hand are not one save; nothing was committed and the checkpoint before stays."""

    exit_code = 12


@dataclass(frozen=True, slots=True)
class Share:
    """What one rank contributes: its parts, and what its table says besides the usual (`name` and `kind` excepted)."""

    parts: Sequence[Sealed]
    table: dict[str, Any] = field(default_factory=dict)


def publish(root: Path, name: str, kind: str, shares: Sequence[Share], *, replace: bool = True) -> str:
    """Commit `shares`, ranks in order, as the checkpoint `name`. Durable when this returns the manifest's file name.

    replace: an older checkpoint of that name goes, once this one is durable; else FileExistsError. Raises Torn when a
    pack that a part counts on is gone, UsageError for the folder of a run, FolderInUse, Damaged, OSError.
    """
    with places.owned(root) as folder:
        if not replace and name in catalog.of(root).entries():
            raise FileExistsError(f"there is a checkpoint {name!r} in {root}")
        for share in shares:
            for part in share.parts:
                _bring(folder, part)
        made = _manifest(root, name, kind, shares)
        _check_packs(folder, made)
        commit.publish(folder, made)
        hint_at_latest(folder, made.file_name)
        for part in (part for share in shares for part in share.parts):
            parts.remove(part)
        _clear(folder, [])
    return made.file_name


def rename(root: Path, entry: Entry, name: str) -> None:
    """Give a checkpoint another name; what was called so goes. Raises as `publish`."""
    with places.owned(root) as folder:
        position, before = _next_position(root)
        with load.reading(root, entry.info) as found:
            ranks = [{**one, "table": {**one["table"], "name": name, **_place(position)}} for one in found.ranks]
            made = _at(position, before, found.packs, ranks)
        _check_packs(folder, made)
        commit.publish(folder, made)
        hint_at_latest(folder, made.file_name)
        _clear(folder, [entry])


def remove(root: Path, entries: Sequence[Entry]) -> None:
    """Take checkpoints away; one that somebody reads goes later. Raises FolderInUse, OSError."""
    with places.owned(root) as folder:
        _clear(folder, entries)


def _clear(folder: Folder, entries: Sequence[Entry]) -> None:
    """Remove `entries`, what newer ones of the same name have replaced, and whatever nobody needs any more."""
    every = catalog.of(folder.root).all()
    newest = {entry.name: entry for entry in sorted(every, key=lambda entry: entry.info.position)}
    doomed = [*entries, *(entry for entry in every if newest[entry.name] is not entry)]
    _hint_at_another(folder, [entry for entry in every if entry not in doomed])
    gone = [entry for entry in doomed if not _is_pinned(folder, entry) and _take_away(entry.info.path)]
    if gone:
        folder.disk.sync_folder(manifest.folder(folder.root))
    collect.sweep(folder)
    parts.sweep(folder.root)


def _hint_at_another(folder: Folder, stays: Sequence[Entry]) -> None:
    """What was removed on purpose must not look like a checkpoint that was lost."""
    named = hinted(folder.root, folder.disk)
    if named is None or named in {entry.info.path.name for entry in stays}:
        return
    if stays:
        hint_at_latest(folder, max(stays, key=lambda entry: entry.info.position).info.path.name)
    else:
        folder.disk.remove(folder.root / "latest.json")


def _is_pinned(folder: Folder, entry: Entry) -> bool:
    position = entry.info.position
    return (folder.root / "pins" / f"{position.term:06d}-{position.sequence:08d}.json").exists()


def _take_away(path: Path) -> bool:
    """Remove a manifest, unless somebody reads that checkpoint: then the next commit does."""
    try:
        lock = DISK.lock(path)
    except FileNotFoundError:
        return False
    if lock is None:
        return False
    with closing(lock):
        path.unlink()
    return True


def _bring(folder: Folder, part: Sealed) -> None:
    """Move a part's own packs to where readers look for them; their contents are durable and verified."""
    for entry in part.packs:
        source = pack.path(part.folder, entry.name)
        if source.exists():
            target = folder.pack_path(entry.name)
            folder.disk.rename(source, target, replace=True)
            folder.disk.sync_folder(target.parent)


def _check_packs(folder: Folder, made: Manifest) -> None:
    for entry in made.packs:
        path = pack.path(folder.root, entry.name)
        try:
            with closing(folder.disk.open(path)) as file:
                size = file.size()
        except FileNotFoundError:
            size = -1
        if size != entry.size_bytes:
            raise Torn(
                f"pack {entry.name[:12]} that this save counts on was removed meanwhile; nothing was committed",
                hint="save again",
            )


def _manifest(root: Path, name: str, kind: str, shares: Sequence[Share]) -> Manifest:
    position, found = _next_position(root)
    packs: dict[PackEntry, int] = {}
    ranks = []
    for rank, share in enumerate(shares):
        chunks = []
        for part in share.parts:
            numbers = [packs.setdefault(entry, len(packs)) for entry in part.packs]
            chunks += [{**chunk, "pack": numbers[chunk["pack"]]} for chunk in part.chunks]
        table = {**_head(root, name, kind, rank, len(shares)), **_place(position), **share.table}
        ranks.append({"table": table, "chunks": chunks})
    return _at(position, found, tuple(packs), tuple(ranks))


def _at(position: Position, found: survey.Survey, packs: Sequence[PackEntry], ranks: Any) -> Manifest:
    line = found.line()
    return Manifest(
        position=position,
        parent=lineage.parent(position, line),
        base=found.bases.get(position.term),
        packs=tuple(packs),
        ranks=tuple(ranks),
    )


def _next_position(root: Path) -> tuple[Position, survey.Survey]:
    found = survey.take(root)
    if found.lease is not None:
        raise UsageError(f"{root} is the checkpoint folder of a run", hint="name a folder of its own")
    term = max(found.newest_term, 1)
    known = [one.position for one in found.checkpoints] + [one.position for one in found.unreadable]
    sequence = max((position.sequence for position in known if position.term == term), default=-1) + 1
    return Position(term, sequence), found


def _place(position: Position) -> dict[str, Any]:
    return {**position.to_json(), "save_id": f"{position.term}-{position.sequence}", "time_s": time.time()}


def _head(root: Path, name: str, kind: str, rank: int, world: int) -> dict[str, Any]:
    said = _STEP.findall(name)
    return {
        "version": 1,
        "name": name,
        "kind": kind,
        "rank": rank,
        "world": world,
        "run": root.name,
        "step": int(said[-1]) if said else 0,
        "epoch": 0,
        "reason": "saved as " + name,
        "metrics": {},
        "final": False,
        "state": _NO_STATE,
    }
