"""What a test needs of the machine: missing here, it is skipped with the reason; missing in CI, it fails."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest


def need(condition: object, reason: str) -> None:
    """Skip the calling test unless `condition`; with CI set, fail it: there nothing may be missing."""
    if condition:
        return
    if os.environ.get("CI"):
        pytest.fail(f"CI must not skip: {reason}")
    pytest.skip(reason)


def need_program(name: str) -> str:
    """The path of program `name`, of this Python's environment or on PATH; or `need` fails with its name."""
    own = Path(sys.executable).with_name(name)
    found = own if own.exists() else shutil.which(name)
    need(found, f"needs the program {name}")
    return str(found)
