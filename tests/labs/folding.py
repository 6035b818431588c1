"""A mount where names that differ in case or Unicode form are one, as on a Mac: FUSE over an ordinary folder.

    python -m tests.labs.folding FOLDER MOUNTPOINT

Names keep the form they were made in. Stays in the foreground until unmounted.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.children import ended
from tests.needs import need, need_program
from tests.waiting import until

try:
    import mfusepy
except (ImportError, OSError):  # the module, or the library below it
    mfusepy = None


@contextlib.contextmanager
def folding(work: Path) -> Iterator[Path]:
    """Where it is mounted, for as long as the block."""
    need(os.geteuid() == 0 and Path("/dev/fuse").exists() and mfusepy is not None, "needs root and FUSE to mount")
    unmount = need_program("fusermount3")
    below, mountpoint = work / "below", work / "mac"
    below.mkdir()
    mountpoint.mkdir()
    argv = [sys.executable, "-m", "tests.labs.folding", str(below), str(mountpoint)]
    with ended(subprocess.Popen(argv, cwd=Path(__file__).parents[2])) as child:
        try:
            until(lambda: mountpoint.is_mount() or child.poll() is not None, what="the mount")
            yield mountpoint
        finally:
            subprocess.run([unmount, "-u", str(mountpoint)], check=True)
            child.wait(20)


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


if mfusepy is not None:

    class _Folding(mfusepy.Operations):
        """The calls that the kernel makes; handles are descriptors."""

        use_ns = True

        def __init__(self, root: Path) -> None:
            self._root = root

        def _real(self, path: str) -> Path:
            """Where it lies, or would come to lie."""
            found = self._root
            for part in path.strip("/").split("/"):
                there = found.iterdir() if found.is_dir() else iter(())
                found = next((one for one in there if _plain(one.name) == _plain(part)), found / part)
            return found

        def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
            found = self._real(path).lstat()
            told = {
                f"st_{name}": getattr(found, f"st_{name}") for name in ("mode", "nlink", "uid", "gid", "size", "ino")
            }
            return told | {f"st_{name}": getattr(found, f"st_{name}_ns") for name in ("atime", "mtime", "ctime")}

        def readdir(self, path: str, fh: int) -> list[str]:
            return [".", "..", *(one.name for one in self._real(path).iterdir())]

        def mkdir(self, path: str, mode: int) -> None:
            self._real(path).mkdir(mode)

        def rmdir(self, path: str) -> None:
            self._real(path).rmdir()

        def unlink(self, path: str) -> None:
            self._real(path).unlink()

        def rename(self, old: str, new: str) -> None:
            self._real(old).rename(self._real(new))

        def symlink(self, target: str, source: str) -> None:
            self._real(target).symlink_to(source)

        def readlink(self, path: str) -> str:
            return str(self._real(path).readlink())

        def chmod(self, path: str, mode: int) -> None:
            self._real(path).chmod(mode)

        def utimens(self, path: str, times: tuple[int, int] | None = None) -> None:
            os.utime(self._real(path), ns=times)

        def create(self, path: str, mode: int, fi: Any = None) -> int:
            return os.open(self._real(path), os.O_CREAT | os.O_RDWR, mode)

        def open(self, path: str, flags: int) -> int:
            return os.open(self._real(path), flags & os.O_ACCMODE)

        def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
            return os.pread(fh, size, offset)

        def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
            return os.pwrite(fh, data, offset)

        def truncate(self, path: str, length: int, fh: int | None = None) -> None:
            os.truncate(self._real(path), length)

        def release(self, path: str, fh: int) -> None:
            os.close(fh)

        def statfs(self, path: str) -> dict[str, int]:
            return {"f_bsize": 4096, "f_frsize": 4096, "f_blocks": 1 << 24, "f_bfree": 1 << 23, "f_bavail": 1 << 23}


if __name__ == "__main__":
    mfusepy.FUSE(_Folding(Path(sys.argv[1])), sys.argv[2], foreground=True, nothreads=True, fsname="folding-lab")
