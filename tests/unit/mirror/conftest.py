"""Mirrors of every kind that runs here."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mirrors import Machine, Place, place


@pytest.fixture(params=["directory", "rclone", "moto", "ceph"])
def connected(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return place(request.param, request, tmp_path)


@pytest.fixture
def ours(tmp_path: Path) -> Machine:
    """A machine with a run in its first attempt."""
    machine = Machine(tmp_path / "ours")
    machine.begin(1)
    return machine


@pytest.fixture
def bare(tmp_path: Path) -> Machine:
    """A machine that has nothing."""
    return Machine(tmp_path / "bare")


@pytest.fixture
def moto_place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """The store that is right about conditions, for what does not differ between stores."""
    return place("moto", request, tmp_path)
