"""Where the service of this user, this HOLDFAST_HOME and this bundle listens."""

from __future__ import annotations

import os
from pathlib import Path

from holdfast import runs
from holdfast.bundle import places


def socket_path() -> Path:
    """Of the service."""
    return Path(places.service_socket(os.getuid(), os.path.realpath(runs.home()), places.own()))


def make_folder() -> Path:
    """Create the folder of the socket, 0700. Raises NotOurs when somebody else made it before us."""
    folder = runs.runtime_home()
    runs.make_private(folder)
    return folder
