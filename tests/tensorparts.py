"""States of tensors, as ranks would seal them: the checkpoints that tools read."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from holdfast.checkpoint import snapshot, state
from holdfast.checkpoint.commit import Part, commit
from holdfast.checkpoint.folder import Folder
from holdfast.checkpoint.load import checkpoints
from holdfast.checkpoint.slots import Slot
from holdfast.checkpoint.survey import CheckpointInfo
from tests.slotparts import table_of


def part_of(values: Mapping[str, Any], *, kinds: Mapping[str, str] | None = None, **fields: Any) -> Part:
    """What one rank seals of `values`; `kinds` by the beginning of a tensor's name, else trainable."""
    encoded = state.encode(values)
    specs = [
        snapshot.Spec(name, _kind(name, kinds or {}), tensor.dtype, tuple(tensor.shape))
        for name, tensor in encoded.tensors.items()
    ]
    layout, slot = snapshot.plan(specs), Slot(os.memfd_create("part"))
    slot.reserve(layout.end)
    snapshot.copy_in(slot, layout, encoded.tensors, zero_gaps=True)
    os.close(slot.descriptor)
    head, _ = table_of(**fields)
    return Part({**head, "chunks": layout.table, "state": encoded.tree}, slot.view)


def _kind(name: str, kinds: Mapping[str, str]) -> str:
    return next((kind for begin, kind in kinds.items() if name.startswith(begin)), "trainable")


def save(root: Path, *ranks: Mapping[str, Any], **fields: Any) -> CheckpointInfo:
    """A checkpoint of one state a rank, the newest of the folder."""
    return save_parts(root, [part_of(v, rank=r, world=len(ranks), **fields) for r, v in enumerate(ranks)])


def save_parts(root: Path, parts: Sequence[Part]) -> CheckpointInfo:
    """The same from parts made by hand."""
    folder = Folder(root)
    folder.open()
    commit(folder, parts)
    return checkpoints(root)[-1]
