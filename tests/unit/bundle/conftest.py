"""Wheels are fetched once a session."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that fills as tests need it."""
    return tmp_path_factory.mktemp("bundles")


@pytest.fixture
def laptop(fetched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A HOLDFAST_HOME of the test's own, with that cache."""
    (tmp_path / "bundles").symlink_to(fetched)
    monkeypatch.setenv("HOLDFAST_HOME", str(tmp_path))
    return tmp_path
