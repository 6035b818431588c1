"""As on ext4, with XFS."""

from __future__ import annotations

from bench.faults.power_ext4 import PowerExt4

LEAST_BYTES = 300 << 20  # mkfs.xfs makes no smaller ones


class PowerXfs(PowerExt4):
    title = "power loss (xfs)"
    system = "xfs"
    options = ("defaults",)
