"""Remove what is no longer wanted, in an order that a crash cannot turn against us.

Manifests go first and durably; only then packs that no remaining manifest names. Runs after a commit is acknowledged,
never before one. A manifest that somebody reads from is left for the next time.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from contextlib import closing
from pathlib import Path

from holdfast.checkpoint import canonical, lease, manifest, pack, pins, retention, survey
from holdfast.checkpoint.folder import Folder, hint_at_latest
from holdfast.checkpoint.lineage import Position
from holdfast.checkpoint.retention import LEAST, Candidate
from holdfast.checkpoint.survey import CheckpointInfo, Survey, Unreadable
from holdfast.errors import UsageError
from holdfast.plan import Keep

_PREFIX = re.compile(r"[0-9a-f]{2}\Z", re.ASCII)  # of a folder of packs


def retain(into: Folder, keep: Keep, *, now_s: float = 0.0) -> list[CheckpointInfo]:
    """Apply `keep` at the unix time `now_s`, then `sweep`. Returns what was removed. Raises OSError."""
    found = survey.of(into)
    judged = candidates(into, found)
    kept = retention.choose(judged, keep, now_s=now_s)
    doomed = [info for info in found.checkpoints if info.position not in kept]
    return _remove(into, found, doomed, _beyond_use(found, judged))


def prune(into: Folder, keep: Keep, *, than_s: float, dry_run: bool = False) -> list[CheckpointInfo]:
    """Remove what is older than the unix time `than_s`, live or aside, but what is safe, pinned or best.

    Returns what was removed, or with `dry_run` what would be. Raises OSError.
    """
    found = survey.of(into)
    old = retention.older(candidates(into, found), keep, than_s=than_s)
    doomed = [info for info in found.checkpoints if info.position in old]
    return doomed if dry_run else _remove(into, found, doomed)


def remove(into: Folder, position: Position) -> CheckpointInfo:
    """Remove one checkpoint. Raises OSError; UsageError when it is pinned, `safe`, in use, or not there."""
    found = survey.of(into)
    info = _at(found, position)
    if info.pinned:
        raise UsageError(f"{info} is pinned", hint="holdfast ckpt unpin first")
    if position in retention.safe(candidates(into, found)):
        raise UsageError(
            f"a resume may need {info}: the newest {LEAST} stay, and the newest {LEAST} that are verified",
            hint="holdfast rm removes the whole run",
        )
    if not _remove(into, found, [info]):
        raise UsageError(f"{info} is being read", hint="try again when that is done")
    return info


def pin(into: Folder, position: Position, reason: str, now_s: float) -> CheckpointInfo:
    """Keep a checkpoint until `pins.unpin`. Raises OSError; UsageError when there is none at `position`."""
    info = _at(survey.of(into), position)
    pins.pin(into, position, reason, now_s)
    return info


def _at(found: Survey, position: Position) -> CheckpointInfo:
    for info in found.checkpoints:
        if info.position == position:
            return info
    raise UsageError(f"there is no checkpoint of term {position.term}, sequence {position.sequence}")


def drop_doubles(into: Folder) -> None:
    """Remove what `repack` has replaced, then `sweep`. Raises OSError."""
    _remove(into, survey.of(into), [])


def candidates(into: Folder, found: Survey) -> list[Candidate]:
    """The checkpoints as retention judges them. Of two manifests of one, while it is repacked, either will do."""
    copies: dict[Position, list[CheckpointInfo]] = {}
    for one in (*found.checkpoints, *found.doubles):
        copies.setdefault(one.position, []).append(one)
    return [_candidate(into, info, copies[info.position]) for info in found.checkpoints]


def _candidate(into: Folder, info: CheckpointInfo, copies: Iterable[CheckpointInfo]) -> Candidate:
    whole = [one for one in copies if is_complete(into, one)]
    return Candidate(
        position=info.position,
        step=info.step,
        epoch=info.epoch,
        time_s=info.time_s,
        metrics=info.metrics,
        whole=bool(whole),
        verified=any(all(into.known.verified_s(entry.name) is not None for entry in one.packs) for one in whole),
        live=info.live,
        pinned=info.pinned,
        needs=info.needs,
    )


def is_complete(into: Folder, info: CheckpointInfo) -> bool:
    """Whether every pack of the checkpoint is there at its full length and none was found damaged; nothing is read."""
    for entry in info.packs:
        path = pack.path(into.root, entry.name)
        if entry.name in into.known.damaged:
            return False
        try:
            with closing(into.disk.open(path)) as file:
                if file.size() != entry.size_bytes:
                    return False
        except FileNotFoundError:
            return False
    return True


def _beyond_use(found: Survey, judged: list[Candidate]) -> list[Unreadable]:
    """Damaged manifests with as many newer whole checkpoints as there must be: their packs only take up room."""
    whole = [one.position for one in judged if one.whole and one.live]
    if len(whole) < LEAST:
        return []
    return [one for one in found.unreadable if one.position < whole[-LEAST]]


def _remove(
    into: Folder, found: Survey, doomed: Iterable[CheckpointInfo], lost: Iterable[Unreadable] = ()
) -> list[CheckpointInfo]:
    """Take away manifests, durably, then sweep. Returns those of `doomed` that nobody was reading from."""
    gone = {info.position: info for info in doomed}
    stays = {info.position: info for info in found.checkpoints if info.position not in gone}
    live = [info for info in stays.values() if info.live]
    if live:
        hint_at_latest(into, live[-1].path.name)
    held = [info.position for info in gone.values() if not _remove_manifest(into, info.path)]
    for info in found.doubles:
        if info.position in gone or is_complete(into, stays[info.position]):
            _remove_manifest(into, info.path)
    for one in lost:
        if one.path is not None:
            into.disk.remove(one.path)
    into.disk.sync_folder(manifest.folder(into.root))
    sweep(into)
    return [info for position, info in gone.items() if position not in held]


def _remove_manifest(into: Folder, path: Path) -> bool:
    """False when somebody reads that checkpoint now."""
    try:
        lock = into.disk.lock(path)
    except FileNotFoundError:
        return True
    if lock is None:
        return False
    with closing(lock):
        into.disk.remove(path)
    return True


def sweep(into: Folder) -> None:
    """Remove packs that no checkpoint needs, leases older than every checkpoint, and `tmp/`. Raises OSError.

    While a manifest cannot be read nobody knows what it needs, so packs stay until `retain` has given it up; they stay
    too while a guest writes, who may be about to name them.
    """
    there = _packs(into)
    alone = into.clear_temporary()  # after that list: a guest that wrote some of it is still there, or has named them
    found = survey.of(into)
    _sweep_leases(into, found)
    if alone and not any(one.path is not None for one in found.unreadable):
        _sweep_packs(into, there, {entry.name for entry in survey.packs(found)})


def _packs(into: Folder) -> list[Path]:
    within = into.root / "packs"
    prefixes = [name for name in into.disk.list(within) if _PREFIX.match(name)]
    paths = (within / prefix / name for prefix in prefixes for name in into.disk.list(within / prefix))
    return [path for path in paths if canonical.is_hash(path.name.removesuffix(".hfp"))]


def _sweep_packs(into: Folder, there: Iterable[Path], needed: Collection[str]) -> None:
    for path in there:
        if path.stem not in needed:
            into.known.forget(path.stem)
            into.disk.remove(path)


def _sweep_leases(into: Folder, found: Survey) -> None:
    oldest = min((info.term for info in found.checkpoints), default=0)
    within = lease.folder(into.root)
    for name in into.disk.list(within):
        term = lease.term_of(name)
        if term is not None and term < oldest:
            into.disk.remove(within / name)
