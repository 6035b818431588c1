"""What was ordered of a machine and not confirmed yet, so that the same command again makes no second run.

A laptop may be cut off, or die, between telling a machine to make a run and learning that it did. Each order has a
token, kept here until the machine has confirmed it; the run there keeps it for good.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from holdfast import fsio, runs


@contextlib.contextmanager
def ordering(*what: str) -> Iterator[str]:
    """The token of an order of exactly this: that of the same order before, when nobody confirmed it.

    Confirmed when the block ends without an exception. Two that order the same at once have each their own.
    """
    path = _file(what)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        lock = fsio.lock_file(path)
    except BlockingIOError:
        yield uuid.uuid4().hex
        return
    with lock:
        yield _token(lock.descriptor)
        path.unlink(missing_ok=True)


def is_open(*what: str) -> bool:
    """Whether exactly this was ordered before and not confirmed, by somebody who does not wait for that any more."""
    path = _file(what)
    try:
        lock = fsio.DISK.lock(path)
    except FileNotFoundError:
        return False
    if lock is None:
        return False
    with contextlib.closing(lock):
        return path.stat().st_size > 0


def _file(what: tuple[str, ...]) -> Path:
    name = hashlib.blake2b("\0".join(what).encode(), digest_size=16).hexdigest()
    return runs.home().absolute() / "remote" / "orders" / name


def _token(descriptor: int) -> str:
    """The one in the file, or a new one that is in it from now on."""
    known = os.pread(descriptor, 64, 0).decode("ascii", "replace")
    if len(known) == 32:
        return known
    token = uuid.uuid4().hex
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, token.encode(), 0)
    os.fsync(descriptor)
    return token
