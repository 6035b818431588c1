"""A laptop of the test's own."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def laptop(fetched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A HOLDFAST_HOME of the test's own, with that cache."""
    (tmp_path / "bundles").symlink_to(fetched)
    monkeypatch.setenv("HOLDFAST_HOME", str(tmp_path))
    return tmp_path
