"""The files that this very holdfast is made of."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
_RECENT_NS = 2_000_000_000  # two writes this close may leave one time


def paths() -> list[Path]:
    """Of all of them, sorted."""
    return sorted(Path(entry.path) for entry in _files(str(PACKAGE)))


def fingerprint() -> str:
    """Another one where a file of ours, or what is installed beside us, may be another. Nothing is read for it.

    "" when something was changed a moment ago.
    """
    looks = [(entry.path, entry.stat()) for entry in _files(str(PACKAGE))]
    # the first folder of the path is where a program lies, or where somebody is
    looks += [(folder, os.stat(folder)) for folder in sys.path[1:] if os.path.exists(folder)]  # noqa: PTH110, PTH116
    if max(status.st_ctime_ns for _, status in looks) > time.time_ns() - _RECENT_NS:
        return ""
    told = sorted((path, status.st_size, status.st_mtime_ns, status.st_ctime_ns) for path, status in looks)
    return hashlib.blake2b(repr(told).encode(), digest_size=16).hexdigest()


def _files(folder: str) -> Iterator[os.DirEntry[str]]:
    """Below it, but what is hidden and what Python makes of it."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name == "__pycache__" or entry.name.endswith(".pyc"):
                continue
            if entry.is_dir():
                yield from _files(entry.path)
            elif entry.is_file():
                yield entry
