"""A home and a runtime folder of the test's own, UTC."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Short paths: a socket's path ends at 108 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="hf-"))
    (folder / "run").mkdir(mode=0o700)
    monkeypatch.setenv("HOLDFAST_HOME", str(folder / "home"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder / "run"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield folder
    shutil.rmtree(folder)
    monkeypatch.undo()
    time.tzset()
