"""Mounts that only one command sees."""

from __future__ import annotations

import functools
import subprocess


@functools.cache
def apart() -> tuple[str, ...]:
    """The words before a command that shall have mounts of its own; what it mounts is seen nowhere else.

    In a chroot the root is no mount whose propagation could be changed; who made the chroot has seen to that.
    """
    changed = subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True).returncode == 0
    return ("unshare", "--mount", *(() if changed else ("--propagation", "unchanged")))
