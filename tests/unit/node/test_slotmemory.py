"""Slots are found again by whoever comes next, and only what is ours is taken for one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from holdfast.node.slotmemory import SLOTS_PER_RANK, SlotFiles, _open_again, living_memory, new_memory
from tests.needs import need


@pytest.fixture
def files(tmp_path: Path) -> SlotFiles:
    return SlotFiles(tmp_path / "ram", "holdfast-ab12", "deadbeef")


def close(fds: list[int]) -> None:
    for descriptor in fds:
        os.close(descriptor)


def open_now() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def names(files: SlotFiles) -> list[str]:
    return sorted(path.name for path in files.folder.iterdir())


def test_files_are_the_same_for_the_next_one_and_ours_alone(files: SlotFiles) -> None:
    first = files.open(3)
    os.pwrite(first[1], b"a copy", 0)
    close(first)

    again = files.open(3)

    assert os.pread(again[1], 10, 0) == b"a copy"
    assert files.ranks() == [3]
    assert {os.fstat(descriptor).st_mode & 0o777 for descriptor in again} == {0o600}
    close(again)


def test_files_of_an_earlier_boot_go_and_a_rank_s_own_go_alone(files: SlotFiles) -> None:
    for one, rank in ((SlotFiles(files.folder, files.run, "0ddb0075"), 0), (files, 1), (files, 2)):
        close(one.open(rank))

    assert files.ranks() == [1, 2]
    assert not any("0ddb0075" in name for name in names(files))
    files.remove(1)
    assert files.ranks() == [2]
    files.remove()
    assert names(files) == []


def link(path: Path, mine: Path) -> None:
    path.symlink_to(mine)


def second_name(path: Path, mine: Path) -> None:
    path.hardlink_to(mine)


def pipe(path: Path, mine: Path) -> None:
    os.mkfifo(path, 0o600)


def readable(path: Path, mine: Path) -> None:
    path.touch()
    path.chmod(0o644)


@pytest.mark.parametrize("made", [link, second_name, pipe, readable])
def test_what_is_no_file_of_ours_alone_is_no_slot(
    files: SlotFiles, tmp_path: Path, made: Callable[[Path, Path], None]
) -> None:
    mine = tmp_path / "mine"
    mine.touch(mode=0o600)
    files.folder.mkdir()
    made(files.folder / "holdfast-ab12-deadbeef-00000-1", mine)
    before = open_now()

    with pytest.raises(OSError, match=r"not a file of ours alone|symbolic links"):
        files.open(0)

    assert (open_now(), names(files), mine.exists()) == (before, [], True)


def test_the_plan_says_where_files_lie(tmp_path: Path) -> None:
    def of(**memory: object) -> SlotFiles | None:
        plan = {"checkpoint": {"memory": {"dir": "", "auto": True, "steps": None, "seconds": None, **memory}}}
        (tmp_path / "plan.json").write_text(json.dumps(plan))
        return SlotFiles.of(tmp_path, tmp_path / "ab12", "deadbeef-0123")

    assert of() is None
    assert of(dir="/ram", auto=False) is None
    assert of(dir="/ram") == of(dir="/ram", auto=False, steps=1)
    assert of(dir="/ram") == SlotFiles(Path("/ram"), "holdfast-ab12", "deadbeef")


def test_what_another_has_in_the_place_of_a_slot_is_not_taken(tmp_path: Path) -> None:
    need(os.geteuid() == 0, "needs root to give memory to another user")
    name = f"holdfast-{tmp_path.name}-{os.getpid()}"
    fds = new_memory(name, 0)
    os.fchown(fds[1], 12345, 12345)
    before = open_now()

    assert living_memory(name) == {}
    with pytest.raises(OSError, match="is not /memfd:another"):  # closed since it was listed, and the number used again
        _open_again(Path(f"/proc/self/fd/{fds[0]}"), "/memfd:another")

    assert open_now() == before
    close(fds)


def test_of_memory_the_newest_whole_set_of_each_rank_is_found(tmp_path: Path) -> None:
    name = f"holdfast-{tmp_path.name}-{os.getpid()}"
    older, newer, other = new_memory(name, 0), new_memory(name, 0), new_memory(name, 10)
    torn = new_memory(name, 0)
    os.close(torn.pop())
    strangers = [os.memfd_create(f"{name}x-0-9-{slot}") for slot in range(SLOTS_PER_RANK)]
    before = open_now()

    found = living_memory(name)

    assert open_now() == before + 2 * SLOTS_PER_RANK
    assert {rank: [os.fstat(fd).st_ino for fd in fds] for rank, fds in found.items()} == {
        rank: [os.fstat(fd).st_ino for fd in fds] for rank, fds in ((0, newer), (10, other))
    }
    close([*older, *newer, *other, *torn, *strangers, *found[0], *found[10]])
