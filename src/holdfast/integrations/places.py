"""Where a path lies: in which checkpoint folder, under which name there.

A checkpoint folder is the nearest folder above a path that is one. The first file written below a folder makes it one,
unless there are other files in it: nobody wants packs among his sources.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from holdfast.checkpoint.folder import FOLDERS, Folder, FolderInUse, make_folders
from holdfast.errors import UsageError
from holdfast.fsio import DISK, flock

STAGING = "staging"
RESERVED = frozenset({*FOLDERS, STAGING, "format.json", "latest.json"})
PATIENCE_S = 60.0  # how long a commit waits for another process's
_POLL_S = 0.02

_opened: set[Path] = set()  # by this process: what a power cut could undo is durable since


def above(path: Path) -> Path | None:
    """The checkpoint folder that `path` is or lies in; None outside of any."""
    for folder in (path, *path.parents):
        if (folder / "format.json").is_file() and (folder / "manifests").is_dir():
            return folder
    return None


def name_in(root: Path, path: Path) -> str:
    """The name of `path` within `root`, `""` for `root` itself. Raises UsageError for one of the folder's own files."""
    relative = path.relative_to(root)
    if relative.parts and relative.parts[0] in RESERVED:
        raise UsageError(f"{path} is a part of the checkpoint folder {root} itself", hint="choose another name")
    return PurePosixPath(relative).as_posix() if relative.parts else ""


def make(folder: Path) -> Path:
    """The checkpoint folder for files in `folder`: the one it lies in, or itself from now on.

    Raises UsageError when there are other files in it, OSError.
    """
    found = above(folder)
    if found is not None:
        return found
    make_folders(DISK, folder)
    with os.scandir(folder) as entries:
        other = next((one.name for one in entries if one.name not in RESERVED and not one.is_dir()), None)
    if other is not None:
        raise UsageError(
            f"{folder} holds other files ({other}), so it cannot become a checkpoint folder",
            hint=f"name a folder of its own: holdfast://{folder}/checkpoints",
        )
    with owned(folder):
        pass
    return folder


@contextlib.contextmanager
def owned(root: Path) -> Iterator[Folder]:
    """The folder, open for its one writer. Waits `PATIENCE_S` for another. Raises FolderInUse, OSError.

    The folder's own lock is what every writer on this machine takes. Network file systems keep it to one machine, so
    that of a file is taken besides.
    """
    make_folders(DISK, root / STAGING)
    folder, until_s = Folder(root), time.monotonic() + PATIENCE_S
    with (root / STAGING / "lock").open("ab") as file:
        while not (flock(file.fileno()) and _owned(folder)):
            if time.monotonic() > until_s:
                raise FolderInUse(f"{root} has been in use by another process for {PATIENCE_S:.0f} s")
            time.sleep(_POLL_S)
        try:
            if root not in _opened or not (root / "format.json").exists():
                folder.open()
                _opened.add(root)
            yield folder
        finally:
            folder.leave()


def _owned(folder: Folder) -> bool:
    try:
        folder.own()
    except FolderInUse:
        return False
    return True
