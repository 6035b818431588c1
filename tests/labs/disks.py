"""File systems of a test's own: small, slow, gone again afterwards. All of it needs root."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
            subprocess.run(["umount", str(mountpoint)], check=True)
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
        until(lambda: not (group / "cgroup.procs").read_text(), 20, what="the control group empty")
        group.rmdir()
