"""Folders of `torch.distributed.checkpoint` through `holdfast://`: bound to one save, whoever else has been there."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint._fsspec_filesystem import FsspecWriter
from torch.distributed.checkpoint.api import CheckpointException

from holdfast.checkpoint import load
from holdfast.errors import UsageError
from holdfast.integrations.filesystem import HoldfastFileSystem
from holdfast.integrations.publishing import Torn


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """DCP warns when there is no process group, and when a checkpoint is replaced."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


RANK = """
import sys
from holdfast.integrations.filesystem import HoldfastFileSystem
folder, data, *files = sys.argv[1:]
for name in files:
    with HoldfastFileSystem().open(f"{folder}/{name}", "wb") as file:
        file.write(data.encode())
print("written", flush=True)
sys.stdin.read()
"""


class Ranks:
    """Other processes that write files of a save and stay until they are killed."""

    def __init__(self) -> None:
        self._started: list[subprocess.Popen[str]] = []

    def __call__(self, folder: Path, data: str, *files: str) -> subprocess.Popen[str]:
        argv = [sys.executable, "-c", RANK, str(folder), data, *files]
        one = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._started.append(one)
        assert one.stdout is not None and one.stdout.readline() == "written\n"
        return one

    def close(self) -> None:
        for one in self._started:
            kill(one)
            assert one.stdin is not None and one.stdout is not None
            one.stdin.close()
            one.stdout.close()


def kill(one: subprocess.Popen[str]) -> None:
    one.kill()
    one.wait()


@pytest.fixture
def rank() -> Iterator[Ranks]:
    started = Ranks()
    yield started
    started.close()


def put(fs: HoldfastFileSystem, path: Path, data: bytes) -> None:
    with fs.open(str(path), "wb") as file:
        file.write(data)


def finish(fs: HoldfastFileSystem, folder: Path, metadata: bytes) -> None:
    """What DCP's coordinator does last."""
    put(fs, folder / ".metadata.tmp", metadata)
    if fs.exists(str(folder / ".metadata")):
        fs.rm(str(folder / ".metadata"))
    fs.rename(str(folder / ".metadata.tmp"), str(folder / ".metadata"))


def state(value: float) -> dict[str, Any]:
    return {"model": {"w": torch.full((300, 300), value)}, "step": int(value)}


def test_dcp_saves_and_loads_by_url(root: Path) -> None:
    dcp.save(state(3), checkpoint_id=f"holdfast://{root}/step-3")

    found = state(0)
    dcp.load(found, checkpoint_id=f"holdfast://{root}/step-3")

    assert torch.equal(found["model"]["w"], state(3)["model"]["w"]) and found["step"] == 3
    [info] = load.checkpoints(root)
    assert (info.name, info.step, load.verify(root, info)) == ("step-3", 3, [])


def test_what_was_replaced_takes_no_room(root: Path) -> None:
    for _ in range(3):
        dcp.save({f"w{n}": torch.randn(300, 300) for n in range(5)}, checkpoint_id=f"holdfast://{root}/last")

    stored = sum(path.stat().st_size for path in root.glob("packs/*/*.hfp"))
    assert stored < 1.2 * 5 * 300 * 300 * 4


def test_dcp_saves_in_the_background(root: Path) -> None:
    saving = dcp.async_save(state(4), checkpoint_id=f"holdfast://{root}/step-4")
    assert not isinstance(saving, dcp.state_dict_saver.AsyncSaveResponse)
    saving.result()

    found = state(0)
    dcp.load(found, checkpoint_id=f"holdfast://{root}/step-4")
    assert torch.equal(found["model"]["w"], state(4)["model"]["w"])


def test_several_files_of_one_rank_are_one_part(root: Path) -> None:
    many = {f"w{n}": torch.full((1000,), float(n)) for n in range(8)}
    dcp.save(many, storage_writer=FsspecWriter(f"holdfast://{root}/a", thread_count=3))

    found = {name: torch.zeros(1000) for name in many}
    dcp.load(found, checkpoint_id=f"holdfast://{root}/a")

    assert all(torch.equal(found[name], many[name]) for name in many)
    [info] = load.checkpoints(root)
    assert info.world == 1


def test_the_old_one_is_seen_until_metadata_has_its_name(fs: HoldfastFileSystem, root: Path) -> None:
    folder = root / "last"
    put(fs, folder / "__0_0.distcp", b"old")
    finish(fs, folder, b"old, in __0_0.distcp")

    put(fs, folder / "__0_0.distcp", b"new")
    put(fs, folder / ".metadata.tmp", b"new, in __0_0.distcp")
    fs.rm(str(folder / ".metadata"))
    seen = fs.cat_file(f"{folder}/__0_0.distcp"), fs.cat_file(f"{folder}/.metadata")
    fs.rename(str(folder / ".metadata.tmp"), str(folder / ".metadata"))

    assert seen == (b"old", b"old, in __0_0.distcp")
    assert fs.cat_file(f"{folder}/__0_0.distcp") == b"new"
    assert fs.ls(str(folder), detail=False) == [f"{folder}/.metadata", f"{folder}/__0_0.distcp"]
    assert [one.name for one in load.checkpoints(root)] == ["last"]


def test_a_rank_more_is_a_rank_more_in_the_manifest(fs: HoldfastFileSystem, root: Path, rank: Ranks) -> None:
    rank(root / "a", "one", "__1_0.distcp")
    put(fs, root / "a" / "__0_0.distcp", b"zero")

    finish(fs, root / "a", b"__0_0.distcp and __1_0.distcp")

    [info] = load.checkpoints(root)
    assert info.world == 2
    assert fs.cat_file(f"{root}/a/__1_0.distcp") == b"one"


def test_without_a_part_that_metadata_names_there_is_no_checkpoint(fs: HoldfastFileSystem, root: Path) -> None:
    put(fs, root / "a" / "__0_0.distcp", b"zero")

    with pytest.raises(Torn, match=r"__1_0\.distcp of 'a' was not written"):
        finish(fs, root / "a", b"__0_0.distcp and __1_0.distcp")

    assert fs.find(str(root)) == []


def test_what_a_dead_save_left_gets_into_no_other(fs: HoldfastFileSystem, root: Path, rank: Ranks) -> None:
    fs.makedirs(f"{root}/a", exist_ok=True)
    kill(rank(root / "a", "stale", "__1_0.distcp", "__2_0.distcp"))

    fs.makedirs(f"{root}/a", exist_ok=True)
    put(fs, root / "a" / "__0_0.distcp", b"zero")
    with pytest.raises(Torn, match=r"__1_0\.distcp"):
        finish(fs, root / "a", b"__0_0.distcp and __1_0.distcp")
    finish(fs, root / "a", b"__0_0.distcp alone")

    assert fs.ls(f"{root}/a", detail=False) == [f"{root}/a/.metadata", f"{root}/a/__0_0.distcp"]
    assert list((root / "staging").glob("*/*")) == []


def test_two_processes_with_one_file_are_not_one_save(fs: HoldfastFileSystem, root: Path, rank: Ranks) -> None:
    put(fs, root / "a" / "__0_0.distcp", b"old")
    finish(fs, root / "a", b"__0_0.distcp")
    zombie = rank(root / "a", "of an earlier attempt", "__1_0.distcp")
    rank(root / "a", "one", "__1_0.distcp")
    put(fs, root / "a" / "__0_0.distcp", b"zero")

    with pytest.raises(Torn, match=r"two processes wrote __1_0\.distcp"):
        finish(fs, root / "a", b"__0_0.distcp and __1_0.distcp")
    assert fs.cat_file(f"{root}/a/__0_0.distcp") == b"old"

    kill(zombie)
    fs.makedirs(f"{root}/a", exist_ok=True)
    finish(fs, root / "a", b"__0_0.distcp and __1_0.distcp")
    assert fs.cat_file(f"{root}/a/__1_0.distcp") == b"one"


def test_what_a_living_process_holds_stays(fs: HoldfastFileSystem, root: Path, rank: Ranks) -> None:
    rank(root / "later", "one", "__1_0.distcp")
    put(fs, root / "a" / "__0_0.distcp", b"zero")
    finish(fs, root / "a", b"__0_0.distcp")

    put(fs, root / "later" / "__0_0.distcp", b"zero")
    finish(fs, root / "later", b"__0_0.distcp and __1_0.distcp")

    assert fs.cat_file(f"{root}/later/__1_0.distcp") == b"one"


def test_a_process_that_goes_on_to_another_name_lets_go_of_the_last(fs: HoldfastFileSystem, root: Path) -> None:
    put(fs, root / "a" / "__0_0.distcp", b"never finished")

    put(fs, root / "b" / "__0_0.distcp", b"zero")
    finish(fs, root / "b", b"__0_0.distcp")

    assert list((root / "staging").glob("*/*")) == []
    assert fs.find(str(root)) == [f"{root}/b/.metadata", f"{root}/b/__0_0.distcp"]


def test_one_file_of_a_folder_cannot_be_taken_out(fs: HoldfastFileSystem, root: Path) -> None:
    put(fs, root / "a" / "__0_0.distcp", b"zero")
    finish(fs, root / "a", b"__0_0.distcp")

    for file in ("__0_0.distcp", ".metadata"):
        with pytest.raises(UsageError, match="one file of the checkpoint"):
            fs.rm(f"{root}/a/{file}")
    fs.mv(f"{root}/a", f"{root}/b", recursive=True)
    assert fs.find(str(root)) == [f"{root}/b/.metadata", f"{root}/b/__0_0.distcp"]
    fs.rm(f"{root}/b", recursive=True)
    assert fs.find(str(root)) == [] and list(root.glob("packs/*/*")) == []


def test_a_save_without_collectives_is_refused(root: Path) -> None:
    with pytest.raises(UsageError, match="without collectives"):
        dcp.save(state(1), checkpoint_id=f"holdfast://{root}/a", use_collectives=False)


def test_a_failing_save_leaves_the_old_one(root: Path) -> None:
    class Failing(dcp.DefaultSavePlanner):
        def resolve_data(self, write_item: Any) -> Any:
            if "two" in write_item.index.fqn:
                raise KeyError("two")
            return super().resolve_data(write_item)

    two = {"one": torch.ones(5), "two": torch.ones(5)}
    dcp.save(two, checkpoint_id=f"holdfast://{root}/a")
    with pytest.raises(CheckpointException, match="two"):
        dcp.save({k: v + 1 for k, v in two.items()}, checkpoint_id=f"holdfast://{root}/a", planner=Failing())

    found = {"one": torch.zeros(5), "two": torch.zeros(5)}
    dcp.load(found, checkpoint_id=f"holdfast://{root}/a")
    assert torch.equal(found["one"], two["one"]) and torch.equal(found["two"], two["two"])
    assert list((root / "staging").glob("*/*")) == []
