"""File systems of a test's own: small, slow, gone again afterwards. All of it needs root."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.cgroups import removed
from tests.needs import need, need_program
from tests.waiting import until

THROTTLES = Path("/sys/fs/cgroup/blkio")


@contextmanager
def loop_ext4(work: Path, size_bytes: int) -> Iterator[tuple[Path, str]]:
    """An ext4 of its own on a loop device; yields where it is mounted, and the device."""
    need(os.geteuid() == 0, "needs root to mount")
    for program in ("losetup", "mkfs.ext4", "mount"):
        need_program(program)
    image, mountpoint = work / "disk.img", work / "disk"
    with image.open("wb") as file:
        file.truncate(size_bytes)
    mountpoint.mkdir()
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    device = subprocess.run(["losetup", "-f", "--show", str(image)], check=True, capture_output=True, text=True)
    try:
        subprocess.run(["mount", device.stdout.strip(), str(mountpoint)], check=True)
        try:
            yield mountpoint, device.stdout.strip()
        finally:
            until(lambda: unmounted(mountpoint), what="nobody in the file system any more")
    finally:
        subprocess.run(["losetup", "-d", device.stdout.strip()], check=True)


@contextmanager
def throttled(device: str, *, write_bytes_per_s: int) -> Iterator[Path]:
    """A control group whose members write to `device` no faster than that; yields its `cgroup.procs`."""
    need((THROTTLES / "blkio.throttle.write_bps_device").exists(), "needs the throttles of cgroup v1's blkio")
    group = THROTTLES / f"holdfast-test-{os.getpid()}"
    group.mkdir()
    try:
        number = Path(device).stat().st_rdev
        rule = f"{os.major(number)}:{os.minor(number)} {write_bytes_per_s}"
        (group / "blkio.throttle.write_bps_device").write_text(rule)
        yield group / "cgroup.procs"
    finally:
        until(lambda: removed(group), what="the control group empty")


def unmounted(mountpoint: Path) -> bool:
    """Whether it could be: who was killed lets go of its files a moment after it has lost its memory."""
    return subprocess.run(["umount", str(mountpoint)], capture_output=True).returncode == 0
