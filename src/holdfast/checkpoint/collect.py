"""Remove what is no longer wanted, in an order that a crash cannot turn against us.

Manifests go first and durably; only then packs that no remaining manifest names. Runs after a commit is acknowledged,
never before one.
"""

from __future__ import annotations

from contextlib import closing

from holdfast.checkpoint import canonical, lease, manifest, pack, survey
from holdfast.checkpoint.folder import Folder, hint_at_latest
from holdfast.checkpoint.retention import LEAST, Candidate, choose
from holdfast.checkpoint.survey import CheckpointInfo, Survey, Unreadable
from holdfast.plan import Keep


def retain(into: Folder, keep: Keep) -> list[CheckpointInfo]:
    """Apply `keep` to the live checkpoints, then `sweep`. Returns what was removed. Raises OSError."""
    found = survey.of(into)
    live = [info for info in found.checkpoints if info.live]
    if live:
        hint_at_latest(into, live[-1].path.name)
    judged = [Candidate(position=info.position, metrics=info.metrics, whole=is_complete(into, info)) for info in live]
    kept = choose(judged, keep)
    doomed = [info for info in live if info.position not in kept]
    lost = _beyond_use(found, judged)
    for path in [info.path for info in doomed] + [one.path for one in lost if one.path is not None]:
        into.disk.remove(path)
    if doomed or lost:
        into.disk.sync_folder(manifest.folder(into.root))
    sweep(into)
    return doomed


def _beyond_use(found: Survey, judged: list[Candidate]) -> list[Unreadable]:
    """Damaged manifests with as many newer whole checkpoints as there must be: their packs only take up room."""
    whole = [one.position for one in judged if one.whole]
    if len(whole) < LEAST:
        return []
    return [one for one in found.unreadable if one.position < whole[-LEAST]]


def is_complete(into: Folder, info: CheckpointInfo) -> bool:
    """Whether every pack of the checkpoint is there at its full length; contents are not read."""
    for entry in info.packs:
        path = pack.path(into.root, entry.name)
        if path.name not in into.disk.list(path.parent):
            return False
        with closing(into.disk.open(path)) as file:
            if file.size() != entry.size_bytes:
                return False
    return True


def sweep(into: Folder) -> None:
    """Remove packs that no checkpoint needs, leases older than every checkpoint, and `tmp/`. Raises OSError.

    While a manifest cannot be read nobody knows what it needs, so packs stay until `retain` has given it up; they stay
    too while a guest writes, who may be about to name them.
    """
    there = [
        into.root / "packs" / prefix / name
        for prefix in into.disk.list(into.root / "packs")
        for name in into.disk.list(into.root / "packs" / prefix)
        if canonical.is_hash(name.removesuffix(".hfp"))
    ]
    alone = into.clear_temporary()  # after that list: a guest that wrote some of it is still there, or has named them
    found = survey.of(into)
    _sweep_leases(into, found)
    if not alone or any(one.path is not None for one in found.unreadable):
        return
    needed = {entry.name for entry in survey.packs(found)}
    for path in there:
        if path.stem not in needed:
            into.disk.remove(path)


def _sweep_leases(into: Folder, found: Survey) -> None:
    oldest = min((info.term for info in found.checkpoints), default=0)
    within = lease.folder(into.root)
    for name in into.disk.list(within):
        term = lease.term_of(name)
        if term is not None and term < min(oldest, found.newest_term):
            into.disk.remove(within / name)
