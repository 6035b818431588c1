"""file:///FOLDER or /FOLDER: a disk, an NFS or FUSE mount, anything with names and fsync.

The folder above must be there: it is on the mount, so a mount that is missing is told, and not filled underneath.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from holdfast.errors import StoreRefused
from holdfast.fsio import DISK, Bytes, Disk, File
from holdfast.stores.base import Entry, Store
from holdfast.stores.retry import Patience

_TEMPORARY = "tmp"
_DEEPEST = 8  # folders in folders; no key has more


def connect(url: str, environ: Mapping[str, str], patience: Patience) -> Store:
    """A folder; made with the first object."""
    return DirectoryStore(url, Path(url if url.startswith("/") else unquote(urlsplit(url).path)))


class DirectoryStore:
    """Objects as files. What `put` wrote is durable, and was read back from the medium."""

    def __init__(self, url: str, root: Path, disk: Disk = DISK) -> None:
        self.url = url
        self.parts = True
        self._root, self._disk = root, disk
        self._made: set[Path] = set()

    def put(self, key: str, data: Bytes, *, create: bool = False) -> None:
        """Write, fsync, read back, rename, fsync the folder. What a crash leaves lies in `tmp/`."""
        with self._told():
            target = self._root / key
            temporary = self._root / _TEMPORARY / f"{target.name[:80]}.{secrets.token_hex(4)}"
            self._make(target.parent)
            self._make(temporary.parent)
            try:
                self._write(temporary, data)
                self._disk.rename(temporary, target, replace=not create)
            except FileNotFoundError as error:
                self._made.clear()  # to be looked for, and made, by the next one
                raise StoreRefused(f"{self.url}: {error.filename} is gone", hint="is it mounted?") from error
            except OSError:
                self._disk.remove(temporary)
                raise
            self._disk.sync_folder(target.parent)

    def _write(self, path: Path, data: Bytes) -> None:
        with closing(self._disk.create(path)) as file:
            file.append([data])
            file.sync()
        with closing(self._disk.open(path, cached=False)) as file:
            kept = memoryview(bytearray(file.size()))
            if file.read(0, [kept]) != len(memoryview(data)) or kept != memoryview(data):
                raise OSError(f"{path} reads back differently than written")

    def get(self, key: str) -> bytes:
        """All of it."""
        with self._told(), closing(self._disk.open(self._root / key, cached=False)) as file:
            return _read(file, 0, file.size())

    def get_range(self, key: str, offset: int, size: int) -> bytes:
        """A part of it."""
        with self._told(), closing(self._disk.open(self._root / key, cached=False)) as file:
            return _read(file, offset, max(0, min(size, file.size() - offset)))

    def list(self, prefix: str) -> dict[str, int]:
        """Files below `prefix`, whatever depth."""
        with self._told():
            found = dict(self._below(self._root / prefix, prefix, 0))
            if not found and not self._disk.list(self._root):
                self._check_mounted()
            return found

    def _below(self, folder: Path, prefix: str, depth: int) -> Iterator[tuple[str, int]]:
        """Links to folders are not followed: two that lead up again would make a tree without end."""
        for name in self._disk.list(folder):
            found = self._disk.about(folder / name)
            if found is None:  # removed meanwhile, or a link that leads nowhere
                continue
            if not found.is_folder:
                yield f"{prefix}{name}", found.size_bytes
            elif depth < _DEEPEST:
                yield from self._below(folder / name, f"{prefix}{name}/", depth + 1)

    def head(self, key: str) -> Entry | None:
        """Length and time of a file."""
        with self._told():
            found = self._disk.about(self._root / key)
        return None if found is None or found.is_folder else Entry(found.size_bytes, found.modified_s)

    def delete(self, key: str) -> None:
        """Remove, durably."""
        with self._told():
            self._disk.remove(self._root / key)
            if (self._root / key).parent in self._made:
                self._disk.sync_folder((self._root / key).parent)

    def _make(self, folder: Path) -> None:
        """`folder` and what is missing above it, up to the root; what is above that must be there."""
        if folder in self._made:
            return
        if folder != self._root:
            self._make(folder.parent)
        try:
            self._disk.make_folder(folder)
        except FileNotFoundError as error:
            raise self._not_mounted(folder.parent) from error
        self._made.add(folder)

    def _check_mounted(self) -> None:
        try:
            self._disk.sync_folder(self._root.parent)  # fails for a folder that is not there, and changes nothing
        except FileNotFoundError as error:
            raise self._not_mounted(self._root.parent) from error

    def _not_mounted(self, folder: Path) -> StoreRefused:
        return StoreRefused(f"{self.url}: there is no folder {folder}", hint="is it mounted? else make that folder")

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, FileExistsError):
            raise
        except OSError as error:
            raise StoreRefused(f"{self.url}: {error.strerror or error}") from error


def _read(file: File, offset: int, size: int) -> bytes:
    data = bytearray(size)
    return bytes(data[: file.read(offset, [memoryview(data)])])
