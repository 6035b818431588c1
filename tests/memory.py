"""How much memory this process has used."""

from __future__ import annotations

import re
from pathlib import Path


def peak_resident_bytes() -> int:
    """The most of this program that was ever resident; getrusage would count pages of the parent as well."""
    found = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024
