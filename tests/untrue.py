"""A medium that keeps something else than it was told, and a page cache that hides it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from holdfast.fsio import File
from holdfast.testing.crashdisk import CrashDisk


class Untrue(CrashDisk):
    """Of each new file whose name ends in `kind` one bit at offset `at` is another, for who reads past the cache."""

    def __init__(self) -> None:
        super().__init__()
        self.kind, self.at = "", 0
        self._bent: set[str] = set()

    def create(self, path: Path, *, cached: bool = True) -> Any:
        if path.suffix == self.kind:
            self._bent.add(path.name)
        return super().create(path)

    def open(self, path: Path, *, cached: bool = True) -> Any:
        file = super().open(path)
        return _Bent(file, self.at) if path.name in self._bent and not cached else file


class _Bent:
    def __init__(self, file: File, at: int) -> None:
        self._file, self._at = file, at

    def read(self, offset: int, parts: Sequence[memoryview]) -> int:
        at = self._at - offset
        total = self._file.read(offset, parts)
        for part in parts:
            if 0 <= at < part.nbytes:
                part[at] ^= 1
            at -= part.nbytes
        return total

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
