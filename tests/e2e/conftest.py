"""Fixtures of the end-to-end tests."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import noderuns
from tests.e2e.box import ENDED, Box

SCRIPTS = Path(__file__).parent / "scripts"


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


@pytest.fixture(scope="session")
def expected(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The final weights of tiny.py when nothing disturbs it."""
    return undisturbed(tmp_path_factory, "tiny.py", "python")


@pytest.fixture(scope="session")
def expected_of_two(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The final weights of two_ranks.py when nothing disturbs it."""
    return undisturbed(tmp_path_factory, "two_ranks.py", "torchrun", "--standalone", "--nproc-per-node", "2")


def undisturbed(tmp_path_factory: pytest.TempPathFactory, script: str, *launcher: str) -> str:
    """What a training comes to in peace."""
    box = Box(tmp_path_factory.mktemp("calm"))
    shutil.copy(SCRIPTS / script, box.work / "train.py")
    try:
        run = box.start("--", *launcher, "train.py", STEP_S="0")
        assert box.wait_for(run, *ENDED, within_s=120)["state"] == "succeeded", box.tail(run)
        return (run.root / "final.txt").read_text()
    finally:
        box.close()
        shutil.rmtree(box.short, ignore_errors=True)
