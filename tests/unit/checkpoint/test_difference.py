"""Differences against torch's own arithmetic, for every type there is."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from holdfast.checkpoint import difference, pack
from holdfast.checkpoint.reading import open_checkpoint
from tests.tensorparts import save

FLOATS = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu,
]  # fmt: skip
WHOLE = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32]


def compared(
    tmp_path: Path, one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]
) -> dict[str, difference.TensorDifference]:
    infos = [(tmp_path / side, save(tmp_path / side, {"m": state})) for side, state in (("a", one), ("b", other))]
    with open_checkpoint(*infos[0]) as a, open_checkpoint(*infos[1]) as b:
        return {found.name.removeprefix("m/"): found for found in difference.compare(a, b)}


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_value_of_a_small_float_is_known(dtype: torch.dtype) -> None:
    bits = torch.arange(1 << min(16, 8 * dtype.itemsize)).to(torch.uint8 if dtype.itemsize == 1 else torch.uint16)
    if dtype.itemsize > 2:
        bits = torch.randint(0, 256, (4096 * dtype.itemsize,), dtype=torch.uint8)
    numbers = bits.view(torch.uint8).view(dtype)

    found = torch.from_numpy(
        difference.values(numbers.view(torch.uint8).numpy().tobytes(), str(dtype).removeprefix("torch."))
    )

    assert torch.equal(found.nan_to_num(nan=12.5), numbers.double().nan_to_num(nan=12.5))


@pytest.mark.parametrize("dtype", [*FLOATS[:6], *WHOLE, torch.complex64, torch.complex128], ids=str)
def test_distances_are_torch_s(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    a, b = (torch.rand(40, 9).mul(9).to(dtype) for _ in range(2))
    b[:20] = a[:20]

    found = compared(tmp_path, {"t": a}, {"t": b})["t"]

    parts = [torch.view_as_real(t).double() if t.is_complex() else t.double() for t in (a, b)]
    apart = parts[0] - parts[1]
    assert found.changed == int((apart.view(360, -1) != 0).any(1).sum())
    assert math.isclose(found.relative_l2 or 0, float(apart.norm() / parts[0].norm()), rel_tol=1e-12, abs_tol=1e-300)
    assert found.max_abs == float(apart.abs().max())
    assert found.what == ("changed" if found.changed else "same")


def test_what_is_not_in_both_or_of_another_form_is_told_apart(tmp_path: Path) -> None:
    one = {
        "gone": torch.ones(2),
        "wide": torch.ones(3),
        "type": torch.ones(4),
        "same": torch.ones(5),
        "none": torch.empty(0),
    }
    other = {
        "new": torch.ones(2),
        "wide": torch.ones(4),
        "type": torch.ones(4).half(),
        "same": torch.ones(5),
        "none": torch.empty(0),
    }

    found = compared(tmp_path, one, other)

    kinds = {name: each.what for name, each in found.items()}
    assert kinds == {
        "gone": "removed",
        "new": "added",
        "wide": "reshaped",
        "type": "retyped",
        "same": "same",
        "none": "same",
    }
    assert found["type"].relative_l2 == 0
    assert found["wide"].changed is None


def test_equal_nans_are_no_difference_and_new_ones_are(tmp_path: Path) -> None:
    a = torch.tensor([math.nan, math.inf, 1.0, 0.0])
    b = torch.tensor([math.nan, math.inf, 1.0, -0.0])
    c = torch.tensor([math.nan, math.inf, math.nan, 0.0])

    found = compared(tmp_path, {"zero": a, "nan": a.clone()}, {"zero": b, "nan": c})

    assert (found["zero"].changed, found["zero"].max_abs) == (1, 0.0)
    assert found["nan"].changed == 1
    assert math.isnan(found["nan"].max_abs or 0)


def test_equal_chunks_are_not_read(tmp_path: Path) -> None:
    big = torch.ones(1000, 1000)
    infos = [(tmp_path / side, save(tmp_path / side, {"m": {"big": big}})) for side in ("a", "b")]
    pack.path(tmp_path / "a", infos[0][1].packs[0].name).unlink()

    with open_checkpoint(*infos[0]) as a, open_checkpoint(*infos[1]) as b:
        assert [found.what for found in difference.compare(a, b)] == ["same"]
        assert difference.bytes_to_read(a, b) == 0


def test_a_tensor_larger_than_a_batch_is_one_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(difference, "_BATCH_BYTES", 1 << 16)
    a = torch.rand(300, 300)
    b = a.clone()
    b[299, 299] += 1

    found = compared(tmp_path, {"t": a}, {"t": b})["t"]

    assert (found.elements, found.changed) == (90000, 1)
