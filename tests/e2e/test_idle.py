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
    until(lambda: box.status(run)["state"] == "running")
    time.sleep(1.5)  # let start-up work end: what is measured is the time after it
    before = {role: _cpu_ticks(pid) for role, pid in pids.items()}

    time.sleep(3)

    spent = {role: _cpu_ticks(pid) - before[role] for role, pid in pids.items()}
    assert all(ticks < 30 for ticks in spent.values()), f"clock ticks of 10 ms in 3 s: {spent}"
