"""Layout and copies of slots, on real memfds."""

from __future__ import annotations

import copy
import ctypes
import math
import os
import threading
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from holdfast.checkpoint.slots import PAGE, TABLE_VERSION, Slot
from holdfast.checkpoint.snapshot import CHUNK_BYTES, SMALL_BYTES, Layout, Spec, copy_in, copy_out, plan
from holdfast.checkpoint.state import UnreadableState

DTYPES = [torch.float32, torch.bfloat16, torch.bool, torch.complex64, torch.float8_e5m2]


@pytest.fixture
def slot() -> Iterator[Slot]:
    descriptor = os.memfd_create("slot")
    made = Slot(descriptor)
    yield made
    made.close()
    os.close(descriptor)


def spec(name: str, *shape: int, kind: str = "other", dtype: torch.dtype = torch.float32) -> Spec:
    return Spec(name, kind, dtype, shape)


def write(slot: Slot, tensors: dict[str, torch.Tensor], layout: Layout | None = None) -> Layout:
    layout = layout or plan([Spec(n, "other", t.dtype, tuple(t.shape)) for n, t in tensors.items()])
    slot.reserve(layout.end)
    copy_in(slot, layout, tensors, zero_gaps=True)
    slot.write_table({"version": TABLE_VERSION, "chunks": layout.table, "state": {}}, layout.end)
    return layout


SHAPES = st.lists(st.integers(0, 700), max_size=3).map(tuple).filter(lambda s: math.prod(s) < 3_000_000)


@given(st.lists(st.tuples(SHAPES, st.sampled_from(DTYPES), st.sampled_from(["frozen", "optimizer"])), max_size=8))
def test_every_byte_of_every_tensor_has_one_place_and_chunks_keep_the_rules(
    given_specs: list[tuple[tuple[int, ...], torch.dtype, str]],
) -> None:
    specs = [Spec(f"t{n}", kind, dtype, shape) for n, (shape, dtype, kind) in enumerate(given_specs)]

    layout = plan(specs)

    end = PAGE
    held = dict.fromkeys((s.name for s in specs), 0)
    for chunk in layout.chunks:
        assert chunk.offset == -(-end // PAGE) * PAGE
        end = chunk.offset + chunk.size_bytes
        assert len(chunk.pieces) == 1 or chunk.size_bytes <= CHUNK_BYTES + SMALL_BYTES
        assert all(p.offset % 64 == 0 and p.spec.kind == chunk.kind for p in chunk.pieces)
        for piece in chunk.pieces:
            assert piece.source == held[piece.spec.name]
            held[piece.spec.name] += piece.size_bytes
    assert held == {s.name: math.prod(s.shape) * s.dtype.itemsize for s in specs}
    assert layout.end % PAGE == 0
    assert layout.end >= end


def test_large_tensors_are_cut_on_rows_and_large_rows_inside() -> None:
    rows = plan([spec("w", 1000, 1000)]).chunks
    wide = plan([spec("w", 2, 3, 1 << 20)]).chunks

    assert [c.pieces[0].shape for c in rows] == [(524, 1000), (476, 1000)]
    assert [c.pieces[0].start for c in wide][:2] == [(0, 0, 0), (0, 1, 0)]
    assert {c.pieces[0].shape for c in wide} == {(1, 1, 1 << 20)}


def test_threads_share_a_copy_and_are_gone_afterwards(slot: Slot, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {"w": torch.rand(5_000_000), "v": torch.rand(100, 1000), "u": torch.rand(3_000_000)}
    layout, meeting, before = write(slot, tensors), threading.Barrier(3), threading.active_count()
    memmove, met = ctypes.memmove, set()

    def together(target: int, source: int, size_bytes: int) -> None:
        if len(met) < 3:
            met.add(threading.get_ident())
            meeting.wait(timeout=20)  # all three are here at once
        memmove(target, source, size_bytes)

    monkeypatch.setattr(ctypes, "memmove", together)
    for tensor in tensors.values():
        tensor.add_(1)
    copy_in(slot, layout, tensors, zero_gaps=False, threads=3)

    assert (len(met), threading.active_count()) == (3, before)
    assert all(torch.equal(copy_out(slot).tensors[name], tensor) for name, tensor in tensors.items())


def test_nobody_copies_any_more_when_a_copy_was_interrupted(slot: Slot, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {"w": torch.rand(12_000_000)}
    layout, before = write(slot, tensors), threading.active_count()
    memmove = ctypes.memmove

    def interrupted(target: int, source: int, size_bytes: int) -> None:
        if threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt
        memmove(target, source, size_bytes)

    monkeypatch.setattr(ctypes, "memmove", interrupted)
    with pytest.raises(KeyboardInterrupt):
        copy_in(slot, layout, tensors, zero_gaps=False, threads=3)

    assert threading.active_count() == before


def test_a_copy_is_made_where_no_thread_can_be_started(slot: Slot, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {"w": torch.rand(12_000_000)}

    def refused(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    layout = write(slot, tensors)
    tensors["w"].add_(1)
    monkeypatch.setattr(threading.Thread, "start", refused)
    copy_in(slot, layout, tensors, zero_gaps=False, threads=3)

    assert torch.equal(copy_out(slot).tensors["w"], tensors["w"])


def test_a_frozen_chunk_does_not_change_with_its_neighbours() -> None:
    alone = plan([spec("a", 10, kind="frozen"), spec("b", 20, kind="frozen")])
    among = plan([spec("a", 10, kind="frozen"), spec("x", 9, kind="optimizer"), spec("b", 20, kind="frozen")])

    assert alone.table[0]["tensors"] == among.table[0]["tensors"]


def test_whatever_the_memory_looks_like_it_comes_back(slot: Slot) -> None:
    base = torch.randn(900, 700)
    tensors = {
        "plain": base,
        "transposed": base.t(),
        "sliced": base[::2, 1:],
        "expanded": torch.ones(1).expand(5),
        "conjugate": torch.randn(3, dtype=torch.complex64).conj(),
        "scalar": torch.tensor(1.5, dtype=torch.bfloat16),
        "empty": torch.empty(0, 3),
        "float8": torch.randn(7).to(torch.float8_e4m3fn),
        "needs_grad": torch.randn(2, requires_grad=True),
    }
    write(slot, tensors)

    back = copy_out(slot).tensors

    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(
            back[name].float() if name == "float8" else back[name], tensor.float() if name == "float8" else tensor
        )


def test_only_whole_tensors_are_views_and_none_writes_into_the_slot(slot: Slot) -> None:
    write(slot, {"small": torch.ones(4), "large": torch.ones(1000, 1001)})

    stored = copy_out(slot)
    stored.tensors["small"].zero_()

    assert [name for name in stored.tensors if stored.tensors.is_in_place(name)] == ["small"]
    assert copy_out(slot).tensors["small"].tolist() == [1, 1, 1, 1]


def test_gaps_are_zero_after_a_layout_that_filled_them(slot: Slot) -> None:
    write(slot, {"a": torch.full((5000,), 7.0)})

    layout = write(slot, {"a": torch.ones(3), "b": torch.ones(5)})

    assert layout.gaps
    assert all(not any(slot.view[at : at + length]) for at, length in layout.gaps)


def test_a_table_that_points_outside_is_refused(slot: Slot) -> None:
    layout = write(slot, {"a": torch.ones(3)})
    for field, value in (("bytes", 1 << 40), ("offset", PAGE * 1000)):
        table = {"version": TABLE_VERSION, "chunks": [{**layout.table[0], field: value}], "state": {}}
        slot.write_table(table, layout.end)

        with pytest.raises(UnreadableState, match="outside the slot"):
            copy_out(slot)


def test_a_tensor_with_a_missing_part_is_refused(slot: Slot) -> None:
    layout = write(slot, {"a": torch.ones(1 << 20)})
    slot.write_table({"version": TABLE_VERSION, "chunks": layout.table[:1], "state": {}}, layout.end)

    with pytest.raises(UnreadableState, match="parts of tensor 'a'"):
        copy_out(slot)


def test_parts_that_overlap_are_no_tensor(slot: Slot) -> None:
    layout = write(slot, {"a": torch.ones(2 << 20)})
    table = copy.deepcopy(layout.table)
    table[1]["tensors"][0]["index"] = [0]
    slot.write_table({"version": TABLE_VERSION, "chunks": table, "state": {}}, layout.end)

    with pytest.raises(UnreadableState, match="parts of tensor 'a' are missing"):
        copy_out(slot)
