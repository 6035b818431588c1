"""Bring a checkpoint from a mirror into a checkpoint folder: packs, leases, manifest, in that order and verified.

What was brought is what lies on the mirror, byte for byte; the folder's own reader verifies it once more when it loads.
A pull that was killed goes on where it stopped: packs that are whole here are not fetched again.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from holdfast.checkpoint import lease, load, manifest, survey
from holdfast.checkpoint.canonical import Damaged
from holdfast.checkpoint.commit import publish
from holdfast.checkpoint.folder import Folder
from holdfast.checkpoint.known import read_back
from holdfast.checkpoint.lineage import Position
from holdfast.checkpoint.load import Chosen, Want
from holdfast.checkpoint.manifest import Manifest, PackEntry
from holdfast.checkpoint.survey import CheckpointInfo
from holdfast.errors import NoValidCheckpoint, StoreRefused, UsageError
from holdfast.fsio import get, put
from holdfast.mirror.catalog import find, read_whole
from holdfast.mirror.view import ROOT, View

DOWNLOADS = 4  # packs at once
_SPARE_RATIO = 1.02  # room for names and manifests

Progress = Callable[[int, int], None]  # bytes here, bytes in all


def choose(
    view: View, into: Folder, want: Want, *, progress: Progress = lambda done, total: None,
    fits: Callable[[CheckpointInfo], object] = lambda info: None,
) -> Chosen:  # fmt: skip
    """Bring what `want` asks for, falling back along the line as a load does. `into` is open for writing.

    fits: raises for a checkpoint that nobody here could use. Raises NoValidCheckpoint, StoreRefused, OSError.
    """

    def attempt(info: CheckpointInfo) -> list[str]:
        fits(info)
        try:
            pull(view, info, into, progress)
        except (Damaged, FileNotFoundError) as error:
            return [str(error)]
        return []

    return load.choose(ROOT, want, attempt=attempt, disk=view)


def must_hold(view: View, want: Want) -> None:
    """Raise UsageError when a checkpoint that a person named is not on the mirror, whole or damaged."""
    found = survey.take(ROOT, view)
    if not isinstance(want, dict) or found.unreadable or any(load.is_asked(info, want) for info in found.checkpoints):
        return
    wanted = f"step {want['step']}" if "step" in want else f"term {want['term']}, sequence {want['sequence']}"
    steps = ", ".join(map(str, sorted({info.step for info in found.checkpoints})[-10:]))
    hint = f"it has steps {steps}" if steps else "it has none at all"
    raise UsageError(f"{view.store.url} has no checkpoint of {wanted}", hint=hint)


def nothing_there(url: str) -> NoValidCheckpoint:
    """For a mirror without any checkpoint."""
    return NoValidCheckpoint(url, said=f"{url} holds no checkpoint", hint="is that the whole URL, as in the run file?")


def pull(view: View, info: CheckpointInfo, into: Folder, progress: Progress) -> None:
    """Bring one checkpoint. Raises Damaged, FileNotFoundError for what is not on the mirror, StoreRefused, OSError."""
    found = manifest.parse(info.path.name, get(view, info.path, limit_bytes=manifest.MAX_MANIFEST_BYTES))
    _bring_packs(view, found, into, progress)
    bring_leases(view, into)
    _publish(into, found)


def replace(view: View, position: Position, into: Folder) -> CheckpointInfo | None:
    """Bring the checkpoint at `position` in place of the folder's own, which is damaged; None when there is none.

    It is on a line that the folder knows, so no lease comes with it, and the right to write stays where it is.
    Raises Damaged, FileNotFoundError, StoreRefused, OSError.
    """
    found = find(view, position)
    if found is None:
        return None
    _bring_packs(view, found, into, lambda done, total: None)
    made = _publish(into, found)
    return survey.info_of(made, manifest.folder(into.root) / made.file_name)


def _publish(into: Folder, found: Manifest) -> Manifest:
    """Commit what was brought, so that it is preferred to what the folder has at its position."""
    seen = survey.of(into)
    others = [
        one
        for one in (*seen.checkpoints, *seen.doubles)
        if one.position == found.position and one.path.name != found.file_name
    ]
    if others:
        found = dataclasses.replace(found, rewritten=1 + max(one.rewritten for one in others))
    publish(into, found)
    return found


def _bring_packs(view: View, found: Manifest, into: Folder, progress: Progress) -> None:
    missing = [entry for entry in found.packs if not _is_here(into, entry)]
    _check_room(into.root, sum(entry.size_bytes for entry in missing) + len(found.raw))
    total = sum(entry.size_bytes for entry in found.packs)
    done = total - sum(entry.size_bytes for entry in missing)
    with ThreadPoolExecutor(DOWNLOADS, thread_name_prefix="download") as pool:
        waiting = [pool.submit(_fetch, view, entry, into) for entry in missing]
        try:
            for entry, fetched in zip(missing, waiting, strict=True):
                progress(done, total)
                fetched.result()
                done += entry.size_bytes
        finally:
            for fetched in waiting:
                fetched.cancel()
    progress(total, total)


def bring_leases(view: View, into: Folder) -> None:
    """Know every lease of the mirror: from then on the folder continues that line. Raises StoreRefused, OSError."""
    for name in view.list(lease.folder(ROOT)):
        if lease.term_of(name) is not None:
            raw = get(view, lease.folder(ROOT) / name, limit_bytes=lease.MAX_LEASE_BYTES)
            with suppress(Damaged, FileExistsError):
                lease.parse(name, raw)
                into.put(f"leases/{name}", raw)


def _is_here(into: Folder, entry: PackEntry) -> bool:
    try:
        read_back(into.root, into.disk, entry)
    except (Damaged, OSError):
        return False
    return True


def _fetch(view: View, entry: PackEntry, into: Folder) -> None:
    data = read_whole(view, entry)
    target = into.pack_path(entry.name)
    temporary = into.temporary / target.name
    into.disk.remove(temporary)
    put(into.disk, temporary, data)
    into.disk.rename(temporary, target, replace=True)  # a damaged one of that name, if any
    into.disk.sync_folder(target.parent)


def _check_room(root: Path, size_bytes: int) -> None:
    found = os.statvfs(root)
    free = found.f_bavail * found.f_frsize
    if size_bytes * _SPARE_RATIO > free:
        raise StoreRefused(
            f"the checkpoint needs {size_bytes} bytes, {root} has {free} free", hint="free space, or set checkpoint.dir"
        )


def checkpoints(view: View) -> list[CheckpointInfo]:
    """Every checkpoint on the mirror whose manifest is whole, newest last, live and aside."""
    return list(survey.take(ROOT, view).checkpoints)
