"""Every format: what is written is read back, by us and by the tools it is for; a file is whole or not there."""

from __future__ import annotations

import errno
import json
import resource
import subprocess
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException

import holdfast
from holdfast.checkpoint import pack
from holdfast.checkpoint.canonical import Damaged
from holdfast.checkpoint.load import CheckpointInfo
from holdfast.checkpoint.reading import open_checkpoint
from holdfast.errors import StoreRefused, UsageError
from holdfast.formats import base
from holdfast.fsio import DISK
from tests.cgroups import limited
from tests.labs.disks import loop_ext4
from tests.tensorparts import save

CHOICE = base.Choice(names=("model",))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 700, dtype=torch.bfloat16)
        self.norm = nn.BatchNorm1d(700)
        self.head = nn.Linear(700, 50, bias=False, dtype=torch.bfloat16)
        self.head.weight = self.embed.weight
        self.register_buffer("mask", torch.ones(3, 3, dtype=torch.bool).tril())
        self.register_buffer("none", torch.empty(0, 3))


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    return Net()


@pytest.fixture(scope="module")
def saved(net: Net, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CheckpointInfo]:
    root = tmp_path_factory.mktemp("formats") / "checkpoints"
    optimizer = torch.optim.AdamW(net.parameters())
    net.embed.weight.grad = torch.ones_like(net.embed.weight)
    optimizer.step()
    return root, save(root, {"model": net.state_dict(), "optimizer": optimizer.state_dict()}, step=7)


def export(
    name: str, saved: tuple[Path, CheckpointInfo], into: Path, choice: base.Choice = CHOICE, **how: Any
) -> list[str]:
    with open_checkpoint(*saved) as checkpoint:
        return base.write(name, checkpoint, into, choice, **{"force": False, **how})


def same(found: dict[str, Any], net: Net, *, tied: bool = True) -> None:
    expected = dict(net.state_dict())
    if not tied:
        del expected["head.weight"]
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == value.dtype
        assert torch.equal(found[key], value), key


@pytest.mark.parametrize("name", base.NAMES)
def test_what_a_format_writes_it_reads(name: str, saved: tuple[Path, CheckpointInfo], net: Net, tmp_path: Path) -> None:
    assert base.named(name).SAYS
    export(name, saved, tmp_path / "out")

    found = base.state_dict_of(base.named(name).read(tmp_path / "out"), None)

    same(found, net, tied=name in ("pt", "dcp"))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", base.NAMES)
def test_an_existing_target_stays_unless_forced(name: str, saved: tuple[Path, CheckpointInfo], tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(name, saved, out)
    before = sorted(out.rglob("*"))

    with pytest.raises(UsageError, match="is there already"):
        export(name, saved, out)
    export(name, saved, out, force=True)

    assert sorted(out.rglob("*")) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", base.NAMES)
def test_damage_leaves_nothing_behind(name: str, net: Net, tmp_path: Path) -> None:
    info = save(tmp_path / "checkpoints", {"model": net.state_dict()})
    path = pack.path(tmp_path / "checkpoints", info.packs[0].name)
    raw = bytearray(path.read_bytes())
    raw[4200] ^= 1
    path.write_bytes(raw)

    with pytest.raises(Damaged):
        export(name, (tmp_path / "checkpoints", info), tmp_path / "out")

    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]


def test_pt_is_what_load_gives(saved: tuple[Path, CheckpointInfo], net: Net, tmp_path: Path) -> None:
    export("pt", saved, tmp_path / "all.pt", base.Choice())

    found = torch.load(tmp_path / "all.pt", weights_only=True)

    assert list(found) == ["model", "optimizer"]
    same(found["model"], net)
    assert found["model"]["head.weight"].data_ptr() == found["model"]["embed.weight"].data_ptr()
    torch.optim.AdamW(Net().parameters()).load_state_dict(found["optimizer"])


def test_safetensors_is_read_by_its_own_package(saved: tuple[Path, CheckpointInfo], net: Net, tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file, load_model

    said = export("safetensors", saved, tmp_path / "model.safetensors")

    same(load_file(tmp_path / "model.safetensors"), net, tied=False)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata()["holdfast.step"] == "7"
        assert file.metadata()["head.weight"] == "embed.weight"
    assert said == ["head.weight is embed.weight, written once"]
    other = Net()
    load_model(other, tmp_path / "model.safetensors")
    same(other.state_dict(), net)


def test_safetensors_of_the_package_is_read_by_us(net: Net, tmp_path: Path) -> None:
    from safetensors.torch import save_model

    save_model(net, str(tmp_path / "model.safetensors"))

    same(base.named("safetensors").read(tmp_path / "model.safetensors"), net, tied=False)


def test_wrapped_names_are_exported_plain(net: Net, tmp_path: Path) -> None:
    wrapped = {f"module._orig_mod.{key}": value for key, value in net.state_dict().items()}
    info = save(tmp_path / "checkpoints", {"model": wrapped})

    export("safetensors", (tmp_path / "checkpoints", info), tmp_path / "out.safetensors")

    same(base.named("safetensors").read(tmp_path / "out.safetensors"), net, tied=False)


def test_weights_are_exported_where_there_is_no_torch(saved: tuple[Path, CheckpointInfo], tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['numpy'] = None\n"
        "from holdfast.__main__ import run; sys.exit(run(sys.argv[1:]))"
    )

    def export_without_torch(*argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code, "ckpt", "export", str(saved[0]), *argv], capture_output=True, text=True
        )

    done = export_without_torch(str(tmp_path / "m.safetensors"))
    refused = export_without_torch(str(tmp_path / "m.pt"))

    assert (done.returncode, (tmp_path / "m.safetensors").exists()) == (0, True), done.stderr
    assert (refused.returncode, (tmp_path / "m.pt").exists()) == (1, False)
    assert refused.stderr.startswith("error: an export to pt needs torch, which the Python of holdfast lacks")


def test_huggingface_is_sharded_with_an_index_and_has_its_config(
    saved: tuple[Path, CheckpointInfo], net: Net, tmp_path: Path
) -> None:
    (tmp_path / "base").mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "old.safetensors"):
        (tmp_path / "base" / name).write_text("{}")

    export("huggingface", saved, tmp_path / "out", base.Choice(config=tmp_path / "base", shard_bytes=5000))

    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names >= {"config.json", "tokenizer.json", "tokenizer_config.json", *index["weight_map"].values()}
    assert "old.safetensors" not in names
    assert len(set(index["weight_map"].values())) > 1
    assert index["metadata"]["total_size"] == sum(t.nbytes for k, t in net.state_dict().items() if k != "head.weight")
    same(base.named("huggingface").read(tmp_path / "out"), net, tied=False)


def test_huggingface_is_read_where_its_files_are_links_as_in_the_hub_s_cache(
    saved: tuple[Path, CheckpointInfo], net: Net, tmp_path: Path
) -> None:
    export("huggingface", saved, tmp_path / "blobs", base.Choice(shard_bytes=5000))
    (tmp_path / "snapshot").mkdir()
    for path in (tmp_path / "blobs").iterdir():
        (tmp_path / "snapshot" / path.name).symlink_to(f"../blobs/{path.name}")

    same(base.named("huggingface").read(tmp_path / "snapshot"), net, tied=False)


def test_dcp_is_loaded_by_torch_and_torch_s_is_loaded_by_us(
    saved: tuple[Path, CheckpointInfo], net: Net, tmp_path: Path
) -> None:
    from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
    from torch.distributed.checkpoint.state_dict_loader import load
    from torch.distributed.checkpoint.state_dict_saver import save as save_dcp

    export("dcp", saved, tmp_path / "ours", base.Choice())
    target = {"model": {key: torch.empty_like(value) for key, value in net.state_dict().items()}}
    optimizer = holdfast.load(saved[0])["optimizer"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load(target, storage_reader=FileSystemReader(tmp_path / "ours"), no_dist=True)
        save_dcp(
            {"model": net.state_dict(), "optimizer": optimizer},
            storage_writer=FileSystemWriter(tmp_path / "theirs"),
            no_dist=True,
        )

    same(target["model"], net)
    found = base.named("dcp").read(tmp_path / "theirs")
    same(found["model"], net)
    assert torch.equal(found["optimizer"]["state"]["0"]["exp_avg"], optimizer["state"][0]["exp_avg"])
    assert found["optimizer"]["param_groups"] == optimizer["param_groups"]


def test_what_torch_writes_under_the_first_pythons_3_11_is_read_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.distributed.checkpoint import FileSystemWriter
    from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING
    from torch.distributed.checkpoint.state_dict_saver import save as save_dcp

    monkeypatch.setattr(_MEM_FORMAT_ENCODING, "__reduce_ex__", lambda self, _: (getattr, (type(self), self.name)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save_dcp({"w": torch.ones(9)}, storage_writer=FileSystemWriter(tmp_path / "dcp"), no_dist=True)

    assert b"getattr" in (tmp_path / "dcp" / ".metadata").read_bytes()
    assert torch.equal(base.named("dcp").read(tmp_path / "dcp")["w"], torch.ones(9))


@pytest.mark.parametrize("name", base.NAMES)
def test_a_file_is_no_folder_and_a_folder_no_file(name: str, tmp_path: Path) -> None:
    folder = name in ("huggingface", "dcp")
    (tmp_path / "file").write_bytes(b"x")

    with pytest.raises(UsageError, match=f"is a {'file' if folder else 'folder'}, and"):
        base.read(name, tmp_path / "file" if folder else tmp_path)


def test_what_is_no_pt_file_is_told_in_a_sentence(tmp_path: Path) -> None:
    for content, said in ((b"", "is empty"), (b"\xa0\xa1", "is not loaded: [^.]*Unsupported operand 160\nhint")):
        (tmp_path / "junk.pt").write_bytes(content)
        with pytest.raises(base.Unreadable, match=said):
            base.read("pt", tmp_path / "junk.pt")


@pytest.mark.parametrize("name", base.NAMES)
def test_a_disk_that_takes_no_more_is_told_in_a_sentence(
    name: str, saved: tuple[Path, CheckpointInfo], tmp_path: Path
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # EFBIG, as a full disk but without one
    try:
        with pytest.raises(StoreRefused, match=r"(out cannot be written|has no room for .*): File too large"):
            export(name, saved, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_export_left_goes_with_the_next_one_and_a_living_one_stays(
    saved: tuple[Path, CheckpointInfo], tmp_path: Path
) -> None:
    for name in ("dead", "alive"):
        (tmp_path / f".out [1].{name}.tmp").mkdir()
        (tmp_path / f".out [1].{name}.tmp" / "out [1]").write_bytes(b"half")
    lock = DISK.lock(tmp_path / ".out [1].alive.tmp")
    assert lock is not None

    export("safetensors", saved, tmp_path / "out [1]")

    lock.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out [1].alive.tmp", "out [1]"]


def test_what_torch_makes_of_a_full_disk_is_told_as_that(tmp_path: Path) -> None:
    full = RuntimeError("unexpected pos 704 vs 598")
    full.__context__ = OSError(errno.ENOSPC, "No space left on device")
    for error in (full, CheckpointException("write", {0: (full, traceback.StackSummary())})):
        with pytest.raises(StoreRefused, match="out cannot be written: No space left"), base.writing(tmp_path / "out"):
            raise error
    with pytest.raises(RuntimeError), base.writing(tmp_path / "out"):
        raise RuntimeError("something else")


def test_what_holds_no_weights_is_told(saved: tuple[Path, CheckpointInfo], tmp_path: Path) -> None:
    for names in (("ema",), ("optimizer",), ("model", "optimizer")):
        with pytest.raises(UsageError):
            export("safetensors", saved, tmp_path / "out", base.Choice(names=names))
    with pytest.raises(UsageError, match="holds no config"):
        export("huggingface", saved, tmp_path / "out", base.Choice(config=tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.Tensor, Path]:
    """A tensor of 400 MiB, and a checkpoint folder with it."""
    root, made = tmp_path_factory.mktemp("big"), torch.arange(50 << 20, dtype=torch.int64).view(100, -1)
    return made, save(root, {"model": {"big": made}}).path.parents[1]


@pytest.mark.parametrize("name", ["pt", "dcp"])
def test_an_export_needs_less_memory_than_the_state_has(
    name: str, big: tuple[torch.Tensor, Path], tmp_path: Path
) -> None:
    limit_bytes = 360 << 20
    argv = [sys.executable, "-m", "holdfast", "ckpt", "export", str(big[1]), str(tmp_path / "out")]
    with limited(limit_bytes) as group:
        done = subprocess.run(group.argv([*argv, "--format", name]), capture_output=True, text=True)
        assert (done.returncode, group.oom_kills()) == (0, 0), done.stderr

    found = base.state_dict_of(base.named(name).read(tmp_path / "out"), None)["big"]
    assert big[0].nbytes > limit_bytes
    assert torch.equal(found, big[0])


@pytest.mark.parametrize("name", ["pt", "dcp"])
def test_an_export_without_room_for_it_says_how_much_it_needs(name: str, tmp_path: Path) -> None:
    info = save(tmp_path / "checkpoints", {"model": {"big": torch.zeros(4 << 20)}})
    with loop_ext4(tmp_path, 12 << 20) as (disk, _):
        with pytest.raises(StoreRefused, match=r"has no room for 16\.0 MiB to gather the state in: No space left"):
            export(name, (tmp_path / "checkpoints", info), disk / "out")
        assert [path.name for path in disk.iterdir()] == ["lost+found"]
