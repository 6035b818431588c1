"""HoldfastWriter and HoldfastReader: every type and shape, JSON only, unchanged shards once, nothing left behind."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint.api import CheckpointException

from holdfast.checkpoint import boxes, load, reading
from holdfast.checkpoint.boxes import Box
from holdfast.checkpoint.snapshot import CHUNK_BYTES, ROW_BYTES
from holdfast.integrations.dcp import HoldfastLoadPlanner, HoldfastReader, HoldfastWriter

DTYPES = [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.bool, torch.complex64, torch.uint8]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """DCP warns when there is no process group."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield


def save(root: Path, name: str, state: dict[str, Any], **options: Any) -> None:
    dcp.save(state, storage_writer=HoldfastWriter(root, name, **options))


def load_into(root: Path, name: str, state: dict[str, Any], **options: Any) -> dict[str, Any]:
    dcp.load(state, storage_reader=HoldfastReader(root, name), **options)
    return state


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def stored_bytes(root: Path) -> int:
    return sum(path.stat().st_size for path in root.glob("packs/*/*.hfp"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_of_every_type_and_shape_come_back(root: Path, dtype: torch.dtype) -> None:
    shapes = [(), (0, 3), (5,), (3, 4, 5), (1000, 701)]
    state = {f"t{n}": torch.randn(shape).mul(9).to(dtype) for n, shape in enumerate(shapes)}
    state["transposed"] = torch.randn(600, 500).mul(9).to(dtype).t()

    save(root, "a", state)

    found = load_into(root, "a", {name: torch.zeros_like(one) for name, one in state.items()})
    assert all(raw(found[name]) == raw(one) for name, one in state.items())


def test_values_come_back_as_they_were(root: Path) -> None:
    values = {"step": 7, "lr": 0.1, "none": None, "betas": (0.9, 0.999), "name": "é", "bytes": b"\0\1", "big": 1 << 70}
    nested = {"a": {"list": [1, {"b": 2.5}], **values}, "set": {1, 2}}

    save(root, "a", nested)

    empty = {"a": {"list": [0, {"b": 0.0}], **dict.fromkeys(values)}, "set": set()}
    assert load_into(root, "a", empty) == nested


def test_nothing_stored_is_a_pickle(root: Path) -> None:
    save(root, "a", {"w": torch.ones(5), "opt": {"step": 3, "nested": [1, "two", {"three": 3.0}]}})

    raw = b"".join(path.read_bytes() for path in root.rglob("*") if path.is_file())
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert b"\x80" + bytes([protocol]) + b"}" not in raw
    assert b"PK\x03\x04" not in raw


def test_a_value_that_cannot_be_stored_is_named(root: Path) -> None:
    with pytest.raises(CheckpointException, match=r"optimizer\.fn is a function"):
        save(root, "a", {"w": torch.ones(3), "optimizer": {"fn": stored_bytes}})
    assert load.checkpoints(root) == []


def test_only_what_has_changed_is_written_again(root: Path) -> None:
    state = {f"layer{n}": torch.randn(1000, 1000) for n in range(4)}
    save(root, "step-1", state)
    before = stored_bytes(root)

    state["layer2"] = state["layer2"] + 1
    save(root, "step-2", state)

    assert stored_bytes(root) - before < 1.1 * state["layer2"].nbytes
    found = load_into(root, "step-2", {name: torch.zeros(1000, 1000) for name in state})
    assert all(torch.equal(found[name], state[name]) for name in state)
    assert [load.verify(root, info) for info in load.checkpoints(root)] == [[], []]


@given(data=st.data())
def test_shards_are_cut_where_the_whole_is(data: st.DataObject) -> None:
    item = data.draw(st.sampled_from((1, 4, 8)))
    shape = data.draw(st.sampled_from([(3_000_000,), (900, 1500), (3, ROW_BYTES // 2 + 7), (7, 3, 500_000), (5, 1)]))
    ends = sorted(data.draw(st.sets(st.integers(1, shape[0]), max_size=4)) | {shape[0]})
    shards = [Box((a, *(0,) * (len(shape) - 1)), (b - a, *shape[1:])) for a, b in zip([0, *ends], ends, strict=False)]

    def cut(box: Box) -> list[Box]:
        return list(boxes.cut(box, shape, item, most_bytes=CHUNK_BYTES, row_bytes=ROW_BYTES))

    whole = cut(boxes.whole(shape))
    pieces = [piece for shard in shards for piece in cut(shard)]

    assert boxes.fill(pieces, boxes.whole(shape))
    assert all(piece.count * item <= max(CHUNK_BYTES, ROW_BYTES) for piece in pieces)
    assert len(set(pieces) - set(whole)) <= 2 * (len(shards) - 1)


def test_replacing_keeps_the_old_until_the_new_is_whole(root: Path) -> None:
    class Failing(dcp.DefaultSavePlanner):
        def resolve_data(self, write_item: Any) -> Any:
            raise KeyError("no data")

    save(root, "a", {"w": torch.ones(5)})
    with pytest.raises(CheckpointException, match="no data"):
        dcp.save({"w": torch.zeros(5)}, storage_writer=HoldfastWriter(root, "a"), planner=Failing())
    assert torch.equal(load_into(root, "a", {"w": torch.zeros(5)})["w"], torch.ones(5))

    save(root, "a", {"w": torch.full((5,), 2.0)})
    assert torch.equal(load_into(root, "a", {"w": torch.zeros(5)})["w"], torch.full((5,), 2.0))
    assert len(load.checkpoints(root)) == 1
    assert list((root / "staging").glob("*/*")) == []


def test_the_name_may_come_with_each_save(root: Path) -> None:
    writer, reader = HoldfastWriter(f"holdfast://{root}"), HoldfastReader(root)
    for step in (1, 2):
        dcp.save({"w": torch.full((3,), float(step))}, storage_writer=writer, checkpoint_id=f"step-{step}")
    found = {"w": torch.zeros(3)}

    dcp.load(found, storage_reader=reader, checkpoint_id=f"holdfast://{root}/step-1")

    assert found["w"].tolist() == [1.0, 1.0, 1.0]
    assert [info.step for info in load.checkpoints(root)] == [1, 2]
    with pytest.raises(CheckpointException, match="is not said"):
        dcp.save({"w": torch.ones(1)}, storage_writer=HoldfastWriter(root), no_dist=True)


def test_old_ones_go_when_only_some_are_kept(root: Path) -> None:
    for step in range(5):
        save(root, f"step-{step}", {"w": torch.full((100_000,), float(step))}, keep_last=3)

    assert [info.name for info in load.checkpoints(root)] == ["step-2", "step-3", "step-4"]
    assert stored_bytes(root) < 3.5 * 400_000


def test_a_fresh_optimizer_does_not_lose_its_moments_silently(root: Path) -> None:
    model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    save(root, "a", {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    fresh = torch.optim.AdamW(model.parameters())
    state = {"model": model.state_dict(), "optimizer": fresh.state_dict()}

    with pytest.raises(CheckpointException, match="stored values under 'optimizer' are not asked for"):
        load_into(root, "a", state, planner=HoldfastLoadPlanner())
    with pytest.warns(UserWarning, match="stored values under 'optimizer' are not asked for"):
        load_into(root, "a", state)
    load_into(root, "a", {"model": model.state_dict()}, planner=HoldfastLoadPlanner(leave=["optimizer"]))
    load_into(root, "a", {"model": model.state_dict()})


def test_anybody_can_read_the_tree(root: Path) -> None:
    save(root, "a", {"model": {"w": torch.arange(6.0).view(2, 3)}, "step": 3})

    [info] = load.checkpoints(root)
    with reading.open_checkpoint(root, info) as found:
        raw = bytearray(24)
        found.read_into("model.w", raw)
        tree = dict(found.state()["items"])
    assert torch.frombuffer(raw, dtype=torch.float32).tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert tree["step"] == 3
    assert tree["model"] == {"$": "dict", "items": [["w", {"$": "tensor", "ref": "model.w"}]]}


def test_a_flipped_byte_is_told(root: Path) -> None:
    save(root, "a", {"w": torch.randn(1000)})
    [pack] = root.glob("packs/*/*.hfp")
    raw = bytearray(pack.read_bytes())
    raw[5000] ^= 1
    pack.write_bytes(raw)

    with pytest.raises(CheckpointException, match="damaged chunk"):
        load_into(root, "a", {"w": torch.zeros(1000)})


def test_what_is_not_there_or_is_of_files_is_told(root: Path) -> None:
    dcp.save({"w": torch.ones(3)}, checkpoint_id=f"holdfast://{root}/files")

    with pytest.raises(CheckpointException, match="there is no 'nothing'"):
        load_into(root, "nothing", {"w": torch.zeros(3)})
    with pytest.raises(CheckpointException, match="files holds files"):
        load_into(root, "files", {"w": torch.zeros(3)})


def test_cached_plans_save_the_present_values(root: Path) -> None:
    for step in (1, 2, 3):
        planner = dcp.DefaultSavePlanner(enable_plan_caching=True)
        state = {"w": torch.full((100,), float(step)), "step": step}
        dcp.save(state, storage_writer=HoldfastWriter(root, f"s{step}"), planner=planner)

    for step in (1, 2, 3):
        found = load_into(root, f"s{step}", {"w": torch.zeros(100), "step": 0})
        assert (found["w"][0].item(), found["step"]) == (step, step)


def test_the_writer_can_be_sent_to_another_process(root: Path) -> None:
    writer = pickle.loads(pickle.dumps(HoldfastWriter(root, "a", keep_last=2)))

    dcp.save({"w": torch.ones(3)}, storage_writer=writer)

    assert writer.checkpoint_id == f"{root}/a"
    assert [info.name for info in load.checkpoints(root)] == ["a"]
