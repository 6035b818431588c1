"""The archiver's side of a mirror: whatever is wrong with the mirror, the archiver lives."""

from __future__ import annotations

import json
import select
import time
from pathlib import Path

from holdfast.checkpoint import canonical
from holdfast.node.eventlog import EventLog
from holdfast.node.mirroring import Mirroring
from holdfast.node.mishaps import Mishaps
from holdfast.plan import CheckpointPlan, MirrorPlan, Plan
from holdfast.runs import RunDir
from tests.mirrors import Machine


def test_a_mirror_that_a_later_version_has_written_is_told_and_left_alone(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "checkpoints")
    machine.begin(1)
    machine.save(seed=1)
    mirror, run = tmp_path / "mirror", RunDir(tmp_path / "digits")
    run.root.mkdir()
    mirror.mkdir()
    (mirror / "format.json").write_bytes(canonical.encode_checked({"format": "holdfast", "version": 2}))
    checkpoint = CheckpointPlan(dir=str(machine.root), mirror=MirrorPlan(url=str(mirror)))
    plan = Plan(run="digits", name="digits", dir=str(run.root), argv=("true",), cwd="/", checkpoint=checkpoint)
    log = EventLog(run.archiver_log)
    mirroring = Mirroring(run, plan, log, Mishaps(log))
    rounds, _ = mirroring.workers

    mirroring.tick(time.monotonic())
    assert select.select([rounds.wake], [], [], 30)[0]
    rounds.collect()

    told = [json.loads(line) for line in run.archiver_log.read_text().splitlines()]
    assert [line["id"] for line in told] == ["mirror-unreachable"]
    assert "version 2" in told[0]["message"]
    assert [path.name for path in mirror.iterdir()] == ["format.json"]
