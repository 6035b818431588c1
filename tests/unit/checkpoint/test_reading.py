"""Boxes of tensors out of real checkpoints: exact, verified, only what is needed, and nothing removed meanwhile."""

from __future__ import annotations

import fcntl
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from holdfast.checkpoint import boxes, codecs, manifest, pack
from holdfast.checkpoint.boxes import Box
from holdfast.checkpoint.canonical import Damaged
from holdfast.checkpoint.commit import Part, publish
from holdfast.checkpoint.folder import Folder
from holdfast.checkpoint.load import CheckpointInfo, checkpoints
from holdfast.checkpoint.packer import Packer
from holdfast.checkpoint.reading import Wanted, open_checkpoint
from tests.tensorparts import part_of, save, save_parts

BIG = torch.arange(3 * 700 * 701, dtype=torch.float32).view(3, 700, 701)  # cut into several chunks
SMALL = {"bias": torch.arange(7, dtype=torch.bfloat16), "scale": torch.tensor(2.5), "none": torch.empty(0, 4)}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("reading") / "checkpoints"
    save(root, {"model": {"big": BIG, **SMALL}})
    return root


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def info_at(root: Path) -> CheckpointInfo:
    return checkpoints(root)[-1]


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_every_tensor_is_listed_and_comes_back_to_the_byte(root: Path) -> None:
    with open_checkpoint(root, info_at(root)) as found:
        assert {n: (t.dtype, t.shape, t.kind) for n, t in found.tensors.items()} == {
            "model/big": ("float32", (3, 700, 701), "trainable"),
            "model/bias": ("bfloat16", (7,), "trainable"),
            "model/scale": ("float32", (), "trainable"),
            "model/none": ("float32", (0, 4), "trainable"),
        }
        for name, tensor in {"big": BIG, **SMALL}.items():
            buffer = bytearray(found.tensors[f"model/{name}"].size_bytes)
            found.read_into(f"model/{name}", buffer)
            assert buffer == raw(tensor)
        assert found.state()["$"] == "dict"


@given(st.tuples(*(st.tuples(st.integers(0, n), st.integers(0, n)).map(sorted) for n in BIG.shape)))
def test_any_box_is_the_same_as_of_the_live_tensor(root: Path, ends: tuple[list[int], ...]) -> None:
    shape = [end - start for start, end in ends]
    buffer = bytearray(4 * math.prod(shape))

    with open_checkpoint(root, info_at(root)) as found:
        box = Box(tuple(start for start, _ in ends), tuple(shape))
        found.read([Wanted(found.tensors["model/big"], box, memoryview(buffer))])

    assert buffer == raw(BIG[tuple(slice(*pair) for pair in ends)])


@pytest.mark.parametrize(("index", "shape"), [((0, 0, 1), (3, 700, 701)), ((3, 0, 0), (1, 1, 1))])
def test_a_box_that_reaches_outside_is_refused(root: Path, index: tuple[int, ...], shape: tuple[int, ...]) -> None:
    with open_checkpoint(root, info_at(root)) as found, pytest.raises(Damaged, match="does not hold all of"):
        into = memoryview(bytearray(4 * math.prod(shape)))
        found.read([Wanted(found.tensors["model/big"], Box(index, shape), into)])


def test_memory_of_another_size_is_refused(root: Path) -> None:
    with open_checkpoint(root, info_at(root)) as found, pytest.raises(ValueError, match="were to go into 13"):
        found.read_into("model/bias", bytearray(13))


def test_only_the_chunks_needed_are_read_and_those_are_verified(tmp_path: Path) -> None:
    info = save(tmp_path, {"model": {"big": BIG, **SMALL}})
    with open_checkpoint(tmp_path, info) as found:
        stored = found.tensors["model/big"].boxes[-1]
        path = pack.path(tmp_path, found.manifest.packs[stored.pack].name)
        with path.open("r+b") as file:
            file.seek(stored.record + 4096 + 5)
            file.write(b"\xff\x00\xff")

        found.read_into("model/bias", bytearray(14))
        with pytest.raises(Damaged, match="has a damaged chunk at offset"):
            found.read_into("model/big", bytearray(BIG.nbytes))


@pytest.mark.parametrize("width", [1, 2, 4])
def test_compressed_chunks_are_unpacked(root: Path, tmp_path: Path, width: int) -> None:
    info = compressed(root, tmp_path, width)

    with open_checkpoint(tmp_path, info) as found:
        buffer = bytearray(BIG.nbytes)
        found.read_into("model/big", buffer)

    assert buffer == raw(BIG)


def compressed(source: Path, into: Path, width: int) -> CheckpointInfo:
    """The newest checkpoint of `source`, once more in `into`, in packs that are compressed."""
    info, folder = info_at(source), Folder(into)
    folder.open()
    with open_checkpoint(source, info) as found, Packer(folder) as packer:
        chunks = found.manifest.ranks[0]["chunks"]
        for chunk in chunks:
            payload = pack.path(source, found.manifest.packs[chunk["pack"]].name).read_bytes()
            plain = payload[chunk["offset"] + 4096 :][: chunk["bytes"]]
            codec, small = codecs.encode(plain, width)
            assert codec == width
            place = packer.add(
                pack.padded(small), len(small), chunk_id=chunk["id"], codec=codec, raw_bytes=chunk["bytes"]
            )
            chunk.update(pack=place.pack, offset=place.offset)
        made = manifest.Manifest(info.position, None, None, tuple(packer.finish()), found.manifest.ranks)
    publish(folder, made)
    return info_at(into)


def test_a_replica_comes_from_rank_0_and_shards_from_all(tmp_path: Path) -> None:
    rows = torch.arange(12.0).view(4, 3)
    parts = [
        part_of({"own": torch.tensor([rank]), "shard": half}, rank=rank, world=2)
        for rank, half in enumerate(rows.split(2))
    ]
    info = save_parts(tmp_path, [sharded(part, 2 * rank) for rank, part in enumerate(parts)])

    with open_checkpoint(tmp_path, info) as found:
        shard, own = bytearray(48), bytearray(8)
        found.read_into("shard", shard)
        found.read_into("own", own)
        assert (shard, own) == (raw(rows), raw(torch.tensor([0])))
        assert [found.of_rank(rank)["shard"].boxes[0].box for rank in (0, 1)] == [
            Box((0, 0), (2, 3)),
            Box((2, 0), (2, 3)),
        ]


def sharded(part: Part, row: int) -> Part:
    """Say of `shard` that it is two rows of four."""
    for chunk in part.table["chunks"]:
        for tensor in chunk["tensors"]:
            if tensor["name"] == "shard":
                tensor.update(global_shape=[4, 3], index=[row, 0])
    return part


def test_shards_that_leave_a_gap_or_overlap_are_named(tmp_path: Path) -> None:
    halves = [part_of({"shard": torch.zeros(2, 3)}, rank=rank, world=2) for rank in (0, 1)]
    info = save_parts(tmp_path, [sharded(part, rank) for rank, part in enumerate(halves)])

    with open_checkpoint(tmp_path, info) as found, pytest.raises(Damaged, match="'shard' is not stored whole"):
        found.tensors  # noqa: B018 - looking is what raises


def test_nobody_can_lock_the_manifest_alone_while_it_is_read(root: Path) -> None:
    info = info_at(root)
    with open_checkpoint(root, info), info.path.open("rb") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with info.path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_checkpoint_that_was_repacked_is_opened_under_its_new_name(tmp_path: Path) -> None:
    info = save(tmp_path, {"model": SMALL})
    before = manifest.parse(info.path.name, info.path.read_bytes())
    after = manifest.Manifest(before.position, before.parent, before.position, before.packs, before.ranks)
    info.path.with_name(after.file_name).write_bytes(after.raw)
    info.path.unlink()

    with open_checkpoint(tmp_path, info) as found:
        assert found.manifest.file_name == after.file_name
        found.read_into("model/scale", bytearray(4))


def test_a_checkpoint_that_was_removed_is_said_to_be(tmp_path: Path) -> None:
    info = save(tmp_path, {"model": SMALL})
    info.path.unlink()
    descriptors = open_descriptors()

    with pytest.raises(Damaged, match="was removed meanwhile"), open_checkpoint(tmp_path, info):
        pass

    assert open_descriptors() == descriptors


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(1, 4), st.integers(1, 4)), max_size=6))
def test_filling_a_region_is_holding_each_element_once(given_boxes: list[tuple[int, int, int, int]]) -> None:
    found = [Box((i, j), (n, m)) for i, j, n, m in given_boxes]
    held = [(x, y) for b in found for x in range(4) for y in range(4) if b.meet(Box((x, y), (1, 1)))]

    assert boxes.fill(found, Box((0, 0), (4, 4))) == (sorted(held) == [(x, y) for x in range(4) for y in range(4)])


def test_boxes_around_a_middle_are_not_taken_for_overlapping() -> None:
    around = [Box((0, 0), (1, 2)), Box((0, 2), (2, 1)), Box((2, 1), (1, 2)), Box((1, 0), (2, 1)), Box((1, 1), (1, 1))]

    assert boxes.fill(around, Box((0, 0), (3, 3)))
    assert not boxes.fill([*around[:4], around[3]], Box((0, 0), (3, 3)))
