"""Real file systems in a file, of which the power can be taken. Needs root; always unmounted, the image removed."""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType

_SHUTDOWN = 0x8004587D  # EXT4_IOC_SHUTDOWN and XFS_IOC_GOINGDOWN
_LOG_FLUSH, _NO_LOG_FLUSH = 1, 2
_LEAST_BYTES = {"ext4": 32 << 20, "xfs": 320 << 20}
_MAKE = {"ext4": ("mkfs.ext4", "-q", "-F", "-m", "0"), "xfs": ("mkfs.xfs", "-q", "-f")}


def needs_root(program: str) -> str:
    """Why there can be no such disk here, or empty."""
    if os.geteuid() != 0:
        return "needs root for a loop mount"
    return "" if shutil.which(program) else f"{program} is not installed"


class Disk:
    """A file system of at least `size_bytes`, mounted at `mount` inside the `with`."""

    def __init__(self, system: str, below: Path, size_bytes: int, *, options: str = "defaults") -> None:
        self._system, self._options = system, options
        self._size = max(size_bytes, _LEAST_BYTES[system])
        self._aside = Path(tempfile.mkdtemp(prefix=f"{system}-", dir=below))
        self.mount = self._aside / "mount"
        self._image = self._aside / "image"

    def __enter__(self) -> Disk:
        self.mount.mkdir()
        with self._image.open("wb") as file:
            file.truncate(self._size)
        subprocess.run([*_MAKE[self._system], self._image], check=True, stdout=subprocess.DEVNULL)
        self._mount()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._unmount()
        shutil.rmtree(self._aside)

    def power_off(self, *, write_log: bool) -> None:
        """Nothing reaches the disk from here on; `write_log`: the journal still does."""
        descriptor = os.open(self.mount, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, _SHUTDOWN, struct.pack("I", _LOG_FLUSH if write_log else _NO_LOG_FLUSH))
        finally:
            os.close(descriptor)

    def power_on(self) -> None:
        """Mounted again, the journal replayed."""
        self._unmount()
        self._mount()

    def fill(self, *, leave_bytes: int) -> None:
        """A file takes what is free, but for `leave_bytes`."""
        descriptor = os.open(self.mount / "filler", os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            while not self._filled(descriptor, leave_bytes):
                pass  # training took some meanwhile
        finally:
            os.close(descriptor)

    def _filled(self, descriptor: int, leave_bytes: int) -> bool:
        found = os.statvfs(self.mount)
        wanted = found.f_bavail * found.f_frsize - leave_bytes
        if wanted <= 0:
            return True
        try:
            os.posix_fallocate(descriptor, 0, os.fstat(descriptor).st_size + wanted)
        except OSError:
            return False
        return True

    def _mount(self) -> None:
        argv = ["mount", "-t", self._system, "-o", f"loop,{self._options}", self._image, self.mount]
        subprocess.run(argv, check=True, stderr=subprocess.PIPE)

    def _unmount(self) -> None:
        for _ in range(100):  # a killed process may hold it for a moment longer
            if subprocess.run(["umount", self.mount], stderr=subprocess.PIPE, check=False).returncode == 0:
                return
            time.sleep(0.05)
        raise OSError(f"{self.mount} is still in use")
