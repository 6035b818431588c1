"""What belongs to a folder of code: all but what the ignore files leave out, and what was made for one machine."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from holdfast.errors import UsageError
from holdfast.workspace.ignore import Ignore

_ENVIRONMENT_MARK = "pyvenv.cfg"  # a folder with it is a virtual environment, made for one machine


@dataclass(frozen=True, slots=True)
class Found:
    """One thing below a root."""

    path: str  # relative to the root, with /
    status: os.stat_result  # of itself, where it is a link

    @property
    def mode(self) -> int:
        """Kind and permissions."""
        return self.status.st_mode

    @property
    def size_bytes(self) -> int:
        """0 for a folder."""
        return 0 if stat.S_ISDIR(self.mode) else self.status.st_size


def walk(root: Path, avoid: Path) -> Iterator[Found]:
    """Everything that is not ignored, folders before what they hold, in order of their names.

    avoid: a real path, left out with all that it holds. Raises UsageError for what cannot be read.
    """
    real = root.resolve()
    avoided = (
        str(avoid.relative_to(real)) if avoid.is_relative_to(real) else ""
    )  # links are not entered: paths are real
    pending = [("", Ignore())]
    while pending:
        folder, above = pending.pop()
        ignore = above.entering(root, folder)
        inner = []
        for entry in _entries(root / folder):
            path = f"{folder}/{entry.name}" if folder else entry.name
            is_dir = entry.is_dir(follow_symlinks=False)
            if ignore.leaves_out(path, is_dir=is_dir) or (is_dir and (path == avoided or _is_environment(entry.path))):
                continue
            with contextlib.suppress(FileNotFoundError):  # gone since it was listed
                yield Found(path, entry.stat(follow_symlinks=False))
                if is_dir:
                    inner.append((path, ignore))
        pending.extend(reversed(inner))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except PermissionError as error:
        raise UsageError(f"{folder} cannot be read", hint="add it to .holdfastignore") from error


def _is_environment(folder: str) -> bool:
    return os.path.isfile(f"{folder}/{_ENVIRONMENT_MARK}")  # noqa: PTH113 - asked of every folder, at each look
