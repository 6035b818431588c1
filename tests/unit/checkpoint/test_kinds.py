"""Every kind of tensor torch can make, through a slot and a checkpoint on disk, and back bit by bit.

The dtypes are those this torch has: one that a newer torch adds is tried as well, and fails here if it cannot be kept.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from holdfast.checkpoint import load
from holdfast.checkpoint.commit import Part, commit
from holdfast.checkpoint.folder import Folder
from holdfast.checkpoint.slots import TABLE_VERSION, Slot, State
from holdfast.checkpoint.snapshot import SMALL_BYTES, Owned, Spec, copy_in, copy_out, plan
from holdfast.checkpoint.state import UnreadableState, decode, encode

DTYPES = sorted({value for value in vars(torch).values() if isinstance(value, torch.dtype)}, key=str)
QUANTISED = [dtype for dtype in DTYPES if "qint" in str(dtype) or "quint" in str(dtype)]
DENSE = [dtype for dtype in DTYPES if dtype not in QUANTISED]
HEAD = {
    "version": TABLE_VERSION,
    "save_id": "1-1",
    "rank": 0,
    "world": 1,
    "run": "kinds",
    "term": 1,
    "sequence": 1,
    "step": 1,
    "epoch": 0,
    "time_s": 1.0,
    "reason": "test",
    "metrics": {},
    "final": False,
}


@pytest.fixture
def through(tmp_path: Path) -> Callable[[Any], Any]:
    """Save a value in a real checkpoint folder, load it into another slot, and decode it."""

    def travel(value: Any) -> Any:
        source, target = (Slot(os.memfd_create(name)) for name in ("source", "target"))
        try:
            encoded = encode({"x": value})
            layout = plan([Spec(name, "other", t.dtype, t.shape) for name, t in encoded.tensors.items()])
            source.reserve(layout.end)
            copy_in(source, layout, encoded.tensors, zero_gaps=True)
            table = {**HEAD, "chunks": layout.table, "state": encoded.tree}
            source.write_table(table, layout.end)
            folder = Folder(tmp_path / "checkpoints")
            folder.open()
            commit(folder, [Part(source.read_table(), source.view)])
            found = load.checkpoints(tmp_path / "checkpoints")[-1]
            load.fill(tmp_path / "checkpoints", found, 0, target, whole=True)
            target.set(state=State.RESTORED)
            stored = copy_out(target)
            return decode(stored.table["state"], Owned(stored.tensors))["x"]
        finally:
            for slot in (source, target):
                slot.close()
                os.close(slot.descriptor)

    return travel


def bits(tensor: torch.Tensor) -> bytes:
    """The elements in C order, whatever the dtype."""
    size = tensor.dtype.itemsize
    same = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}[size]
    return tensor.detach().view(same).contiguous().numpy().tobytes()


def noise(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """Random bits: signalling NaNs and unused patterns among them; for bool only what a bool can be."""
    raw = torch.randint(0, 2 if dtype == torch.bool else 256, (math.prod(shape) * dtype.itemsize,), dtype=torch.uint8)
    return raw.view(dtype).view(shape)


@pytest.mark.parametrize("dtype", DENSE, ids=str)
def test_every_dense_dtype_keeps_every_bit(through: Callable[[Any], Any], dtype: torch.dtype) -> None:
    rows = SMALL_BYTES // 999 // dtype.itemsize + 3
    given = {
        "flat": noise(dtype, 7),
        "scalar": noise(dtype, 1).view(()),
        "empty": noise(dtype, 0),
        "no-rows": noise(dtype, 3, 0),
        "cut": noise(dtype, rows * 9, 999),  # several chunks that are no whole pages
        "turned": noise(dtype, 5, 3).t(),
        "every-other": noise(dtype, 8, 3)[::2],
        "turned-cut": noise(dtype, 999, rows * 9).t(),
        "expanded": noise(dtype, 1, 3).expand(4, 3),
        "channels-last": noise(dtype, 2, 4, 5, 3).permute(0, 3, 1, 2),
    }

    back = through(given)

    for name, tensor in given.items():
        assert back[name].dtype == dtype, name
        assert back[name].shape == tensor.shape, name
        assert bits(back[name]) == bits(tensor), name
    for name in ("turned", "turned-cut", "expanded", "channels-last"):
        assert back[name].stride() == given[name].stride(), name


@pytest.mark.filterwarnings("ignore:.*deprecated")
@pytest.mark.parametrize("dtype", [torch.quint8, torch.qint8, torch.qint32], ids=str)
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_quantised_tensors_keep_integers_scales_and_axis(
    through: Callable[[Any], Any], dtype: torch.dtype, axis: int | None
) -> None:
    values = torch.randn(4, 4, 2, 3)
    if axis is None:
        given = torch.quantize_per_tensor(values, 0.07, 3, dtype).contiguous(memory_format=torch.channels_last)
    else:
        given = torch.quantize_per_channel(values, torch.rand(4) + 0.1, torch.arange(4), axis, dtype)

    back = through(given)

    assert (back.dtype, back.qscheme(), back.stride()) == (given.dtype, given.qscheme(), given.stride())
    assert torch.equal(back.int_repr(), given.int_repr())
    assert torch.equal(back.dequantize(), given.dequantize())


@pytest.mark.filterwarnings("ignore:.*deprecated")
@pytest.mark.parametrize("dtype", [torch.quint8, torch.quint4x2, torch.quint2x4], ids=str)
def test_quantised_rows_of_embeddings_come_back(through: Callable[[Any], Any], dtype: torch.dtype) -> None:
    given = torch.quantize_per_channel(torch.randn(3, 8), torch.rand(3) + 0.1, torch.rand(3), 0, dtype)

    back = through(given)

    assert back.qscheme() == torch.per_channel_affine_float_qparams
    assert torch.equal(back.dequantize(), given.dequantize())


def test_the_quantised_dtypes_are_the_ones_tried_here() -> None:
    assert set(QUANTISED) == {torch.quint8, torch.qint8, torch.qint32, torch.quint4x2, torch.quint2x4}


@pytest.mark.filterwarnings("ignore:.*beta state")
@pytest.mark.parametrize("layout", [torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc], ids=str)
@pytest.mark.parametrize("empty", [False, True])
def test_compressed_sparse_tensors(through: Callable[[Any], Any], layout: torch.layout, empty: bool) -> None:
    dense = torch.zeros(4, 6) if empty else torch.randn(4, 6).relu()
    blocks = (2, 3) if layout in (torch.sparse_bsr, torch.sparse_bsc) else None
    given = dense.to_sparse(layout=layout, blocksize=blocks)

    back = through(given)

    assert back.layout == layout
    assert back.values().shape == given.values().shape
    assert torch.equal(back.to_dense(), dense)


def test_coordinate_tensors_keep_order_and_repetition(through: Callable[[Any], Any]) -> None:
    twice = torch.sparse_coo_tensor([[2, 0, 2]], torch.randn(3, 2), (4, 2), check_invariants=True)

    back, sorted_back = through([twice, twice.coalesce().requires_grad_()])

    assert not back.is_coalesced()
    assert torch.equal(back._indices(), twice._indices())
    assert torch.equal(back._values(), twice._values())
    assert sorted_back.is_coalesced()
    assert sorted_back.requires_grad


def test_pending_conjugation_and_negation_are_done(through: Callable[[Any], Any]) -> None:
    values = torch.randn(5, dtype=torch.complex64)

    conjugate, negative, both = through([values.conj(), values.conj().imag, values])

    assert torch.equal(conjugate, torch.conj_physical(values))
    assert torch.equal(negative, -values.imag)
    assert torch.equal(both, values)


def test_an_expanded_tensor_is_kept_at_its_true_size(through: Callable[[Any], Any]) -> None:
    given = torch.randn(1, 3).expand(1 << 40, 3)

    back = through({"wide": given})["wide"]

    assert back.shape == given.shape
    assert back.stride() == given.stride()
    assert torch.equal(back[0], given[0])


def test_windows_on_one_memory_are_kept_once_and_stay_windows(through: Callable[[Any], Any]) -> None:
    flat = torch.randn(12)
    given = {"part": flat[2:8].view(2, 3), "turned": flat.view(3, 4).t(), "flat": flat, "again": flat[2:8].view(2, 3)}

    back = through(given)

    assert list(encode({"x": given}).tensors) == ["x/flat"]
    assert all(torch.equal(back[name], given[name]) for name in given)
    back["flat"].zero_()
    assert not any(tensor.any() for tensor in back.values())


def test_a_parameter_and_its_detached_self_share_their_memory_again(through: Callable[[Any], Any]) -> None:
    weight = torch.nn.Parameter(torch.randn(3))

    parameter, plain = through([weight, weight.detach()])

    assert isinstance(parameter, torch.nn.Parameter)
    plain.zero_()
    assert not parameter.any()


def test_parts_that_only_overlap_come_back_apart_and_that_is_told() -> None:
    flat = torch.arange(10.0)

    encoded = encode({"a": flat[:6], "b": flat[4:]})

    assert sorted(encoded.tensors) == ["a", "b"]
    assert encoded.notes == ("a and b share memory in part, and come back apart",)


def test_neighbours_in_one_buffer_are_no_windows() -> None:
    flat = torch.arange(10.0)

    assert encode({"a": flat[:5], "b": flat[5:]}).notes == ()


@pytest.mark.parametrize("view", [{"offset": -1}, {"offset": 3}, {"stride": [-1]}, {"shape": [4]}])
def test_a_window_outside_of_its_tensor_is_refused(view: dict[str, Any]) -> None:
    node = {"$": "tensor", "ref": "x", "view": {"shape": [2], "stride": [1], "offset": 0, **view}}

    with pytest.raises(UnreadableState, match="damaged tensor node"):
        decode(json.loads(json.dumps(node)), {"x": torch.zeros(3)})
