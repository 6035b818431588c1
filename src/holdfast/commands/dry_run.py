"""A plan as people read it: what `holdfast run --dry-run` prints."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from holdfast.plan import CheckpointPlan, Keep, Plan, RestartPlan
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
    if plan.accelerators:
        yield "devices", f"{plan.accelerators}, for this run alone; it waits until they are free"
    for name, value in plan.env.items():
        yield "environment", f"{name}={value}"
    for name in plan.secret_names:
        yield "secret", f"{name}, {_origin(plan, name)}"
    yield "checkpoints", plan.checkpoint.dir
    yield "", f"{_when(plan.checkpoint)}; {_kept(plan.checkpoint.keep)}"
    yield "", _copies(plan.checkpoint)
    yield "mirror", _mirrored(plan.checkpoint)
    yield "restarts", _restarts(plan.restart)
    progress = "learned" if plan.watchdog.progress_s is None else show_duration(plan.watchdog.progress_s)
    startup = show_duration(plan.watchdog.startup_s)
    yield "watchdog", f"{plan.watchdog.action}; first step within {startup}, between steps {progress}"
    yield "log", f"{show_size(plan.logs.max_bytes)}, a line on the state every {show_duration(plan.logs.heartbeat_s)}"
    yield "stop", f"{plan.stop_signal}, then {show_duration(plan.stop_grace_s)} of grace"
    if plan.segment_s is not None:
        yield "segment", f"saves, leaves and continues after {show_duration(plan.segment_s)} of an attempt"
    if plan.max_duration_s is not None:
        yield "at most", show_duration(plan.max_duration_s)


def _origin(plan: Plan, name: str) -> str:
    kind, source = next(iter(plan.secret_recipes.get(name, {"": ""}).items()))
    return f"from {kind} {source}" if kind else "from the caller"


def _when(checkpoint: CheckpointPlan) -> str:
    every = checkpoint.every
    if every.auto:
        return f"every so often that saving takes at most {show_ratio(checkpoint.max_overhead_ratio)}"
    rules = [Trigger(seconds=rule.seconds, if_steps=rule.steps) for rule in every.rules]
    return "every " + " or ".join([*_triggers(every.seconds, every.steps, every.epochs), *map(write_trigger, rules)])


def _triggers(seconds: float | None, steps: int | None, epochs: int | None) -> list[str]:
    given = (
        seconds and Trigger(seconds=seconds),
        steps and Trigger(steps=steps),
        epochs and Trigger(epochs=epochs),
    )
    return [write_trigger(trigger) for trigger in given if trigger]


def _kept(keep: Keep) -> str:
    kept = [f"the last {keep.last}"]
    if keep.best:
        kept.append(f"the {keep.best.count} of {keep.best.mode}imal {keep.best.metric}")
    kept += [f"one every {every}" for every in _triggers(keep.every_s, keep.every_steps, keep.every_epochs)]
    bounds = [f"up to {show_size(keep.max_bytes)}"] if keep.max_bytes is not None else []
    bounds += [f"multiples for {show_duration(keep.max_age_s)}"] if keep.max_age_s is not None else []
    return ", ".join([f"{' and '.join(kept)} are kept", *bounds])


def _copies(checkpoint: CheckpointPlan) -> str:
    memory = checkpoint.memory
    if not memory.on:
        return "no copies in memory"
    where = "in memory" if memory.dir is None else f"in memory, as files in {memory.dir}"
    given = _triggers(memory.seconds, memory.steps, None)
    often = f"every {given[0]}" if given else f"within {show_ratio(checkpoint.max_overhead_ratio)} of the time"
    return f"copies {where}, {often}"


def _mirrored(checkpoint: CheckpointPlan) -> str:
    mirror = checkpoint.mirror
    if mirror is None:
        return "none"
    often = "as often as loses least" if checkpoint.every.auto else "each checkpoint"
    given = _triggers(mirror.every_s, mirror.every_steps, mirror.every_epochs)
    said = [mirror.url, f"every {given[0]}" if given else often]
    said += [f"{show_size(mirror.bytes_per_s)}/s at most"] if mirror.bytes_per_s is not None else []
    return ", ".join([*said, *(["logs too"] if mirror.logs else [])])


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
