"""What counts as a change of a folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from holdfast.sync.watch import look
from tests.unit.sync.ends import tree

CHANGES: dict[str, Callable[[Path], object]] = {
    "written": lambda root: (root / "a").write_text("two"),
    "same size, same time": lambda root: ((root / "a").write_text("eno"), os.utime(root / "a", ns=(5, 5))),
    "made": lambda root: (root / "b").write_text(""),
    "a folder": lambda root: (root / "d").mkdir(),
    "removed": lambda root: (root / "a").unlink(),
    "renamed": lambda root: (root / "a").rename(root / "b"),
    "permissions": lambda root: (root / "a").chmod(0o700),
    "linked": lambda root: (root / "link").symlink_to("a"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_is_seen(change: Callable[[Path], object], tmp_path: Path) -> None:
    root = tree(tmp_path / "s", a="one")
    os.utime(root / "a", ns=(5, 5))
    before, _ = look(root)

    change(root)

    assert look(root)[0] != before


def test_what_is_ignored_is_no_change(tmp_path: Path) -> None:
    root = tree(tmp_path / "s", a="one", log="x")
    (root / ".gitignore").write_text("log\n")
    before, _ = look(root)

    (root / "log").write_text("more")
    tree(root, __pycache____a="x")

    assert look(root)[0] == before
