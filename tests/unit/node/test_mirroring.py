"""The archiver's side of a mirror: whatever is wrong with the mirror, the archiver lives."""

from __future__ import annotations

import json
import select
import time
from pathlib import Path
from typing import Any

import pytest

from holdfast.checkpoint import canonical
from holdfast.goodput import Costs, Failures, interval
from holdfast.node.eventlog import EventLog
from holdfast.node.mirroring import Mirroring
from holdfast.node.mishaps import Mishaps
from holdfast.plan import CheckpointPlan, Every, MirrorPlan, Plan
from holdfast.runs import RunDir
from tests.mirrors import Machine


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path / "checkpoints")
    made.begin(1)
    made.save(seed=1, sequence=1, step=10, time_s=1000.0)
    return made


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = RunDir(tmp_path / "digits")
    made.root.mkdir()
    return made


def mirroring_of(run: RunDir, machine: Machine, **mirror: Any) -> Mirroring:
    """What an archiver of this run has, with `every: auto`."""
    to = MirrorPlan(url=str(run.root.parent / "mirror"), **mirror)
    checkpoint = CheckpointPlan(dir=str(machine.root), every=Every(auto=True), mirror=to)
    plan = Plan(run="digits", name="digits", dir=str(run.root), argv=("true",), cwd="/", checkpoint=checkpoint)
    log = EventLog(run.archiver_log)
    return Mirroring(run, plan, log, Mishaps(log))


def settled(mirroring: Mirroring) -> None:
    """Wait for the round that is under way."""
    rounds, _ = mirroring.workers
    assert select.select([rounds.wake], [], [], 30)[0]
    rounds.collect()


def told(run: RunDir, event: str) -> list[dict[str, Any]]:
    lines = map(json.loads, run.archiver_log.read_text().splitlines())
    return [line for line in lines if line["event"] == event]


def test_a_mirror_that_a_later_version_has_written_is_told_and_left_alone(run: RunDir, machine: Machine) -> None:
    mirror = run.root.parent / "mirror"
    mirror.mkdir()
    (mirror / "format.json").write_bytes(canonical.encode_checked({"format": "holdfast", "version": 2}))
    mirroring = mirroring_of(run, machine)

    mirroring.tick(time.monotonic())
    settled(mirroring)

    (warning,) = told(run, "warning")
    assert warning["id"] == "mirror-unreachable"
    assert "version 2" in warning["message"]
    assert [path.name for path in mirror.iterdir()] == ["format.json"]


def test_auto_sends_at_the_interval_that_loses_least_and_the_last_one_always(run: RunDir, machine: Machine) -> None:
    mirroring = mirroring_of(run, machine)
    mirroring.tick(time.monotonic())
    settled(mirroring)
    (chosen,) = told(run, "interval")
    for sequence, time_s in ((2, 1000.0 + chosen["seconds"] / 2), (3, 1001.0 + chosen["seconds"])):
        machine.save(seed=sequence, sequence=sequence, step=10 * sequence, time_s=time_s)
        mirroring.wake()
        mirroring.tick(time.monotonic())
        settled(mirroring)
    assert [10, 30] == [line["step"] for line in told(run, "mirrored")]
    machine.save(seed=4, sequence=4, step=40, time_s=1002.0 + chosen["seconds"])

    over = list[None]()
    mirroring.finish(over.append)
    settled(mirroring)

    assert ([10, 30, 40], [None]) == ([line["step"] for line in told(run, "mirrored")], over)
    costs = Costs(**{name: chosen[name] for name in ("blocked_s", "write_s", "restart_s")})
    again = interval("mirror", costs, Failures(), memory=False, max_overhead_ratio=0.03)
    assert 0 < chosen["blocked_s"]
    assert again.to_json().items() <= chosen.items()


def test_a_cadence_of_its_own_leaves_auto_to_the_disk(run: RunDir, machine: Machine) -> None:
    mirroring = mirroring_of(run, machine, every_steps=10)
    mirroring.tick(time.monotonic())
    settled(mirroring)

    assert [10] == [line["step"] for line in told(run, "mirrored")]
    assert [] == told(run, "interval")
