"""Fixtures of the end-to-end tests."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import noderuns
from tests.e2e.box import Box


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    """A machine in a folder, swept at the end."""
    made = Box(tmp_path)
    yield made
    made.close()
    shutil.rmtree(made.short, ignore_errors=True)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """The home of runs that are made without the command line, swept at the end."""
    with noderuns.home(tmp_path) as base:
        yield base
