"""Where a checkpoint folder lies."""

from __future__ import annotations

from pathlib import Path

from holdfast.node.place import ephemeral

MOUNTS = """\
22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
30 22 0:25 / /dev/shm rw,nosuid - tmpfs tmpfs rw
31 22 0:26 / /data\\040sets rw shared:3 - tmpfs none rw
32 22 0:27 / /data rw - xfs /dev/sdb rw
"""


def test_a_disk_lasts() -> None:
    assert ephemeral(Path("/data/run"), MOUNTS) is None
    assert ephemeral(Path("/home/me"), MOUNTS) is None


def test_memory_is_named() -> None:
    assert "lie on tmpfs" in (ephemeral(Path("/dev/shm/run"), MOUNTS) or "")
    assert "lie on tmpfs" in (ephemeral(Path("/data sets/run"), MOUNTS) or "")


def test_a_container_layer_is_named() -> None:
    assert "with the container" in (ephemeral(Path("/run1"), "1 0 0:1 / / rw - overlay overlay rw") or "")


def test_tmp_is_named_whatever_it_lies_on() -> None:
    assert "/tmp is cleaned" in (ephemeral(Path("/tmp/run"), MOUNTS) or "")


def test_this_machine_can_be_asked() -> None:
    assert ephemeral(Path("/proc")) is None
