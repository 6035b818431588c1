"""What is on the disk after a power cut, calculated from system calls that were really made."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from bench import syscalls
from bench.medium import WAYS, Medium
from bench.record import Recorded, audit
from bench.syscalls import Create, MakeFolder, Operation, Rename, Said, SyncBegin, SyncEnd, Write
from tests.needs import need_program

CHANCE = random.Random(0)
CAREFUL = """
import os, sys
folder, diary = sys.argv[1:]
said = os.open(diary, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
with open(f"{folder}/draft", "wb") as file:
    file.write(b"one ")
    file.write(b"two")
    file.flush()
    if "fsync" in CARE:
        os.fsync(file.fileno())
os.rename(f"{folder}/draft", f"{folder}/final")
if "folder" in CARE:
    os.fsync(os.open(folder, os.O_RDONLY))
os.write(said, b"saved 1\\n")
"""


def recorded(folder: Path, care: str) -> list[Operation]:
    need_program("strace")
    state = folder / "state"
    state.mkdir()
    program = [sys.executable, "-c", f"CARE = {care!r}{CAREFUL}", str(state), str(folder / "diary")]
    done = subprocess.run([*syscalls.STRACE, "-o", folder / "trace", *program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = syscalls.read(folder / "trace", state, folder / "diary")
    assert not found.unseen
    return found.operations


def after(folder: Path, operations: list[Operation], way: str) -> dict[str, bytes]:
    root = folder / "state"
    for path in root.glob("*"):
        path.unlink()
    root.rmdir()
    medium = Medium(root)
    medium.play(operations)
    medium.write_out(way, CHANCE)
    return {path.name: path.read_bytes() for path in root.iterdir()}


def test_who_fsyncs_file_and_folder_loses_nothing(tmp_path: Path) -> None:
    operations = recorded(tmp_path, "fsync folder")
    found = audit(Recorded(operations), tmp_path / "state", tmp_path / "state")

    assert [after(tmp_path, operations, way) for way in WAYS] == [{"final": b"one two"}] * 3
    assert (found.undurable_bytes, found.undurable_names, found.folder_syncs) == (0, 0, 1)


def test_a_name_needs_the_folders_fsync(tmp_path: Path) -> None:
    operations = recorded(tmp_path, "fsync")

    assert after(tmp_path, operations, "posix") == {}
    assert after(tmp_path, operations, "journal") == {"final": b"one two"}


def test_contents_need_the_files_fsync(tmp_path: Path) -> None:
    operations = recorded(tmp_path, "folder")
    found = audit(Recorded(operations), tmp_path / "state", tmp_path / "state")

    assert after(tmp_path, operations, "posix") == {"final": b""}
    assert found.undurable_bytes == 7


def test_what_is_written_while_an_fsync_runs_is_not_durable(tmp_path: Path) -> None:
    path = str(tmp_path / "state" / "file")
    sync = [SyncBegin(2, str(tmp_path / "state")), SyncEnd(2)]
    operations = [Create(path, True), *sync, SyncBegin(1, path), Write(path, 0, b"late"), SyncEnd(1)]
    (tmp_path / "state").mkdir()

    assert after(tmp_path, operations, "posix") == {"file": b""}


def test_hazards_are_named() -> None:
    big = b"x" * (1 << 20)
    operations = [
        MakeFolder("/s"), Create("/s/a", True), Write("/s/a", 0, big), Said("saved 1"),
        Create("/s/a", True), Write("/s/a", 0, big.upper()), Rename("/s/a", "/s/b"), Said("saved 2"),
    ]  # fmt: skip

    assert audit(Recorded(operations), Path("/s"), Path("/s")).hazards == {
        "truncates the file that holds the last save",
        "renames what was not fsynced",
    }


@pytest.mark.parametrize("way", WAYS)
def test_what_was_written_back_stays(tmp_path: Path, way: str) -> None:
    path = str(tmp_path / "state" / "file")
    (tmp_path / "state").mkdir()
    medium = Medium(tmp_path / "state")
    medium.play([Create(path, True), Write(path, 0, b"old")])
    medium.sync()
    (tmp_path / "state").rmdir()
    medium.write_out(way, CHANCE)

    assert (tmp_path / "state" / "file").read_bytes() == b"old"
