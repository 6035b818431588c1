"""What the trainer is started with: its environment, and what the next attempt restores."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from holdfast.checkpoint.load import checkpoints
from holdfast.plan import VISIBLE, Plan
from holdfast.process import CALLER_PYTHONPATH
from holdfast.runs import RunDir
from holdfast.state import State

TRACKERS = ("MLFLOW_RUN_ID",)  # the variables that a program's records may set for later attempts
Environment = dict[str, str | None]  # added to the shim's own; None takes a variable away


def environment(run: RunDir, plan: Plan, state: State, attempt: int, caller: Mapping[str, str]) -> Environment:
    """The variables of attempt `attempt`; `caller` is what the run was started from."""
    given = {**caller, **plan.env}
    own = given.get("PYTHONPATH", "")
    paths = [str(run.lib), own if "PYTHONPATH" in plan.env else given.get(CALLER_PYTHONPATH, own)]
    tracked = {} if "WANDB_RUN_ID" in given else {"WANDB_RUN_ID": tracker_id(run, plan), "WANDB_RESUME": "allow"}
    tracked |= {variable: value for variable, value in state.trackers if variable not in given}
    errors = {} if "TORCHELASTIC_ERROR_FILE" in given else {"TORCHELASTIC_ERROR_FILE": str(error_file(run, attempt))}
    return {
        "PYTHONFAULTHANDLER": "1",
        "PYTHONUNBUFFERED": "1",
        **tracked,
        **errors,
        **plan.env,
        **({VISIBLE: ",".join(state.devices) if attempt else ""} if plan.accelerators else {}),
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        CALLER_PYTHONPATH: None,
        "HOLDFAST_RUN_DIR": str(run.root),
        "HOLDFAST_RUN_ID": plan.run,
        "HOLDFAST_ATTEMPT": str(attempt),
        "HOLDFAST_CKPT_DIR": plan.checkpoint.dir,
        "HOLDFAST_RESUME": newest_manifest(plan, state),
        "HOLDFAST_RUNTIME_DIR": str(run.runtime),
        "HOLDFAST_WANT": json.dumps(state.want),
        "HOLDFAST_RATES": json.dumps(dataclasses.asdict(state.seen)),
    }


def tracker_id(run: RunDir, plan: Plan) -> str:
    """One id for the trackers in all attempts of the run, and another one for a run of the same name elsewhere."""
    told = f"{run.root.resolve()} {plan.created_s}".encode()
    return f"{plan.run}-{hashlib.blake2b(told, digest_size=4).hexdigest()}"


def error_file(run: RunDir, attempt: int) -> Path:
    """Where torchrun's `record` leaves the first rank's exception."""
    return run.runtime / f"error-{attempt}.json"


def recorded_error(run: RunDir, attempt: int) -> str:
    """The traceback in `error_file`, empty when there is none."""
    try:
        told = json.loads(error_file(run, attempt).read_text())["message"]
        return str(told["extraInfo"]["py_callstack"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def newest_manifest(plan: Plan, state: State) -> str:
    """Path of the newest manifest known, empty for none or when something else than the newest is wanted."""
    if state.committed is None or not state.committed.manifest or state.want != "newest":
        return ""
    path = Path(plan.checkpoint.dir) / "manifests" / Path(state.committed.manifest).name
    return str(path) if path.exists() else ""


def resolve(plan: Plan, at: Any) -> Any:
    """The archiver's `want` for what a person asked: None, a step, or "best". Raises ValueError in words."""
    if at is None:
        return "newest"
    infos = checkpoints(Path(plan.checkpoint.dir))
    if isinstance(at, int) and not isinstance(at, bool):
        steps = sorted({info.step for info in infos})
        if at not in steps:
            there = ", ".join(str(step) for step in steps[-10:]) or "none"
            raise ValueError(f"no checkpoint of step {at}; the newest there are: {there}")
        return {"step": at}
    if at != "best":
        raise ValueError(f"resume at {at!r}: expected a step, or best")
    best = plan.checkpoint.keep.best
    if best is None:
        raise ValueError("resume at best: the run file names no `checkpoint.keep.best`")
    known = [info for info in infos if best.metric in info.metrics]
    if not known:
        raise ValueError(f"resume at best: no checkpoint holds the metric {best.metric!r}")
    chosen = (min if best.mode == "min" else max)(known, key=lambda info: info.metrics[best.metric])
    return {"term": chosen.term, "sequence": chosen.sequence}
