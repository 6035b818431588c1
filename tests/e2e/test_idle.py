"""Ours cost next to nothing while training runs."""

from __future__ import annotations

import time

import pytest

from holdfast.process import stat_fields
from tests.e2e.box import Box
from tests.waiting import until

pytestmark = pytest.mark.e2e

OURS = ("shim", "supervisor", "archiver")


def _cpu_ticks(pid: int) -> int:
    fields = stat_fields(pid) or ["0"] * 20
    return int(fields[11]) + int(fields[12])


def test_none_of_ours_spins(box: Box) -> None:
    run = box.start("--", "sleep", "60")
    pids = {role: until(lambda role=role: box.process(run, role), what=role).pid for role in OURS}
    box.wait_for(run, "running")

    assert until(lambda: all(ticks < 15 for ticks in _spent(pids).values()), what=lambda: f"{_spent(pids)} ticks")


def _spent(pids: dict[str, int]) -> dict[str, int]:
    """Clock ticks of 10 ms that each role uses in 1.5 s from now."""
    before = {role: _cpu_ticks(pid) for role, pid in pids.items()}
    time.sleep(1.5)  # not to wait for anything: what is measured is the use in this time
    return {role: _cpu_ticks(pid) - before[role] for role, pid in pids.items()}
