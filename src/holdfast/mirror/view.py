"""A mirror as a disk that can only be read: survey, choice and verification work on it as they do on a folder.

One view is one moment: names are listed once. Small files are remembered by content-addressed name for the next view.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

from holdfast.checkpoint.manifest import MAX_MANIFEST_BYTES
from holdfast.fsio import About, Bytes, File, Lock
from holdfast.stores import Store

ROOT = Path("/mirror")
_REMEMBERED = ("manifests/", "leases/")  # named by their hash, so never another content
_FOLDERS = ("manifests", "leases")


class Stored:
    """Bytes in memory as a file."""

    def __init__(self, data: Bytes = b"") -> None:
        self.data = bytearray(data)

    def append(self, parts: Sequence[Bytes]) -> None:
        """At the end."""
        for part in parts:
            self.data += part

    def read(self, offset: int, parts: Sequence[memoryview]) -> int:
        """As a file does."""
        total = 0
        for part in parts:
            piece = self.data[offset + total : offset + total + part.nbytes]
            part[: len(piece)] = piece
            total += len(piece)
        return total

    def size(self) -> int:
        """In bytes."""
        return len(self.data)

    def sync(self) -> None:
        """Memory is all there is."""

    def close(self) -> None:
        """Nothing to let go."""


class Ranged:
    """An object as a file, of which only what is asked for is fetched; once and whole where a store sends no parts."""

    def __init__(self, store: Store, key: str, size_bytes: int) -> None:
        self._store, self._key, self._size = store, key, size_bytes
        self._whole: Stored | None = None

    def append(self, parts: Sequence[Bytes]) -> None:
        """Raises OSError."""
        raise OSError(errno.EROFS, "a mirror is not written this way", self._key)

    def read(self, offset: int, parts: Sequence[memoryview]) -> int:
        """One ranged GET for all of `parts`."""
        if self._whole is None and not self._store.parts:
            self._whole = Stored(self._store.get(self._key))
        if self._whole is not None:
            return self._whole.read(offset, parts)
        return Stored(self._store.get_range(self._key, offset, sum(part.nbytes for part in parts))).read(0, parts)

    def size(self) -> int:
        """As listed."""
        return self._size

    def sync(self) -> None:
        """What is listed is kept."""

    def close(self) -> None:
        """Nothing to let go."""


class View:
    """The mirror as it is listed now. Every method raises StoreRefused."""

    def __init__(self, store: Store, known: dict[str, bytes]) -> None:
        """`known`: contents by key, shared by the views of one mirror."""
        self.store = store
        self._known = known
        self.sizes: dict[str, int] = {}  # key → bytes
        for folder in (*_FOLDERS, "packs"):
            self.sizes |= store.list(f"{folder}/")
        for key in [key for key in known if key not in self.sizes]:
            del known[key]

    def has_pack(self, name: str, size_bytes: int) -> bool:
        """Whether a pack is there in its full length."""
        return self.sizes.get(pack_key(name)) == size_bytes

    def open(self, path: Path, *, cached: bool = True) -> File:
        """A manifest or lease in memory, a pack by ranges."""
        key = path.relative_to(ROOT).as_posix()
        if key.startswith(_REMEMBERED):
            if self.sizes.get(key, 0) > MAX_MANIFEST_BYTES:
                return Ranged(self.store, key, self.sizes[key])  # who wants it looks at its length first
            if key not in self._known:
                self._known[key] = self.store.get(key)
            return Stored(self._known[key])
        if key in self.sizes:
            return Ranged(self.store, key, self.sizes[key])
        return Stored(self.store.get(key))

    def list(self, folder: Path) -> list[str]:
        """Names directly in `folder`."""
        prefix = "" if folder == ROOT else f"{folder.relative_to(ROOT).as_posix()}/"
        return sorted({key[len(prefix) :].split("/")[0] for key in self.sizes if key.startswith(prefix)})

    def about(self, path: Path) -> About | None:
        """Of what is stored, without its time; folders are what stands before a slash."""
        key = path.relative_to(ROOT).as_posix()
        if key in self.sizes:
            return About(is_folder=False, size_bytes=self.sizes[key], modified_s=0.0)
        return About(is_folder=True, size_bytes=0, modified_s=0.0) if self.list(path) else None

    def lock(self, path: Path, *, shared: bool = False) -> Lock | None:
        """Nobody can lock a mirror: its owner removes packs only long after their manifests."""
        return _Free()

    def create(self, path: Path, *, cached: bool = True) -> File:
        """Raises OSError, as everything that writes."""
        raise _read_only(path)

    def rename(self, source: Path, target: Path, *, replace: bool = False) -> None:
        """Raises OSError."""
        raise _read_only(target)

    def sync_folder(self, folder: Path) -> None:
        """Raises OSError."""
        raise _read_only(folder)

    def make_folder(self, folder: Path) -> None:
        """Raises OSError."""
        raise _read_only(folder)

    def remove(self, path: Path) -> None:
        """Raises OSError."""
        raise _read_only(path)

    def remove_folder(self, folder: Path) -> None:
        """Raises OSError."""
        raise _read_only(folder)


class _Free:
    def close(self) -> None:
        """Nothing to let go."""


def _read_only(path: Path) -> OSError:
    return OSError(errno.EROFS, "a mirror is not written this way", str(path))


def pack_key(name: str) -> str:
    """Where the pack called `name` lies."""
    return f"packs/{name[:2]}/{name}.hfp"
