"""A `holdfast://` file system, and a folder for what is saved through it."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.integrations.filesystem import HoldfastFileSystem


@pytest.fixture
def fs() -> HoldfastFileSystem:
    return HoldfastFileSystem()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "ckpts"
