"""A service of the test's own, started as a laptop would start it, and a run whose folder verbs can work in."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.runs import RunDir
from tests.unit.commands.scene import make_run
from tests.unit.service.lab import Node, node


@pytest.fixture(scope="module")
def common_home() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="hf-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def own_home(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Of the common service where the test uses that, without runs afterwards; else of the test alone."""
    is_common = "service" in request.fixturenames
    folder = request.getfixturevalue("common_home") if is_common else Path(tempfile.mkdtemp(prefix="hf-"))
    monkeypatch.setenv("HOLDFAST_HOME", str(folder / "home"))
    yield folder
    shutil.rmtree(folder / "home" / "runs" if is_common else folder, ignore_errors=True)


@pytest.fixture(scope="module")
def service(common_home: Path) -> Iterator[Node]:
    """One for all tests of a file, none of which ends it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOLDFAST_HOME", str(common_home / "home"))
        with node() as running:
            yield running


@pytest.fixture
def own_service(own_home: Path) -> Iterator[Node]:
    """One that the test may do with what it likes."""
    with node() as running:
        yield running


@pytest.fixture
def run(own_home: Path) -> RunDir:
    """`holdfast shell digits -- COMMAND` is any program as a verb."""
    return make_run("digits", created_s=time.time())
