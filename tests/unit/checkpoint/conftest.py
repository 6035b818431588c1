"""A checkpoint folder on a disk in memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.checkpoint.folder import Folder
from holdfast.testing.crashdisk import CrashDisk


@pytest.fixture
def folder() -> Folder:
    made = Folder(Path("/checkpoints"), CrashDisk())
    made.open()
    return made
