"""Files that are on their way in: beside the others, under another name, until they are whole and verified.

Large ones are called by their content, so that a later sync goes on at the byte where this one was cut.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from blake3 import blake3

from holdfast.sync.manifest import Entry, Hostile
from holdfast.sync.tree import Tree
from holdfast.workspace.ignore import STAGING

LARGE_BYTES = 8 << 20  # of files that are worth going on with
_READ_BYTES = 1 << 20
_ZEROS = bytes(_READ_BYTES)


class Staging:
    """The folder for them; it is there only while something is in it."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree

    def name(self, entry: Entry) -> str:
        """Where it comes to lie at first."""
        return f"{STAGING}/{entry.content}" if entry.size_bytes >= LARGE_BYTES else f"{STAGING}/file"

    def prepare(self) -> None:
        """Make the folder. Raises OSError where something else has its name."""
        if self._tree.status(STAGING) is None:
            self._tree.make_folder(STAGING, 0o700)

    def offset(self, entry: Entry) -> int:
        """How many bytes of it an earlier sync has left."""
        found = self._tree.status(self.name(entry)) if entry.size_bytes >= LARGE_BYTES else None
        return 0 if found is None else min(found.st_size, entry.size_bytes)

    def clear(self) -> None:
        """Nothing here is of use any more."""
        if self._tree.status(STAGING) is None:
            return
        for name in self._tree.names(STAGING):
            self._tree.remove(f"{STAGING}/{name}")
        self._tree.remove_folder(STAGING)


class Incoming:
    """One file, hashed as it comes. Close it, whatever happens."""

    def __init__(self, tree: Tree, staged: str, entry: Entry, offset: int, moved: Callable[[int], None]) -> None:
        self._tree, self._staged, self._entry, self._moved = tree, staged, entry, moved
        self._hasher, self._end = blake3(), 0
        self._descriptor = tree.create(staged)
        os.ftruncate(self._descriptor, offset)
        while self._end < offset:
            data = os.pread(self._descriptor, min(_READ_BYTES, offset - self._end), self._end)
            if not data:
                break  # it will not have the right hash
            self._count(data)

    def take(self, data: bytes) -> None:
        """The next bytes. Raises Hostile for more than were told of, OSError."""
        self._claim(len(data))
        left = memoryview(data)
        while left:
            left = left[os.pwrite(self._descriptor, left, self._end + len(data) - len(left)) :]
        self._count(data)
        self._moved(len(data))

    def skip(self, size_bytes: int) -> None:
        """The next bytes are zeros, and take no room."""
        self._claim(size_bytes)
        os.ftruncate(self._descriptor, self._end + size_bytes)
        for at in range(0, size_bytes, len(_ZEROS)):
            self._count(memoryview(_ZEROS)[: size_bytes - at])
        self._moved(size_bytes)

    def finish(self) -> bool:
        """Whether it is what was told of; then it has its permissions and time, and waits to be put in its place."""
        if self._hasher.hexdigest() != self._entry.content:
            return False
        os.fchmod(self._descriptor, self._entry.mode)
        os.utime(self._descriptor, ns=(self._entry.mtime_ns, self._entry.mtime_ns))
        if self._entry.size_bytes >= LARGE_BYTES:
            os.fsync(self._descriptor)  # cheap beside its bytes
        return True

    def close(self) -> None:
        """What there is of it stays."""
        os.close(self._descriptor)

    def _claim(self, size_bytes: int) -> None:
        if self._end + size_bytes > self._entry.size_bytes:
            raise Hostile(f"the other end sends more of {self._entry.path!r} than its {self._entry.size_bytes} bytes")

    def _count(self, data: bytes | memoryview) -> None:
        self._hasher.update(data)
        self._end += len(data)
