"""`holdfast://` as people use it: whole files or none, old until new, verified, never somebody else's folder."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import fsspec
import pytest
import torch

import holdfast
from holdfast.checkpoint import canonical, load
from holdfast.checkpoint.canonical import Damaged
from holdfast.checkpoint.reading import open_checkpoint
from holdfast.errors import UsageError
from holdfast.formats import base
from holdfast.integrations import catalog
from holdfast.integrations.filesystem import HoldfastFileSystem


def put(root: Path, name: str, data: bytes) -> None:
    with fsspec.open(f"holdfast://{root}/{name}", "wb") as file:
        file.write(data)


def packs(root: Path) -> list[Path]:
    return sorted(root.glob("packs/*/*.hfp"))


def stored_bytes(root: Path) -> int:
    return sum(path.stat().st_size for path in packs(root))


def test_the_entry_point_gives_the_filesystem_to_fsspec() -> None:
    assert isinstance(fsspec.filesystem("holdfast"), HoldfastFileSystem)


def test_torch_saves_and_loads_through_a_url(root: Path) -> None:
    state = {"w": torch.randn(700, 1000), "step": 7}

    with fsspec.open(f"holdfast://{root}/model.pt", "wb") as file:
        torch.save(state, file)

    with fsspec.open(f"holdfast://{root}/model.pt", "rb") as file:
        found = torch.load(file)
    assert torch.equal(found["w"], state["w"]) and found["step"] == 7
    [info] = load.checkpoints(root)
    assert (info.name, load.verify(root, info)) == ("model.pt", [])


def test_any_range_of_a_file_can_be_read(fs: HoldfastFileSystem, root: Path) -> None:
    data, rng = random.Random(5).randbytes(9 << 20), random.Random(6)
    put(root, "a.bin", data)

    with fs.open(f"{root}/a.bin", "rb") as file:
        for _ in range(40):
            at, count = rng.randrange(len(data)), rng.choice((1, 70, 5000, 3 << 20, 8 << 20))
            file.seek(at)
            assert file.read(count) == data[at : at + count]
        assert file.seek(-5, os.SEEK_END) == len(data) - 5
        assert file.read() == data[-5:]
    assert fs.cat_file(f"{root}/a.bin", -9, -2) == data[-9:-2]


@pytest.mark.parametrize("size", [0, 1, 4096, (2 << 20) - 1, 2 << 20, (4 << 20) + 1])
def test_files_of_every_size_come_back(fs: HoldfastFileSystem, root: Path, size: int) -> None:
    data = random.Random(size).randbytes(size)
    put(root, "a.bin", data)

    assert fs.cat_file(f"{root}/a.bin") == data
    assert fs.info(f"{root}/a.bin")["size"] == size


def test_writes_of_every_size_make_one_file(fs: HoldfastFileSystem, root: Path) -> None:
    pieces = [random.Random(n).randbytes(n) for n in (1, 100, 300 << 10, 7, 3 << 20, 0, 2 << 20, 5)]

    with fs.open(f"{root}/a.bin", "wb") as file:
        for piece in pieces:
            file.write(piece)
        assert file.tell() == sum(map(len, pieces))

    assert fs.cat_file(f"{root}/a.bin") == b"".join(pieces)


def test_a_file_appears_when_it_is_closed_and_the_old_one_stays_until_then(fs: HoldfastFileSystem, root: Path) -> None:
    put(root, "a", b"old")

    file = fs.open(f"{root}/a", "wb")
    file.write(b"new")

    assert fs.cat_file(f"{root}/a") == b"old"
    file.close()
    assert fs.cat_file(f"{root}/a") == b"new"
    assert [info.name for info in load.checkpoints(root)] == ["a"]


def test_who_reads_keeps_what_he_opened(fs: HoldfastFileSystem, root: Path) -> None:
    old = random.Random(1).randbytes(5 << 20)
    put(root, "a", old)

    with fs.open(f"{root}/a", "rb") as file:
        put(root, "a", b"new")
        put(root, "b", b"other")
        assert file.read() == old
    put(root, "c", b"the old one goes now")

    assert fs.cat_file(f"{root}/a") == b"new"
    assert sorted(info.name for info in load.checkpoints(root)) == ["a", "b", "c"]


@pytest.mark.parametrize("through_fsspec", [True, False])
def test_an_error_while_writing_leaves_the_old_file(fs: HoldfastFileSystem, root: Path, through_fsspec: bool) -> None:
    put(root, "a", b"old")
    opened = fsspec.open(f"holdfast://{root}/a", "wb") if through_fsspec else fs.open(f"{root}/a", "wb")

    with pytest.raises(KeyError), opened as file:
        file.write(b"ne")
        raise KeyError

    assert fs.cat_file(f"{root}/a") == b"old"
    assert list((root / "staging").glob("*/*")) == []


def test_a_file_that_nobody_closed_is_no_file(fs: HoldfastFileSystem, root: Path) -> None:
    file = fs.open(f"{root}/a", "wb")
    file.write(b"ne")
    del file

    assert not fs.exists(f"{root}/a")


def test_saving_because_of_an_exception_is_saving(fs: HoldfastFileSystem, root: Path) -> None:
    try:
        raise KeyError
    except KeyError:
        put(root, "last.ckpt", b"saved on the way out")

    assert fs.cat_file(f"{root}/last.ckpt") == b"saved on the way out"


def test_a_transaction_decides_for_its_files(fs: HoldfastFileSystem, root: Path) -> None:
    put(root, "a", b"old")
    with pytest.raises(KeyError), fs.transaction:
        with fs.open(f"{root}/a", "wb") as file:
            file.write(b"new")
        raise KeyError
    assert fs.cat_file(f"{root}/a") == b"old"

    with fs.transaction:
        with fs.open(f"{root}/a", "wb") as file:
            file.write(b"new")
        assert fs.cat_file(f"{root}/a") == b"old"
    assert fs.cat_file(f"{root}/a") == b"new"


def test_a_tensor_that_has_not_changed_is_not_written_again(root: Path) -> None:
    frozen, torch_seeded = torch.randn(2_000_000), torch.Generator().manual_seed(3)
    for step in range(3):
        with fsspec.open(f"holdfast://{root}/step-{step}.pt", "wb") as file:
            head = torch.randn(1000 + 300 * step, generator=torch_seeded)  # moves what follows it
            torch.save({"head": head, "note": "x" * step, "frozen": frozen}, file)

    assert stored_bytes(root) < 1.2 * frozen.nbytes


def test_a_flipped_byte_is_named_with_the_file(fs: HoldfastFileSystem, root: Path) -> None:
    put(root, "run/a.bin", random.Random(1).randbytes(100_000))
    [pack] = packs(root / "run")
    raw = bytearray(pack.read_bytes())
    raw[50_000] ^= 1
    pack.write_bytes(raw)

    with pytest.raises(Damaged, match=r"a\.bin: pack .* has a damaged chunk"):
        fs.cat_file(f"{root}/run/a.bin")


def test_a_damaged_manifest_is_not_taken_for_an_absent_file(
    fs: HoldfastFileSystem, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(root, "a", b"there")
    [manifest] = (root / "manifests").iterdir()
    manifest.write_bytes(manifest.read_bytes().replace(b'"a"', b'"b"', 1))

    with pytest.raises(Damaged, match="does not match the hash in its name"):
        fs.open(f"{root}/a", "rb")
    monkeypatch.setattr(catalog, "_catalogs", {})  # as another process sees it
    with pytest.raises(Damaged, match="'a' is not among the checkpoints"):
        fs.exists(f"{root}/a")
    with pytest.raises(Damaged):
        fs.open(f"{root}/a", "rb")


def test_names_are_listed_found_moved_and_removed(fs: HoldfastFileSystem, root: Path) -> None:
    for name in ("x/one.pt", "x/two.pt", "three.pt"):
        fs.makedirs(f"{root}/x", exist_ok=True)
        put(root, name, name.encode())
    # the first file made its own folder a checkpoint folder; the rest lies in the one above
    assert fs.ls(f"{root}/x", detail=False) == [f"{root}/x/one.pt", f"{root}/x/two.pt"]
    assert fs.glob(f"{root}/**/*.pt") == [f"{root}/three.pt", f"{root}/x/one.pt", f"{root}/x/two.pt"]
    assert (fs.isdir(f"{root}/x"), fs.isfile(f"{root}/x/one.pt")) == (True, True)

    fs.mv(f"{root}/x/one.pt", f"{root}/x/first.pt")
    assert fs.cat_file(f"{root}/x/first.pt") == b"x/one.pt"
    fs.cp_file(f"{root}/x/two.pt", f"{root}/copy.pt")
    assert fs.cat_file(f"{root}/copy.pt") == b"x/two.pt"

    fs.rm(f"{root}/x/first.pt")
    assert not fs.exists(f"{root}/x/first.pt")
    with pytest.raises(FileNotFoundError):
        fs.rm(f"{root}/x/first.pt")
    with pytest.raises(FileNotFoundError):
        fs.ls(f"{root}/nowhere")


def test_files_are_not_taken_for_an_empty_state(root: Path, tmp_path: Path) -> None:
    put(root, "model.pt", b"bytes")

    with pytest.raises(UsageError, match="holds files"):
        holdfast.load(root)
    with pytest.raises(UsageError, match="holds files"), open_checkpoint(root, load.checkpoints(root)[0]) as checkpoint:
        base.write("pt", checkpoint, tmp_path / "out.pt", base.Choice(), force=False)
    assert not (tmp_path / "out.pt").exists()


def test_what_was_removed_on_purpose_is_not_missed(fs: HoldfastFileSystem, root: Path) -> None:
    for name in ("old.pt", "new.pt"):
        put(root, name, name.encode() * 100)

    fs.rm(f"{root}/new.pt")
    assert load.problems(root) == []
    fs.rm(f"{root}/old.pt")

    assert load.problems(root) == []


def test_removing_a_folder_removes_what_is_below_it(fs: HoldfastFileSystem, root: Path) -> None:
    put(root, "keep", b"k")
    for name in ("x/one", "x/y/two", "xy"):
        put(root, name, name.encode())

    with pytest.raises(IsADirectoryError):
        fs.rm(f"{root}/x")
    fs.rm(f"{root}/x", recursive=True)

    assert fs.find(str(root)) == [f"{root}/keep", f"{root}/xy"]
    assert len(packs(root)) == 2


def test_appending_and_creating(fs: HoldfastFileSystem, root: Path) -> None:
    for line in ("a\n", "b\n"):
        with fs.open(f"{root}/metrics.csv", "a", newline="") as file:
            file.write(line)
    with fs.open(f"{root}/metrics.csv", "r") as file:
        assert file.read() == "a\nb\n"
    with pytest.raises(FileExistsError):
        fs.open(f"{root}/metrics.csv", "xb")
    with pytest.raises(UsageError, match="written once"):
        fs.open(f"{root}/metrics.csv", "r+b")


def test_a_folder_of_other_files_is_left_alone(fs: HoldfastFileSystem, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("print()")

    with pytest.raises(UsageError, match=r"holds other files \(train.py\)") as told:
        fs.open(f"{tmp_path}/model.pt", "wb")

    assert told.value.hint.endswith("/checkpoints")
    assert [one.name for one in tmp_path.iterdir()] == ["train.py"]


@pytest.mark.parametrize("name", ["packs/x", "manifests", "format.json", "staging/x/y"])
def test_what_a_checkpoint_folder_consists_of_is_no_name(fs: HoldfastFileSystem, root: Path, name: str) -> None:
    put(root, "a", b"a")

    with pytest.raises(UsageError, match="itself"):
        fs.open(f"{root}/{name}", "wb")
    assert fs.ls(str(root), detail=False) == [f"{root}/a"]


def test_a_relative_url_is_told(fs: HoldfastFileSystem) -> None:
    with pytest.raises(UsageError, match="no absolute path"):
        fs.open("holdfast://ckpts/a", "rb")


def test_the_folder_of_a_run_is_left_alone(fs: HoldfastFileSystem, root: Path) -> None:
    put(root, "a", b"a")
    from holdfast.checkpoint import lease
    from holdfast.checkpoint.folder import Folder

    lease.write(Folder(root), lease.Lease(term=1, claim="c", attempt=1, base=None, owner={}, time_s=0.0))

    with pytest.raises(UsageError, match="folder of a run"):
        put(root, "b", b"b")
    assert not fs.exists(f"{root}/b")


@pytest.mark.parametrize("names", [{"files": {"../../evil": 5}}, {"name": "../elsewhere"}, {"name": "/etc/evil"}])
def test_names_that_lead_out_of_the_folder_are_damage(
    fs: HoldfastFileSystem, root: Path, tmp_path: Path, names: dict[str, object]
) -> None:
    put(root, "good", b"hello")
    put(root, "bad", b"hello")
    path = max((root / "manifests").iterdir())
    tree = json.loads(path.read_bytes())
    tree["ranks"][0]["table"].update({"kind": "folder", "files": {"ok": 5}, **names})
    raw = canonical.encode(tree)
    path.unlink()
    path.with_name(f"{path.name[:16]}{canonical.digest(raw)}.json").write_bytes(raw)

    assert fs.find(str(root)) == [str(root / "good")]
    fs.get(str(root), str(tmp_path / "copied"), recursive=True)
    assert [path.name for path in (tmp_path / "copied").rglob("*") if path.is_file()] == ["good"]
    with pytest.raises(Damaged, match="would lie elsewhere"):
        fs.info(str(root / "bad"))
