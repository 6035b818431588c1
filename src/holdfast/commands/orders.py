"""What was ordered of a machine and not confirmed yet, so that the same command again makes no second run.

A laptop may be cut off, or die, between telling a machine to make a run and learning that it did. Each order has a
token, kept here until the machine has confirmed it; the run there keeps it for good.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from holdfast import runs


@contextlib.contextmanager
def ordering(*what: str) -> Iterator[str]:
    """The token of an order of exactly this: that of the same order before, when nobody confirmed it.

    Confirmed when the block ends without an exception. Two that order the same at once have each their own.
    """
    path = _file(what)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield uuid.uuid4().hex
            return
        yield _token(descriptor)
        os.ftruncate(descriptor, 0)  # first: somebody may have opened it, and wait
        path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def is_open(*what: str) -> bool:
    """Whether exactly this was ordered before and not confirmed, by somebody who does not wait for that any more."""
    try:
        descriptor = os.open(_file(what), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.fstat(descriptor).st_size > 0
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)


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
