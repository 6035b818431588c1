"""What of a working directory is copied, and what is not."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest

from holdfast.workspace.copying import TooBig, snapshot
from holdfast.workspace.git_state import describe_git
from tests.needs import need_program


def tree(root: Path, *paths: str) -> Path:
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(path)
    return root


def copied(root: Path, into: Path, **bounds: int) -> set[str]:
    found = snapshot(root, into, avoid=root / ".runs", **bounds)
    files = {str(path.relative_to(into)) for path in into.rglob("*") if path.is_symlink() or not path.is_dir()}
    assert found.files == len(files)
    return files


def test_a_copy_is_a_copy(tmp_path: Path) -> None:
    root = tree(tmp_path / "w", "train.py", "pkg/model.py")
    (root / "train.py").chmod(0o755)
    os.utime(root / "train.py", (1, 1))

    assert copied(root, tmp_path / "c") == {"train.py", "pkg/model.py"}
    (root / "train.py").write_text("changed")
    copy = tmp_path / "c" / "train.py"
    assert copy.read_text() == "train.py"
    assert (copy.stat().st_mode & 0o777, copy.stat().st_mtime) == (0o700, 1)


def test_ignore_files_at_every_level_are_honoured(tmp_path: Path) -> None:
    root = tree(
        tmp_path / "w", "a.log", "keep.log", "data/x", "sub/a.tmp", "sub/b.log", "sub/deep/a.tmp", "a.tmp", "build/a"
    )
    (root / ".gitignore").write_text("*.log\n!keep.log\n/data/\nbuild\n")
    (root / "sub" / ".gitignore").write_text("*.tmp\n!b.log\n")

    assert copied(root, tmp_path / "c") == {".gitignore", "sub/.gitignore", "keep.log", "sub/b.log", "a.tmp"}


def test_holdfastignore_takes_back_what_gitignore_leaves_out(tmp_path: Path) -> None:
    root = tree(tmp_path / "w", "data/small.csv", "notes.md")
    (root / ".gitignore").write_text("data/\n")
    (root / ".holdfastignore").write_text("!data/\nnotes.md\n")

    assert copied(root, tmp_path / "c") == {".gitignore", ".holdfastignore", "data/small.csv"}


def test_what_is_not_code_is_left_out(tmp_path: Path) -> None:
    root = tree(
        tmp_path / "w",
        "a.py",
        ".git/config",
        "__pycache__/a.pyc",
        "env/pyvenv.cfg",
        "env/bin/python",
        ".runs/x/code/a.py",
    )

    assert copied(root, tmp_path / "c") == {"a.py"}


def test_links_lead_where_they_led(tmp_path: Path) -> None:
    root = tree(tmp_path / "w", "a.py", "sub/b.py")
    tree(tmp_path, "data/x")
    (root / "inside").symlink_to("sub/b.py")
    (root / "sub" / "up").symlink_to("../a.py")
    (root / "outside").symlink_to("../data")
    (root / "absolute").symlink_to(tmp_path / "data")
    (root / "dangling").symlink_to("nowhere")

    snapshot(root, tmp_path / "c", avoid=tmp_path / "runs")

    texts = {
        name: str((tmp_path / "c" / name).readlink())
        for name in ("inside", "sub/up", "outside", "absolute", "dangling")
    }
    data = str(tmp_path / "data")
    assert texts == {
        "inside": "sub/b.py",
        "sub/up": "../a.py",
        "outside": data,
        "absolute": data,
        "dangling": "nowhere",
    }


def test_sockets_and_pipes_are_skipped_and_told(tmp_path: Path) -> None:
    root = tree(tmp_path / "w", "a.py")
    os.mkfifo(root / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(root / "sock"))
        found = snapshot(root, tmp_path / "c", avoid=tmp_path / "runs")
    assert (found.files, found.skipped) == (1, ("pipe", "sock"))


def test_too_many_bytes_name_the_biggest_folders_and_copy_nothing(tmp_path: Path) -> None:
    root = tree(tmp_path / "w", "a.py", "small/x")
    (root / "big").mkdir()
    (root / "big" / "x").write_bytes(b"x" * 5000)

    with pytest.raises(TooBig, match=r"biggest: big \(4\.9 KiB, 2 files\)") as caught:
        copied(root, tmp_path / "c", max_bytes=1000)
    assert ".holdfastignore" in caught.value.hint
    assert not (tmp_path / "c").exists()


def test_too_many_files_name_the_folder_with_the_most(tmp_path: Path) -> None:
    root = tree(tmp_path / "w", "a.py", *(f"many/{number}" for number in range(30)))

    with pytest.raises(TooBig, match=r"biggest: many"):
        copied(root, tmp_path / "c", max_files=10)


def git(root: Path, *words: str) -> None:
    argv = ["git", "-C", str(root), "-c", "user.name=n", "-c", "user.email=e@example.org", *words]
    subprocess.run(argv, check=True, capture_output=True)


def test_commit_and_dirty_state_are_recorded(tmp_path: Path) -> None:
    need_program("git")
    root = tree(tmp_path / "w", "a.py")
    assert describe_git(root) is None
    git(root, "init", "-q", "-b", "trunk")
    git(root, "add", "a.py")
    git(root, "commit", "-qm", "first")

    clean = describe_git(root)
    (root / "a.py").write_text("changed")
    dirty = describe_git(root)

    assert clean is not None
    assert dirty is not None
    assert (clean["branch"], clean["dirty"], len(clean["commit"])) == ("trunk", False, 40)
    assert (dirty["dirty"], dirty["changed"]) == (True, [" M a.py"])
