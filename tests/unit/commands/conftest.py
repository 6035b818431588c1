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
    folder = Path(tempfile.mkdtemp(prefix="hf-"))
    monkeypatch.setenv("HOLDFAST_HOME", str(folder / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield folder
    shutil.rmtree(folder)
    monkeypatch.undo()
    time.tzset()
