"""What the trainer is started with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from holdfast.events import RunCreated, TrackerSeen
from holdfast.goodput import Failures
from holdfast.lifecycle import fold
from holdfast.node import launch
from holdfast.plan import CheckpointPlan, Plan
from holdfast.runs import RunDir
from holdfast.state import State


def plan(root: Path, **fields: Any) -> Plan:
    checkpoint = CheckpointPlan(dir=str(root / "checkpoints"))
    return Plan(run="r", name="r", dir=str(root), argv=("true",), cwd=str(root), checkpoint=checkpoint, **fields)


def test_ids_of_trackers_are_the_same_in_all_attempts_and_not_in_other_runs(tmp_path: Path) -> None:
    run, other = RunDir(tmp_path / "a"), RunDir(tmp_path / "b")
    first, second = (launch.environment(run, plan(run.root), State(), n, {}) for n in (1, 2))
    third = launch.environment(other, plan(other.root), State(), 1, {})

    assert first["WANDB_RUN_ID"] == second["WANDB_RUN_ID"] != third["WANDB_RUN_ID"]
    assert first["WANDB_RESUME"] == "allow"


def test_an_id_that_a_tracker_made_is_given_to_the_next_attempt(tmp_path: Path) -> None:
    seen = TrackerSeen(attempt=1, variable="MLFLOW_RUN_ID", value="abc")
    state = fold([RunCreated(run="r"), seen])

    ours = launch.environment(RunDir(tmp_path), plan(tmp_path), state, 2, {})
    users = launch.environment(RunDir(tmp_path), plan(tmp_path, env={"MLFLOW_RUN_ID": "mine"}), state, 2, {})

    assert (ours["MLFLOW_RUN_ID"], users["MLFLOW_RUN_ID"]) == ("abc", "mine")


def test_an_id_that_the_user_gave_is_kept(tmp_path: Path) -> None:
    run = RunDir(tmp_path)

    by_file = launch.environment(run, plan(tmp_path, env={"WANDB_RUN_ID": "mine"}), State(), 1, {})
    by_shell = launch.environment(run, plan(tmp_path), State(), 1, {"WANDB_RUN_ID": "mine"})

    assert by_file["WANDB_RUN_ID"] == "mine"
    assert "WANDB_RUN_ID" not in by_shell  # the shim's own environment has it


def test_the_callers_pythonpath_comes_after_the_library_and_ours_is_gone(tmp_path: Path) -> None:
    made = launch.environment(RunDir(tmp_path), plan(tmp_path), State(), 1, {"HOLDFAST_CALLER_PYTHONPATH": "/mine"})

    assert made["PYTHONPATH"] == f"{tmp_path}/lib:/mine"
    assert made["HOLDFAST_CALLER_PYTHONPATH"] is None


def test_what_the_journal_has_seen_is_handed_to_the_attempt(tmp_path: Path) -> None:
    seen = Failures(process=2, machine=1, trained_s=4000.0)

    made = launch.environment(RunDir(tmp_path), plan(tmp_path), State(seen=seen), 3, {})

    assert Failures.from_json(json.loads(made["HOLDFAST_RATES"] or "")) == seen


@pytest.mark.parametrize("at", [7, "best", "worst", True, -1, 1.5])
def test_what_cannot_be_resumed_at_is_refused_in_words(tmp_path: Path, at: Any) -> None:
    with pytest.raises(ValueError, match=r"checkpoint|expected"):
        launch.resolve(plan(tmp_path), at)


def test_resume_without_a_place_takes_the_newest(tmp_path: Path) -> None:
    assert launch.resolve(plan(tmp_path), None) == "newest"
