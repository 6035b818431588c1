"""A folder written by an enemy or by chance: an error that names the damage, soon and in little memory."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.checkpoint import canonical, lease, load, manifest, pack, table
from holdfast.checkpoint.canonical import Damaged, NewerFormat
from holdfast.checkpoint.folder import Folder, hint_at_latest
from holdfast.checkpoint.lease import Lease
from holdfast.checkpoint.reading import open_checkpoint
from holdfast.errors import HoldfastError
from tests.slotparts import table_of
from tests.tensorparts import save
from tests.unit.hostile import folders


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints of a few tensors, a lease, a hint."""
    root = tmp_path_factory.mktemp("hostile") / "checkpoints"
    for sequence in (1, 2):
        state = {"model": {"w": torch.full((7, 30), float(sequence)), "b": torch.arange(9)}}
        info = save(root, state, step=10 * sequence, sequence=sequence)
    folder = Folder(root)
    lease.write(folder, Lease(term=1, claim="a", attempt=1, base=None, owner={"pid": 1}, time_s=1.5))
    hint_at_latest(folder, info.path.name)
    return root


@pytest.fixture(scope="module")
def outcomes(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    argv = [sys.executable, "-m", "tests.unit.hostile.folders", str(base), str(tmp_path_factory.mktemp("work"))]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=110, cwd=Path(__file__).parents[3])
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_nothing_but_errors_of_ours_comes_of_it(outcomes: dict[str, Any]) -> None:
    assert [one for one in outcomes["outcomes"] if one["kind"].startswith("UNEXPECTED")] == []


def test_every_damage_is_named(outcomes: dict[str, Any]) -> None:
    silent = [one["case"] for one in outcomes["outcomes"] if not one["said"] and one["case"] not in folders.HARMLESS]
    assert silent == []


def test_the_checkpoint_before_is_found_all_the_same(outcomes: dict[str, Any]) -> None:
    lost = [one["case"] for one in outcomes["outcomes"] if not one["older_is_found"]]
    assert set(lost) <= {"format-of-the-future", "version-0"}  # a later version is refused, never skipped


def test_it_takes_little_memory_and_time(outcomes: dict[str, Any]) -> None:
    assert outcomes["peak_bytes"] < folders.RESIDENT_BYTES
    assert {one["case"]: one["seconds"] for one in outcomes["outcomes"] if one["seconds"] > folders.SECONDS / 2} == {}


def contents(root: Path, info: load.CheckpointInfo) -> dict[str, bytes]:
    with open_checkpoint(root, info) as found:
        read = {}
        for name, tensor in found.tensors.items():
            buffer = bytearray(tensor.size_bytes)
            found.read_into(name, buffer)
            read[name] = bytes(buffer)
        return read


@pytest.mark.parametrize("apart", [97, pytest.param(7, marks=pytest.mark.soak)])
def test_a_flipped_bit_anywhere_never_changes_what_is_read(base: Path, tmp_path: Path, apart: int) -> None:
    root = tmp_path / "copy"
    shutil.copytree(base, root)
    truth = {info.step: contents(root, info) for info in load.checkpoints(root)}
    chance = random.Random(0)
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        whole = path.read_bytes()
        for at in range(0, len(whole), 1 if len(whole) < 400 else apart):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << chance.randrange(8)]) + whole[at + 1 :])
            for info in load.checkpoints(root):
                assert contents_or_damage(root, info) in (truth[info.step], None), f"byte {at} of {path.name}"
        path.write_bytes(whole)


def contents_or_damage(root: Path, info: load.CheckpointInfo) -> dict[str, bytes] | None:
    """None when the damage was named."""
    try:
        return contents(root, info)
    except Damaged as error:
        assert str(error)
        return None


def test_any_two_files_swapped_are_told(base: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(base, root)
    truth = {info.step: contents(root, info) for info in load.checkpoints(root)}
    files = sorted(path for path in root.rglob("*") if path.is_file())
    for one in files:
        for other in files:
            if one < other:
                swap(one, other)
                said = load.problems(root) + [s for info in load.checkpoints(root) for s in load.verify(root, info)]
                assert said, f"{one.name} and {other.name}"
                swap(one, other)
    assert {info.step: contents(root, info) for info in load.checkpoints(root)} == truth


def swap(one: Path, other: Path) -> None:
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5) | st.sampled_from(["../..", "\0", "\u202e", "float32", "os.system"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def places(tree: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every node of a JSON tree."""
    keys = tree.keys() if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    return [at, *(place for key in keys for place in places(tree[key], (*at, key)))]


def with_value(tree: Any, place: tuple[Any, ...], value: Any) -> Any:
    if not place:
        return value
    made = dict(tree) if isinstance(tree, dict) else list(tree)
    made[place[0]] = with_value(tree[place[0]], place[1:], value)
    return made


@settings(max_examples=300, deadline=None)
@given(data=st.data(), value=JSON)
def test_any_value_in_any_place_of_a_manifest_is_taken_or_refused(base: Path, data: st.DataObject, value: Any) -> None:
    tree = json.loads(folders.newest(base).read_bytes())
    raw = canonical.encode(with_value(tree, data.draw(st.sampled_from(places(tree))), value))
    name = f"000001-00000002-{canonical.digest(raw)}.json"
    try:
        manifest.parse(name, raw)
    except (Damaged, NewerFormat) as error:
        assert str(error)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), value=JSON)
def test_any_value_in_any_place_of_a_slot_table_is_taken_or_refused(data: st.DataObject, value: Any) -> None:
    tree, end = table_of()
    made = with_value(tree, data.draw(st.sampled_from(places(tree))), value)
    try:
        if isinstance(made, dict):
            table.check_slot_table(made, end, "slot")
    except Damaged as error:
        assert str(error)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), value=JSON)
def test_any_value_in_any_place_of_a_lease_is_taken_or_refused(base: Path, data: st.DataObject, value: Any) -> None:
    (path,) = (base / "leases").iterdir()
    tree = json.loads(path.read_bytes())
    raw = canonical.encode(with_value(tree, data.draw(st.sampled_from(places(tree))), value))
    try:
        lease.parse(f"000001-{canonical.digest(raw)}.json", raw)
    except (Damaged, NewerFormat) as error:
        assert str(error)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), value=JSON)
def test_any_value_in_any_place_of_a_pack_s_footer_is_taken_or_refused(
    base: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, value: Any
) -> None:
    info = load.checkpoints(base)[-1]
    raw = pack.path(base, info.packs[0].name).read_bytes()
    layout = _layout(base, info.packs[0].name)
    tree = json.loads(layout.footer)
    footer = canonical.encode(with_value(tree, data.draw(st.sampled_from(places(tree))), value))
    made = folders.footed(raw[: layout.footer_at], footer)
    path = tmp_path_factory.getbasetemp() / "one.hfp"
    path.write_bytes(made)
    try:
        pack.check_whole(_open(path), made[-32:].hex())
    except HoldfastError as error:
        assert str(error)


def _layout(root: Path, name: str) -> pack.Layout:
    return pack.read_layout(_open(pack.path(root, name)), name)


class _Bytes:
    """A file in memory."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def size(self) -> int:
        return len(self._raw)

    def read(self, offset: int, parts: list[memoryview]) -> int:
        done = 0
        for part in parts:
            found = self._raw[offset + done : offset + done + part.nbytes] if offset >= 0 else b""
            part[: len(found)] = found
            done += len(found)
        return done


def _open(path: Path) -> Any:
    return _Bytes(path.read_bytes())
