"""The storage of torch_checkpointing: its own manager over it, and the table of its rename."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch_checkpointing.builder import SyncCheckpointSaverConfig
from torch_checkpointing.checkpoint_manager import CheckpointManager

from holdfast.checkpoint import load
from holdfast.checkpoint.canonical import Damaged
from holdfast.integrations.torch_checkpointing import HoldfastStorage, HoldfastStorageConfig


@pytest.fixture
def storage() -> HoldfastStorage:
    made: HoldfastStorage = pickle.loads(pickle.dumps(HoldfastStorageConfig())).create_storage()
    return made


def manager() -> CheckpointManager:
    return CheckpointManager(
        CheckpointManager.Config(save=SyncCheckpointSaverConfig(), storage_config=HoldfastStorageConfig())
    )


def state(value: float) -> dict[str, Any]:
    return {"model": {"w": torch.full((200, 300), value)}, "progress": {"step": int(value)}}


def commit(storage: HoldfastStorage, root: Path, name: str, **files: bytes) -> None:
    storage.mkdir(root / f"tmp_{name}")
    for file, data in files.items():
        storage.write(root / f"tmp_{name}" / file, data)
    storage.rename(root / f"tmp_{name}", root / name, is_directory=True)


def test_its_manager_saves_and_loads(root: Path) -> None:
    saving = manager()
    saving.save(str(root / "step-3"), state(3))
    saving.save(str(root / "step-4"), state(4))

    found = manager().load(str(root / "step-3"), state(0))

    assert torch.equal(found["model"]["w"], state(3)["model"]["w"]) and found["progress"]["step"] == 3
    infos = load.checkpoints(root)
    assert [(info.name, info.step) for info in infos] == [("step-3", 3), ("step-4", 4)]
    assert [load.verify(root, info) for info in infos] == [[], []]
    assert list((root / "staging").glob("*/*")) == []


def test_damage_reaches_who_loads(root: Path) -> None:
    manager().save(str(root / "step-3"), state(3))
    for pack in root.glob("packs/*/*.hfp"):
        raw = bytearray(pack.read_bytes())
        raw[6000] ^= 1
        pack.write_bytes(raw)

    with pytest.raises(Damaged, match=r"step-3/model_0\.pt"):
        manager().load(str(root / "step-3"), state(0))


def test_nothing_is_seen_before_the_rename(storage: HoldfastStorage, root: Path) -> None:
    storage.mkdir(root / "tmp_a")
    storage.write(root / "tmp_a" / "model_0.pt", b"zero")
    storage.write(root / "tmp_a" / "sub" / "model_1.pt", b"one")
    assert (storage.exists(root / "tmp_a"), storage.exists(root / "a")) == (True, False)

    storage.rename(root / "tmp_a", root / "a", is_directory=True)

    assert (storage.exists(root / "tmp_a"), storage.isdir(root / "a")) == (False, True)
    assert sorted(storage.ls(root / "a")) == ["model_0.pt", "sub"]
    assert storage.read(root / "a" / "sub" / "model_1.pt") == b"one"
    assert storage.getsize(root / "a" / "model_0.pt") == 4
    assert storage.glob(str(root / "a" / "model_*")) == [str(root / "a" / "model_0.pt")]


def test_a_name_that_is_taken_is_not_taken_away(storage: HoldfastStorage, root: Path) -> None:
    commit(storage, root, "a", old=b"old")

    with pytest.raises(FileExistsError):
        commit(storage, root, "a", new=b"new")

    assert storage.ls(root / "a") == ["old"]


def test_files_replace_files_and_no_folders(storage: HoldfastStorage, root: Path) -> None:
    commit(storage, root, "a", old=b"old")
    storage.write(root / "latest.new", b"a")
    storage.write(root / "latest", b"before")

    storage.rename(root / "latest.new", root / "latest")
    assert storage.read(root / "latest") == b"a"
    with pytest.raises(FileExistsError):
        storage.rename(root / "latest", root / "a")


def test_removing(storage: HoldfastStorage, root: Path) -> None:
    commit(storage, root, "a", old=b"old")
    storage.mkdir(root / "tmp_b")
    storage.write(root / "tmp_b" / "x", b"x")

    storage.rmdir(root / "a")
    storage.delete(root / "tmp_b" / "x")

    assert (storage.exists(root / "a"), storage.exists(root / "tmp_b")) == (False, False)
    assert list((root / "staging").glob("*/*")) == []
    with pytest.raises(FileNotFoundError):
        storage.stream_read(root / "a" / "old")
