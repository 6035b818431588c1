"""The disk itself, for comparison: the same bytes written and read by nothing but large direct system calls."""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path

BLOCK = 8 << 20


def write_s(folder: Path, size_bytes: int) -> float:
    """Seconds to write so many bytes into a new file with O_DIRECT and fsync it; the file is removed.

    They come from as much memory, as those of a state do: one small block again and again would come from a cache.
    """
    path = folder / "raw"
    source = memoryview(mmap.mmap(-1, size_bytes))
    some = os.urandom(1 << 20)
    for offset in range(0, size_bytes, len(some)):
        part = source[offset : offset + len(some)]
        part[:] = some[: len(part)]
    whole = size_bytes // mmap.PAGESIZE * mmap.PAGESIZE
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_DIRECT, 0o600)
    try:
        began_s = time.perf_counter()
        for offset in range(0, whole, BLOCK):
            os.write(descriptor, source[offset : min(offset + BLOCK, whole)])
        os.fsync(descriptor)
        return (time.perf_counter() - began_s) * size_bytes / whole
    finally:
        os.close(descriptor)
        path.unlink()


def read_s(path: Path, *, direct: bool) -> float:
    """Seconds to read a file into memory that is there already: past the page cache, or out of it."""
    size = path.stat().st_size
    block = mmap.mmap(-1, BLOCK)
    block.write(bytes(BLOCK))
    descriptor = os.open(path, os.O_RDONLY | (os.O_DIRECT if direct else 0))
    try:
        began_s = time.perf_counter()
        for offset in range(0, size, BLOCK):
            os.preadv(descriptor, [block], offset)
        return time.perf_counter() - began_s
    finally:
        os.close(descriptor)


def forget(folder: Path) -> None:
    """Take every file below `folder` out of the page cache."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
