"""The real disk: whole or absent, never replaced by accident, O_DIRECT given up where it does not fit."""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import threading
from pathlib import Path

import pytest

from holdfast import fsio
from tests.waiting import until


def test_replace_leaves_only_the_new_contents(tmp_path: Path) -> None:
    fsio.replace(tmp_path / "a", b"old")
    fsio.replace(tmp_path / "a", b"new")

    assert (tmp_path / "a").read_bytes() == b"new"
    assert fsio.DISK.list(tmp_path) == ["a"]


def test_create_refuses_to_replace_and_leaves_no_trace(tmp_path: Path) -> None:
    fsio.create(tmp_path / "a", b"first")

    with pytest.raises(FileExistsError):
        fsio.create(tmp_path / "a", b"second")

    assert (tmp_path / "a").read_bytes() == b"first"
    assert fsio.DISK.list(tmp_path) == ["a"]


def test_files_are_private(tmp_path: Path) -> None:
    fsio.create(tmp_path / "a", b"")

    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600


def test_rename_without_replace_also_where_the_kernel_lacks_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fsio, "_libc", object())
    fsio.create(tmp_path / "a", b"first")

    with pytest.raises(FileExistsError):
        fsio.create(tmp_path / "a", b"second")

    assert (tmp_path / "a").read_bytes() == b"first"
    assert fsio.DISK.list(tmp_path) == ["a"]


def test_uncached_append_takes_aligned_and_unaligned_parts(tmp_path: Path) -> None:
    aligned = mmap.mmap(-1, 3 * fsio.BLOCK)
    aligned.write(os.urandom(3 * fsio.BLOCK))
    file = fsio.DISK.create(tmp_path / "a", cached=False)
    file.append([aligned, aligned])
    file.append([b"tail", aligned])
    file.sync()
    file.close()

    assert (tmp_path / "a").read_bytes() == aligned[:] * 2 + b"tail" + aligned[:]


def test_append_of_more_parts_than_one_call_takes(tmp_path: Path) -> None:
    file = fsio.DISK.create(tmp_path / "a")
    file.append([bytes([n % 251]) for n in range(3000)])
    file.close()

    assert (tmp_path / "a").read_bytes() == bytes(n % 251 for n in range(3000))


@pytest.mark.parametrize("cached", [True, False])
def test_read_fills_what_there_is(tmp_path: Path, cached: bool) -> None:
    (tmp_path / "a").write_bytes(bytes(range(100)))
    first, second = bytearray(30), bytearray(500)
    file = fsio.DISK.open(tmp_path / "a", cached=cached)

    assert file.read(10, [memoryview(first), memoryview(second)]) == 90
    assert bytes(first) + bytes(second[:60]) == bytes(range(10, 100))
    file.close()


def test_get_refuses_a_file_longer_than_allowed(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")

    assert fsio.get(fsio.DISK, tmp_path / "a", limit_bytes=5) == b"12345"
    with pytest.raises(OverflowError, match="a has 5 bytes"):
        fsio.get(fsio.DISK, tmp_path / "a", limit_bytes=4)


def test_a_pipe_in_the_place_of_a_file_is_an_error_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(OSError, match="not a regular file"):
        fsio.get(fsio.DISK, tmp_path / "pipe", limit_bytes=10)


def test_two_folders_change_names_at_once(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)

    done = fsio.exchange(tmp_path / "one", tmp_path / "other")

    assert (tmp_path / "one" / "file").read_text() == ("other" if done else "one")
    with pytest.raises(FileNotFoundError):
        fsio.exchange(tmp_path / "one", tmp_path / "gone")


def test_a_lock_file_is_made_signed_and_held_by_one(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with fsio.lock_file(path) as held:
        assert fsio.signer(path) == 0
        held.sign()
        with pytest.raises(BlockingIOError):
            fsio.lock_file(path, wait_s=0.05)
        assert fsio.signer(path) == os.getpid()

    assert path.stat().st_mode & 0o777 == 0o600
    fsio.lock_file(path).close()


@pytest.mark.parametrize("wait_s", [60.0, math.inf])
def test_who_waited_for_a_lock_file_that_was_removed_has_the_one_that_is_there(tmp_path: Path, wait_s: float) -> None:
    path = tmp_path / "lock"
    got: list[fsio.Held] = []
    with contextlib.closing(fsio.lock_file(path)) as first:
        waiter = threading.Thread(target=lambda: got.append(fsio.lock_file(path, wait_s=wait_s)))
        waiter.start()
        until(lambda: _openings(path) == 2)  # it has the one that goes
        path.unlink()
        assert not got
        assert os.fstat(first.descriptor).st_nlink == 0
    waiter.join()

    with got[0] as held:
        assert os.path.samestat(os.fstat(held.descriptor), path.stat())
        with pytest.raises(BlockingIOError):
            fsio.lock_file(path)


def _openings(path: Path) -> int:
    """How often this process has a file open."""
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            found += entry.readlink() == path
    return found


def test_shared_locks_stand_together_and_against_an_exclusive_one(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.touch()
    one, other = fsio.DISK.lock(path, shared=True), fsio.DISK.lock(path, shared=True)
    assert one is not None
    assert other is not None

    assert fsio.DISK.lock(path) is None
    one.close()
    other.close()
    with contextlib.closing(fsio.lock_file(path)), path.open("rb") as file:
        assert not fsio.flock(file.fileno(), shared=True)
