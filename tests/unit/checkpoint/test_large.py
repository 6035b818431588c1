"""Many tensors, and big ones: everything stays within its limits, and linear."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import pytest
import torch

from holdfast.checkpoint import load
from holdfast.checkpoint.commit import Committed, Part, commit
from holdfast.checkpoint.folder import Folder
from holdfast.checkpoint.manifest import MAX_MANIFEST_BYTES
from holdfast.checkpoint.slots import align
from holdfast.checkpoint.snapshot import Layout, Spec, plan
from tests.slotparts import new_slot, table_of

PIECE_BYTES = 1 << 20


def name(number: int) -> str:
    """As long as names of real models are."""
    return f"model/transformer.layers.{number}.attention.self.query.lora_A.weight"


def save(root: Path, layout: Layout, state: dict[str, Any]) -> tuple[Committed, Part]:
    """Commit zeros laid out like this."""
    folder = Folder(root)
    folder.open()
    table = {**table_of(sizes=())[0], "chunks": layout.table, "state": state}
    part = Part(table, memoryview(mmap.mmap(-1, layout.end)))
    for number, chunk in enumerate(layout.chunks):
        part.slot[chunk.offset : chunk.offset + 8] = number.to_bytes(8, "little")
    return commit(folder, [part]), part


def assert_comes_back(root: Path, part: Part) -> None:
    (info,) = load.checkpoints(root)
    slot = new_slot()
    load.fill(root, info, 0, slot, whole=True)
    for there, here in zip(slot.read_table()["chunks"], part.table["chunks"], strict=True):
        assert there["bytes"] == here["bytes"]
        for at in range(0, here["bytes"], PIECE_BYTES):  # in memory there is no room for another copy of it
            end = min(at + PIECE_BYTES, here["bytes"])
            found = bytes(slot.view[there["offset"] + at : there["offset"] + end])
            is_same = found == part.slot[here["offset"] + at : here["offset"] + end]
            assert is_same, (here["offset"], at)


@pytest.mark.parametrize("count", [5_000, pytest.param(100_000, marks=pytest.mark.soak)])
def test_a_hundred_thousand_tensors_fit_into_a_manifest(tmp_path: Path, count: int) -> None:
    layout = plan([Spec(name(n), "trainable", torch.float32, (8, 16)) for n in range(count)])
    tree = {name(n): {"t": "tensor", "name": name(n)} for n in range(count)}

    made, part = save(tmp_path, layout, {"model": tree})

    assert len(made.manifest.raw) / count * 100_000 < 0.6 * MAX_MANIFEST_BYTES
    assert_comes_back(tmp_path, part)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("gigabytes", [0.125, pytest.param(8, marks=pytest.mark.soak)])
def test_one_big_tensor_is_spread_over_packs(tmp_path: Path, gigabytes: float) -> None:
    columns = 4096
    layout = plan([Spec("w", "trainable", torch.float32, (int(gigabytes * (1 << 30)) // columns // 4, columns))])

    made, part = save(tmp_path, layout, {})

    assert made.written_bytes >= sum(align(chunk["bytes"]) for chunk in part.table["chunks"])
    assert len(made.manifest.packs) >= gigabytes * 16
    assert_comes_back(tmp_path, part)
