"""A folder by its descriptor: nothing outside is reached, through whatever lies in it."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from holdfast.sync.tree import Tree

ACTS: dict[str, Callable[[Tree, str], object]] = {
    "open": Tree.open,
    "create": Tree.create,
    "points_to": Tree.points_to,
    "link": lambda tree, path: tree.link(path, "text"),
    "make_folder": lambda tree, path: tree.make_folder(path, 0o700),
    "set_mode": lambda tree, path: tree.set_mode(path, 0o777),
    "set_time": lambda tree, path: tree.set_time(path, 0),
    "put": lambda tree, path: tree.put("ours", path),
    "take": lambda tree, path: tree.put(path, "ours"),
    "remove": Tree.remove,
    "remove_folder": Tree.remove_folder,
}


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """With a file of somebody, beside a root with one of ours."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "file").write_text("theirs")
    (folder / "file").chmod(0o640)
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "ours").write_text("ours")
    return folder


def is_untouched(outside: Path) -> bool:
    file = outside / "file"
    return (
        [each.name for each in outside.iterdir()] == ["file"]
        and file.read_text() == "theirs"
        and stat.S_IMODE(file.stat().st_mode) == 0o640
        and file.stat().st_mtime > 0
    )


@pytest.mark.parametrize("act", ACTS)
def test_no_path_leads_through_a_link_to_a_folder(tmp_path: Path, outside: Path, act: str) -> None:
    (tmp_path / "root" / "there").symlink_to(outside)
    with Tree(tmp_path / "root") as tree:
        assert tree.status("there/file") is None
        for path in ("there/file", "there/new"):
            with pytest.raises(OSError):
                ACTS[act](tree, path)

    assert is_untouched(outside)


@pytest.mark.parametrize("act", ["open", "create", "set_mode", "set_time"])
def test_a_link_to_a_file_is_none(tmp_path: Path, outside: Path, act: str) -> None:
    (tmp_path / "root" / "there").symlink_to(outside / "file")
    with Tree(tmp_path / "root") as tree, pytest.raises(OSError):
        ACTS[act](tree, "there")

    assert is_untouched(outside)


def test_a_file_that_has_another_name_too_is_not_written_to(tmp_path: Path, outside: Path) -> None:
    (tmp_path / "root" / "there").hardlink_to(outside / "file")
    with Tree(tmp_path / "root") as tree, pytest.raises(OSError, match="not a file of its own"):
        tree.create("there")

    assert is_untouched(outside)
