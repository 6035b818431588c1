"""Where the service of this user, this HOLDFAST_HOME and this bundle listens."""

from __future__ import annotations

import os
from pathlib import Path

from holdfast import runs
from holdfast.bundle import places
from holdfast.errors import HoldfastError


def socket_path() -> Path:
    """Of the service."""
    return Path(places.service_socket(os.getuid(), os.path.realpath(runs.home()), places.own()))


def make_folder() -> Path:
    """Create the folder of the socket, 0700. Raises HoldfastError when somebody else made it before us."""
    folder = runs.runtime_home()
    folder.mkdir(mode=0o700, exist_ok=True)
    if not runs.is_ours(folder):
        raise HoldfastError(f"{folder} belongs to another user, or others may write to it", hint="let root remove it")
    return folder
