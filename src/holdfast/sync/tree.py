"""A folder by its descriptor. Paths in it are walked one name at a time and no link is followed, whatever others do to
the folder meanwhile: nothing is read or written outside.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from holdfast import fsio

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MOST_OPEN = 32
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)  # ENOTDIR, ELOOP: a file or a link where a folder should be


class Tree:
    """All that is done to what lies in `root`; `root` itself may be reached through links. Methods raise OSError."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._root = os.open(root, _FOLDER)
        self._open: dict[str, int] = {}

    def __enter__(self) -> Tree:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._close()
        os.close(self._root)

    def _at(self, path: str) -> tuple[str, int]:
        """The last name of `path`, and the folder it is in."""
        above, _, name = path.rpartition("/")
        return name, self._folder(above)

    def _folder(self, path: str) -> int:
        """An open folder below the root. Some stay open, since neighbours come one after the other."""
        if not path:
            return self._root
        found = self._open.pop(path, None)
        if found is None:
            name, above = self._at(path)
            found = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=above)
            if len(self._open) >= _MOST_OPEN:
                os.close(self._open.pop(next(iter(self._open))))  # the one not used for longest
        self._open[path] = found
        return found

    def _close(self) -> None:
        """What stays open may be another folder than what is there now."""
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()

    def status(self, path: str) -> os.stat_result | None:
        """Of itself, where it is a link; None when nothing is there, or it is not to be reached without one."""
        try:
            name, folder = self._at(path)
            return os.stat(name, dir_fd=folder, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NOT_THERE:
                raise
            return None

    def open(self, path: str) -> int:
        """A file, for reading; the caller's to close."""
        name, folder = self._at(path)
        descriptor = os.open(name, _READ, dir_fd=folder)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "not a regular file", path)
        return descriptor

    def create(self, path: str) -> int:
        """A file of ours, to be written and read: a new one, or one that is there. The caller's to close."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        name, folder = self._at(path)
        try:
            descriptor = os.open(name, flags, 0o600, dir_fd=folder)
        except PermissionError:  # it was about to be put in its place, with the permissions it has there
            os.unlink(name, dir_fd=folder)
            descriptor = os.open(name, flags, 0o600, dir_fd=folder)
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            os.close(descriptor)
            raise OSError(errno.EINVAL, "not a file of its own", path)
        return descriptor

    def points_to(self, path: str) -> str:
        """The text of a link."""
        name, folder = self._at(path)
        return os.readlink(name, dir_fd=folder)

    def link(self, path: str, text: str) -> None:
        """A new link."""
        name, folder = self._at(path)
        os.symlink(text, name, dir_fd=folder)

    def make_folder(self, path: str, mode: int) -> None:
        """A new folder, its permissions as told and no others."""
        name, folder = self._at(path)
        os.mkdir(name, 0o700, dir_fd=folder)
        self.set_mode(path, mode)

    def _change(self, path: str, change: Callable[[int], None]) -> None:
        name, folder = self._at(path)
        descriptor = os.open(name, _READ, dir_fd=folder)
        try:
            change(descriptor)
        finally:
            os.close(descriptor)

    def set_mode(self, path: str, mode: int) -> None:
        """Of a file or folder."""
        self._change(path, lambda descriptor: os.fchmod(descriptor, mode))

    def set_time(self, path: str, mtime_ns: int) -> None:
        """When a file was changed."""
        self._change(path, lambda descriptor: os.utime(descriptor, ns=(mtime_ns, mtime_ns)))

    def put(self, staged: str, path: str) -> None:
        """Give what lies at `staged` its place; a file or link that is there is replaced, a folder is not."""
        final, into = self._at(path)
        name, folder = self._at(staged)  # after the other: it opens one folder at most, so `into` stays open
        fsio.rename_at(folder, name, into, final)

    def remove(self, path: str) -> None:
        """A file or link."""
        name, folder = self._at(path)
        os.unlink(name, dir_fd=folder)

    def remove_folder(self, path: str) -> bool:
        """False when there is something in it."""
        self._close()
        name, folder = self._at(path)
        try:
            os.rmdir(name, dir_fd=folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            return False
        return True

    def names(self, path: str) -> list[str]:
        """Of what a folder holds."""
        with os.scandir(self._folder(path)) as entries:
            return [entry.name for entry in entries]

    def free_bytes(self) -> int:
        """What may still be written here."""
        found = os.fstatvfs(self._root)
        return found.f_bavail * found.f_frsize

    def folds(self, staging: str) -> bool:
        """Whether names that differ in case or Unicode form are one here: a file in the folder `staging` shows it."""
        there = self.status(staging) is not None
        if not there:
            self.make_folder(staging, 0o700)
        path = f"{staging}/Same-\u00e9"
        os.close(self.create(path))
        try:
            return any(self.status(f"{staging}/{other}") is not None for other in ("sAME-\u00e9", "Same-e\u0301"))
        finally:
            self.remove(path)
            if not there:
                self.remove_folder(staging)
