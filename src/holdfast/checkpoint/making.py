"""A checkpoint of a state that no run has saved: what an import leaves behind for a run to begin from."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from holdfast.checkpoint import budget, collect, snapshot, state, survey
from holdfast.checkpoint.commit import Part, commit
from holdfast.checkpoint.folder import FOLDERS, Folder
from holdfast.checkpoint.room import limits
from holdfast.checkpoint.slots import TABLE_VERSION, Slot
from holdfast.checkpoint.survey import CheckpointInfo
from holdfast.errors import StoreRefused, UsageError
from holdfast.fsio import DISK


def make(root: Path, values: Mapping[str, Any], *, reason: str) -> CheckpointInfo:
    """A durable, verified checkpoint of `values` at step 0 in a folder that holds none yet.

    Raises UsageError when it holds one or other files, CannotStore, FolderInUse, OSError.
    """
    _refuse_strangers(root)
    with Folder(root).owned() as folder:
        if survey.take(root).newest_term:
            raise UsageError(f"{root} holds checkpoints already", hint="give a folder of its own")
        try:
            with _slot() as slot:
                made = commit(folder, [Part(_filled(slot, values, root.name, reason), slot.view)])
        except BaseException:  # also Ctrl-C: gigabytes that nobody names are not left behind
            collect.sweep(folder)
            raise
    return survey.info_of(made.manifest, root / "manifests" / made.file_name)


def _refuse_strangers(root: Path) -> None:
    """Nobody wants packs among his sources."""
    if root.exists() and not root.is_dir():
        raise UsageError(f"{root} is a file", hint="give a folder of its own")
    names = DISK.list(root)
    other = next((name for name in names if name not in FOLDERS), None)
    if other is not None and "format.json" not in names:
        raise UsageError(f"{root} holds other files ({other})", hint="give a folder of its own")


@contextmanager
def _slot() -> Iterator[Slot]:
    descriptor = os.memfd_create("holdfast-import")
    try:
        with closing(Slot(descriptor, _within_memory)) as slot:
            yield slot
    finally:
        os.close(descriptor)


@contextmanager
def _within_memory(descriptor: int, more_bytes: int) -> Iterator[None]:
    """Refuse what does not fit: a small file can describe large tensors. Raises StoreRefused."""
    refused = budget.refusal(more_bytes, limits(descriptor))
    if refused:
        raise StoreRefused(f"the state does not fit into memory: {refused}", hint="import it on a larger machine")
    yield


def _filled(slot: Slot, values: Mapping[str, Any], run: str, reason: str) -> dict[str, Any]:
    """Copy the tensors into the slot; returns its table."""
    encoded = state.encode(values)
    specs = [snapshot.Spec(name, "trainable", t.dtype, tuple(t.shape)) for name, t in encoded.tensors.items()]
    layout = snapshot.plan(specs)
    slot.reserve(layout.end)
    snapshot.copy_in(slot, layout, encoded.tensors, zero_gaps=True)
    head = {"save_id": "1-0", "rank": 0, "world": 1, "run": run, "term": 1, "sequence": 1, "step": 0, "epoch": 0}
    rest = {"time_s": time.time(), "reason": reason[:1000], "metrics": {}, "final": False}
    return {"version": TABLE_VERSION, **head, **rest, "chunks": layout.table, "state": encoded.tree}
