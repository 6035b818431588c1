"""A plan as people read it: what `holdfast run --dry-run` prints."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from holdfast.plan import CheckpointPlan, Plan, RestartPlan
from holdfast.units import Trigger, show_duration, show_ratio, show_size, write_trigger


def describe(plan: Plan, *, copied: bool) -> str:
    """One fact a line, name first. Pure. `copied`: the command runs in a snapshot of the code."""
    return "\n".join(f"{name:<12} {said}" for name, said in _facts(plan, copied))


def _facts(plan: Plan, copied: bool) -> Iterator[tuple[str, str]]:
    yield "run", f"{plan.run}, new"
    yield "folder", plan.dir
    yield "command", shlex.join(plan.argv)
    yield "in", f"{plan.cwd}, a snapshot of the code" if copied else plan.cwd
    if plan.setup:
        yield "setup", shlex.join(plan.setup)
    for name, value in plan.env.items():
        yield "environment", f"{name}={value}"
    for name in plan.secret_names:
        yield "secret", f"{name}, {_origin(plan, name)}"
    yield "checkpoints", plan.checkpoint.dir
    yield "", f"{_when(plan.checkpoint)}; {_kept(plan.checkpoint)}"
    yield "restarts", _restarts(plan.restart)
    progress = "learned" if plan.watchdog.progress_s is None else show_duration(plan.watchdog.progress_s)
    startup = show_duration(plan.watchdog.startup_s)
    yield "watchdog", f"{plan.watchdog.action}; first step within {startup}, between steps {progress}"
    yield "log", f"{show_size(plan.logs.max_bytes)}, a line on the state every {show_duration(plan.logs.heartbeat_s)}"
    yield "stop", f"{plan.stop_signal}, then {show_duration(plan.stop_grace_s)} of grace"
    if plan.max_duration_s is not None:
        yield "at most", show_duration(plan.max_duration_s)


def _origin(plan: Plan, name: str) -> str:
    kind, source = next(iter(plan.secret_recipes.get(name, {"": ""}).items()))
    return f"from {kind} {source}" if kind else "from the caller"


def _when(checkpoint: CheckpointPlan) -> str:
    every = checkpoint.every
    if every.auto:
        return f"every so often that saving takes at most {show_ratio(checkpoint.max_overhead_ratio)}"
    given = (
        every.seconds and Trigger(seconds=every.seconds),
        every.steps and Trigger(steps=every.steps),
        every.epochs and Trigger(epochs=every.epochs),
    )
    return "every " + " or ".join(write_trigger(trigger) for trigger in given if trigger)


def _kept(checkpoint: CheckpointPlan) -> str:
    best = checkpoint.keep.best
    kept = f"the last {checkpoint.keep.last} are kept"
    return f"{kept} and the {best.count} of {best.mode}imal {best.metric}" if best else kept


def _restarts(restart: RestartPlan) -> str:
    if restart.policy == "no":
        return "none"
    rules = f"; {len(restart.rules)} rules before that" if restart.rules else ""
    return (
        f"{restart.policy}; {restart.max_restarts} at most, "
        f"{restart.window_restarts} in {show_duration(restart.window_s)}, "
        f"{restart.max_no_progress} without progress; pause {show_duration(restart.backoff_initial_s)} "
        f"to {show_duration(restart.backoff_max_s)}{rules}"
    )
