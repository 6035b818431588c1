"""Spec and facts → plan, and back from its JSON."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import HoldfastError
from holdfast.plan import (
    Best,
    CheckpointPlan,
    Every,
    Facts,
    Keep,
    LogsPlan,
    Plan,
    RestartPlan,
    RestartRule,
    WatchdogPlan,
    digest,
    make,
)
from holdfast.spec import Source, load

FACTS = Facts(
    run="digits-2", dir="/home/u/.holdfast/runs/digits-2", name="folder", base="/home/u/code",
    cwd="/home/u/.holdfast/runs/digits-2/code", shell="/bin/bash", home="/home/u", now_s=1_764_000_000.0,
)  # fmt: skip


def planned(text: str, **changed: object) -> Plan:
    spec = load([Source("holdfast.yaml", text)], environ={"K": "hunter2"})
    return make(spec, dataclasses.replace(FACTS, **changed))


def test_defaults_of_a_run_file_are_the_defaults_of_a_plan() -> None:
    plan = planned("run: python train.py")

    assert plan.checkpoint == CheckpointPlan(dir=f"{FACTS.dir}/checkpoints")
    assert (plan.restart, plan.watchdog, plan.logs) == (RestartPlan(), WatchdogPlan(), LogsPlan())
    bare = Plan(run="", name="", dir="", argv=(), cwd="", checkpoint=plan.checkpoint)
    assert (plan.stop_signal, plan.stop_grace_s, plan.max_duration_s) == (
        bare.stop_signal, bare.stop_grace_s, bare.max_duration_s,
    )  # fmt: skip


def test_shell_text_goes_to_the_shell_untouched() -> None:
    plan = planned("run: echo ${run} $A\nsetup: |\n  a\n  b ${name}\nenvs: {A: 1}")

    assert plan.argv == ("/bin/bash", "-c", "echo ${run} $A")
    assert plan.setup == ("/bin/bash", "-c", "a\nb ${name}\n")


def test_a_list_goes_without_a_shell() -> None:
    assert planned("run: [python, $HOME, '*']").argv == ("python", "$HOME", "*")


@pytest.mark.parametrize(("written", "made"), [
    ("ckpt", "/home/u/code/ckpt"), ("../x", "/home/u/x"), ("~/x", "/home/u/x"), ("~", "/home/u"), ("/d/./y", "/d/y"),
    ("/d/${name}/${run}/${D}", "/d/folder/digits-2/e"),
])  # fmt: skip
def test_paths_are_made_absolute_and_references_replaced(written: str, made: str) -> None:
    assert planned(f"run: x\nenvs: {{D: e}}\ncheckpoint: {{dir: '{written}'}}").checkpoint.dir == made


def test_an_interpreter_comes_first_on_path() -> None:
    plan = planned("run: x\nenvironment: {python: .venv/bin/python}", environ={"PATH": "/usr/bin", "SECRET": "hunter2"})

    assert plan.env == {"PATH": "/home/u/code/.venv/bin:/usr/bin"}


def test_what_chooses_programs_is_recorded_and_nothing_else_of_the_caller() -> None:
    environ = {"PATH": "/p", "CONDA_PREFIX": "/c", "AWS_SECRET_ACCESS_KEY": "hunter2"}

    assert planned("run: x\nenvs: {CONDA_PREFIX: /mine, A: 1}", environ=environ).env == {
        "PATH": "/p", "CONDA_PREFIX": "/mine", "A": "1",
    }  # fmt: skip


def test_secrets_are_names_and_recipes() -> None:
    plan = planned("run: x\nsecrets: {K: null, C: {command: pass c}, F: {file: ~/.f}}")

    assert plan.secret_names == ("C", "F", "K")
    assert plan.secret_recipes == {"C": {"command": "pass c"}, "F": {"file": "/home/u/.f"}}
    assert "hunter2" not in json.dumps(plan.to_json())


def test_every_field_of_the_file_arrives() -> None:
    plan = planned("""
run: x
name: digits
checkpoint:
  every: [15m, 1000 steps, 2 epochs]
  max_overhead: 5%
  timeout: 1m
  name: "{step}"
  keep: {last: 5, best: {metric: loss, mode: max, count: 2}}
restart:
  policy: always
  max_restarts: 1
  max_no_progress: 2
  backoff: {initial: 2s, factor: 3, max: 1m}
  window: {restarts: 7, per: 2h}
  rules: [{class: cuda_oom, action: stop}, {exit_codes: [3, 4], free: true}, {pattern: a.b}]
watchdog: {startup: 1m, progress: 2m, action: dump}
logs: {keep: 1MB, sync: always, heartbeat: 1m}
stop_signal: INT
stop_grace_period: 9s
max_duration: 1d
""")
    best = Best(metric="loss", mode="max", count=2)
    assert plan.checkpoint == CheckpointPlan(
        dir=plan.checkpoint.dir, every=Every(auto=False, steps=1000, seconds=900.0, epochs=2), max_overhead_ratio=0.05,
        timeout_s=60.0, name="{step}", keep=Keep(last=5, best=best),
    )  # fmt: skip
    assert plan.restart == RestartPlan(
        policy="always", max_restarts=1, max_no_progress=2,
        backoff_initial_s=2.0, backoff_factor=3.0, backoff_max_s=60.0,
        window_restarts=7, window_s=7200.0,
        rules=(RestartRule(exit_class="cuda_oom", action="stop"), RestartRule(exit_codes=(3, 4), free=True),
               RestartRule(pattern="a.b")),
    )  # fmt: skip
    assert plan.watchdog == WatchdogPlan(startup_s=60.0, progress_s=120.0, action="dump")
    assert plan.logs == LogsPlan(sync="always", max_bytes=1_000_000, heartbeat_s=60.0)
    assert (plan.name, plan.stop_signal, plan.stop_grace_s, plan.max_duration_s) == ("digits", "SIGINT", 9.0, 86_400.0)
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


@settings(deadline=None)
@given(st.text(), st.dictionaries(st.text(), st.text()), st.floats(allow_nan=False, allow_infinity=False))
def test_a_plan_comes_back_from_its_json(name: str, env: dict[str, str], now_s: float) -> None:
    plan = Plan(
        run="r",
        name=name,
        dir="/d",
        argv=("a",),
        cwd="/",
        env=env,
        checkpoint=CheckpointPlan(dir="/c"),
        created_s=now_s,
    )
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_a_changed_plan_is_refused() -> None:
    raw = planned("run: x").to_json()

    assert raw["digest"] == digest(raw)
    with pytest.raises(HoldfastError, match=r"plan\.json was changed"):
        Plan.from_json(raw | {"cwd": "/elsewhere"})


def test_other_versions_and_missing_fields_are_refused() -> None:
    raw = planned("run: x").to_json()

    with pytest.raises(HoldfastError, match="made by a newer holdfast: its plan has version 2, this holdfast reads 1"):
        Plan.from_json(raw | {"version": 2})
    with pytest.raises(HoldfastError, match="damaged"):
        Plan.from_json({"version": 1, "run": "x"})


def test_keys_of_a_later_version_are_left_out() -> None:
    raw = planned("run: x").to_json() | {"new": 1}

    assert Plan.from_json(raw | {"digest": digest(raw)}).run == "digits-2"
