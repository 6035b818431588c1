"""The output of a run: bounded on disk, while offsets never move.

Old blocks are punched out of the file (`fallocate` with PUNCH_HOLE and KEEP_SIZE): they read as zeros, cost nothing,
and every byte stays where it was. Readers skip holes with SEEK_DATA.
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

BLOCK = 4096
_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # linux/falloc.h


def bound(path: Path, max_bytes: int, punched: int = 0) -> int:
    """Keep at most about the last `max_bytes` of `path`; `punched` is what the call before returned.

    Works in steps of a sixteenth of the bound. Returns the offset before which the file is empty now. Raises OSError
    (EOPNOTSUPP) where the file system cannot punch holes.
    """
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return punched
    until = (size - max_bytes) // BLOCK * BLOCK
    if until - punched < max(BLOCK, max_bytes // 16):
        return punched
    punch(path, until)
    return until


def punch(path: Path, until: int) -> None:
    """Free the blocks before offset `until`. Raises OSError."""
    _fallocate(path, _PUNCH_HOLE | _KEEP_SIZE, 0, until)


def allocate(path: Path, offset: int, length: int) -> None:
    """Give `path` blocks for `length` bytes from `offset` on without changing its size. Raises OSError."""
    if length > 0:
        _fallocate(path, _KEEP_SIZE, offset, length)


def _fallocate(path: Path, mode: int, offset: int, length: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        if libc.fallocate(descriptor, mode, offset, length) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))
    finally:
        os.close(descriptor)


def cannot_punch(error: OSError) -> bool:
    """Whether `error` of `bound` means: never on this file system."""
    return error.errno in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM)


def write_line(path: Path, text: str) -> None:
    """Append one line among the trainer's own. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, text.encode() + b"\n")
    finally:
        os.close(descriptor)
