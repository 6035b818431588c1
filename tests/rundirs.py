"""Run directories for tests: a plan and a journal as `holdfast run` leaves them, and a run from start to end."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

from holdfast import journal, process
from holdfast.events import Event, RunCreated
from holdfast.lifecycle import fold
from holdfast.plan import CheckpointPlan, Plan, RestartPlan
from holdfast.runs import RunDir
from holdfast.state import State

QUICK = RestartPlan(backoff_initial_s=0.02, backoff_max_s=0.1)


def make(home: Path, argv: list[str], *, name: str = "digits", **fields: Any) -> RunDir:
    """A run directory under `home` that a supervisor would begin with; `fields` replace the plan's."""
    run = RunDir(home / "runs" / name)
    run.code.mkdir(parents=True)
    plan = Plan(
        run=name, name=name, dir=str(run.root), argv=tuple(argv), cwd=str(run.code),
        checkpoint=CheckpointPlan(dir=str(run.checkpoints)), restart=QUICK, created_s=time.time(),
    )  # fmt: skip
    plan = dataclasses.replace(plan, **fields)
    run.plan.write_text(json.dumps(plan.to_json()))
    made = journal.Journal(run.journal)
    made.append(RunCreated(t=time.time(), run=name))
    made.close()
    return run


def events(run: RunDir) -> list[Event]:
    """What the journal says."""
    return journal.read(run.journal)[0]


def state(run: RunDir) -> State:
    """The state the journal leaves."""
    return fold(events(run))


def processes(run: RunDir) -> dict[str, process.Identity]:
    """Who lives, by role."""
    try:
        told = json.loads((run.runtime / "processes.json").read_text())
    except OSError:
        return {}
    roles = ("shim", "supervisor", "archiver", "trainer")
    return {role: process.Identity(told[role]["pid"], told[role]["start_ticks"]) for role in roles if told[role]}


def once() -> RestartPlan:
    """No restarts."""
    return RestartPlan(policy="no")


def patient() -> RestartPlan:
    """As many restarts as it takes."""
    return RestartPlan(
        max_restarts=1000, max_no_progress=1000, window_restarts=1000, backoff_initial_s=0.01, backoff_max_s=0.02
    )
