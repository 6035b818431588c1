"""`holdfast drill --demo`: a real run is broken in every way there is, and recovers."""

from __future__ import annotations

import json

import pytest

from tests.e2e.box import Box

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def test_every_fault_is_survived(box: Box) -> None:
    done = box.holdfast("drill", "--demo", "--json", timeout_s=580, TMPDIR=str(box.root))

    results = {one["fault"]: one for one in json.loads(done.stdout or "[]")}
    assert done.returncode == 0, done.stdout + done.stderr
    assert {
        "kill_trainer",
        "kill_supervisor",
        "kill_archiver",
        "kill_shim",
        "stop_trainer",
        "fill_disk",
    } <= results.keys()
    assert all(one["lost_steps"] == 0 for name, one in results.items() if name not in ("kill_trainer", "stop_trainer"))
