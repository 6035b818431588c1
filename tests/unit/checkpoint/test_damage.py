"""Every stored byte matters: whatever is flipped, cut or removed is told, and the checkpoint before it is loaded."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from holdfast.checkpoint import lease, load, manifest, pack
from holdfast.checkpoint.commit import Committed, commit
from holdfast.checkpoint.folder import Folder, format_problems, hint_at_latest
from holdfast.checkpoint.lease import Lease
from holdfast.checkpoint.lineage import Position
from holdfast.errors import NoValidCheckpoint
from tests.flips import places
from tests.slotparts import contents, new_slot, part_of
from tests.tensorparts import save

SIZES = (300,)
SLOT = new_slot()
OLD = part_of(seed=1, sequence=1, step=10, sizes=SIZES, term=2)
NEW = part_of(seed=2, sequence=2, step=20, sizes=SIZES, term=2)


@pytest.fixture
def saved(tmp_path: Path) -> Iterator[tuple[Folder, Committed]]:
    """Two checkpoints, in memory where the machine has room for it: thousands of files are read."""
    quick = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=quick if os.access(quick, os.W_OK) else tmp_path) as root:
        yield two_checkpoints(Path(root))


def two_checkpoints(root: Path) -> tuple[Folder, Committed]:
    folder = Folder(root / "checkpoints")
    folder.open()
    lease.write(folder, Lease(term=2, claim="a", attempt=1, base=None, owner={"pid": 1}, time_s=1.5))
    commit(folder, [OLD])
    newest = commit(folder, [NEW])
    hint_at_latest(folder, newest.file_name)
    return folder, newest


def resumed(root: Path) -> tuple[int, tuple[str, ...]]:
    """The step and what was said, once the bytes have been compared with those saved."""

    def into_slot(info: load.CheckpointInfo) -> list[str]:
        try:
            load.fill(root, info, 0, SLOT, whole=True)
        except load.Damaged as error:
            return [str(error)]
        return []

    chosen = load.choose(root, attempt=into_slot)
    assert chosen.info is not None
    part = {10: OLD, 20: NEW}[chosen.info.step]
    table = SLOT.read_table()
    assert contents(SLOT.view, table) == contents(part.slot, part.table)
    assert {**table, "chunks": None} == {**part.table, "chunks": None}
    return chosen.info.step, chosen.fell_back


def files_of(folder: Folder, newest: Committed) -> list[Path]:
    packs = [pack.path(folder.root, entry.name) for entry in newest.manifest.packs]
    return [folder.root / "manifests" / newest.file_name, *packs]


@pytest.mark.parametrize(("which", "of_padding"), [(0, 31), (1, 31), pytest.param(1, 1, marks=pytest.mark.soak)])
def test_every_flipped_byte_of_the_newest_is_told_and_the_one_before_is_loaded(
    saved: tuple[Folder, Committed], which: int, of_padding: int
) -> None:
    path = files_of(*saved)[which]
    whole = path.read_bytes()
    with path.open("r+b", buffering=0) as file:
        for at in places(whole, of_padding=of_padding):
            file.seek(at)
            file.write(bytes([whole[at] ^ (1 << at % 8)]))
            step, said = resumed(saved[0].root)
            assert (step, len(said)) == (10, 1), f"byte {at} of {path.name}"
            assert "passed over" in said[0]
            file.seek(at)
            file.write(whole[at : at + 1])
    assert resumed(saved[0].root) == (20, ())


def test_every_length_of_a_cut_file_is_told(saved: tuple[Folder, Committed]) -> None:
    for path in files_of(*saved):
        whole = path.read_bytes()
        for length in {0, 1, 100, 4095, 4096, len(whole) - 4096, len(whole) - 1, len(whole) + 1} - {len(whole)}:
            path.write_bytes(whole[: max(0, length)].ljust(length, b"\0"))
            assert resumed(saved[0].root)[0] == 10
        path.write_bytes(whole)
    assert resumed(saved[0].root) == (20, ())


@pytest.mark.parametrize(("which", "said"), [(0, "is missing"), (1, "is missing")])
def test_a_missing_file_is_named(saved: tuple[Folder, Committed], which: int, said: str) -> None:
    files_of(*saved)[which].unlink()

    step, sentences = resumed(saved[0].root)

    assert step == 10
    assert said in sentences[0]


def test_a_whole_pack_under_another_name_is_told(saved: tuple[Folder, Committed]) -> None:
    old = pack.path(saved[0].root, load.checkpoints(saved[0].root)[0].packs[0].name)
    files_of(*saved)[1].write_bytes(old.read_bytes())

    assert resumed(saved[0].root)[0] == 10


def test_nothing_is_loaded_when_everything_is_damaged(saved: tuple[Folder, Committed]) -> None:
    for path in (saved[0].root / "manifests").iterdir():
        path.write_bytes(b"{}")

    with pytest.raises(NoValidCheckpoint, match="2 tried, 2 damaged"):
        load.choose(saved[0].root)


def test_every_flipped_byte_of_a_lease_is_told_and_harms_nothing(saved: tuple[Folder, Committed]) -> None:
    (path,) = (saved[0].root / "leases").iterdir()
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        step, said = resumed(saved[0].root)
        assert (step, len(said)) == (20, 1)
        assert "lease 000002" in said[0]


def test_a_damaged_lease_does_not_bring_back_what_was_left_behind(saved: tuple[Folder, Committed]) -> None:
    folder = saved[0]
    lease.write(folder, Lease(term=3, claim="b", attempt=2, base=Position(2, 1), owner={}, time_s=2.0))
    commit(folder, [part_of(seed=3, sequence=2, step=15, term=3)])
    for path in (folder.root / "leases").iterdir():
        path.write_bytes(b"")

    assert [(info.term, info.step, info.live) for info in load.checkpoints(folder.root)] == [
        (2, 10, True),
        (2, 20, False),
        (3, 15, True),
    ]


def test_every_flipped_byte_of_the_format_file_is_told_and_repaired(saved: tuple[Folder, Committed]) -> None:
    path = saved[0].root / "format.json"
    whole = path.read_bytes()
    for at in range(len(whole)):
        for mask in (1, 2, 255):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ mask]) + whole[at + 1 :])
            assert len(format_problems(saved[0].root)) == 1
    assert len(saved[0].open()) == 1
    assert path.read_bytes() == whole
    assert saved[0].open() == []


def test_every_flipped_byte_of_the_hint_is_harmless(saved: tuple[Folder, Committed]) -> None:
    path = saved[0].root / "latest.json"
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert resumed(saved[0].root) == (20, ())


def forge(info: load.CheckpointInfo, rank: int) -> None:
    """As many elements as there should be, each part with the right hash: only the places are wrong, of that rank."""
    found = manifest.parse(info.path.name, info.path.read_bytes())
    boxes = [entry for chunk in found.ranks[rank]["chunks"] for entry in chunk["tensors"]]
    boxes[-1].update(index=boxes[0]["index"])
    info.path.unlink()
    info.path.with_name(found.file_name).write_bytes(found.raw)


def test_parts_of_a_tensor_that_overlap_are_never_loaded(tmp_path: Path) -> None:
    older = save(tmp_path, {"w": torch.arange(1 << 20)}, sequence=1, step=10)
    forge(save(tmp_path, {"w": torch.arange(1 << 20)}, sequence=2, step=20), 0)

    _, forged = load.checkpoints(tmp_path)
    with pytest.raises(load.Damaged, match="'w' is not stored whole"):
        load.fill(tmp_path, forged, 0, new_slot(), whole=False)
    assert "overlap" in load.verify(tmp_path, forged)[0]
    assert load.choose(tmp_path).info == older


def test_no_rank_is_given_what_another_could_not_load(tmp_path: Path) -> None:
    forge(save(tmp_path, *[{"w": torch.arange(1 << 20)}] * 2), 1)

    (forged,) = load.checkpoints(tmp_path)
    with pytest.raises(load.Damaged, match="'w' is not stored whole"):
        load.fill(tmp_path, forged, 0, new_slot(), whole=True)
    load.fill(tmp_path, forged, 0, new_slot(), whole=False)
    with pytest.raises(load.Damaged, match="there is none for rank 2"):
        load.fill(tmp_path, forged, 2, new_slot(), whole=False)
