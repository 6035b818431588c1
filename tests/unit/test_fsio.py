"""The real disk: whole or absent, never replaced by accident, O_DIRECT given up where it does not fit."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from holdfast import fsio


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
