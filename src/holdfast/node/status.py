"""The `status --json` object, from what lies in files: no supervisor is needed to read it."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from holdfast import journal, process
from holdfast.checkpoint.lineage import Position
from holdfast.events import AttemptEnded, FindingRaised
from holdfast.heartbeat import Beat, Phase
from holdfast.lifecycle import fold
from holdfast.node import tail
from holdfast.node.alone import by_itself
from holdfast.node.pages import Pages, newest_copy
from holdfast.plan import Plan
from holdfast.runs import RunDir
from holdfast.state import OVER, Policy, RunState, State

_NOT_METRICS = {"t", "step", "epoch", "attempt"}


def status(run: RunDir, *, now_s: float) -> dict[str, Any]:
    """As GET /status, from journal, pages, plan and records. Raises OSError, ValueError when those cannot be read."""
    plan = Plan.from_json(json.loads(run.plan.read_text()))
    if plan.alone:
        state, beats = by_itself(run, plan)
        return compose(run, plan, state, beats, now_s=now_s, live=state.started is not None)
    events, _ = journal.read(run.journal)
    state = fold(events, Policy.of(plan))
    beats = Pages(run.runtime / "pages").beats(state.attempt)
    return compose(run, plan, state, beats, now_s=now_s, live=shim_lives(run))


def shim_lives(run: RunDir) -> bool:
    """Whether the run's shim is up, by processes.json."""
    try:
        shim = json.loads((run.runtime / "processes.json").read_text())["shim"]
        return process.alive(process.Identity(shim["pid"], shim["start_ticks"]))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def compose(
    run: RunDir, plan: Plan, state: State, beats: Sequence[Beat], *, now_s: float, live: bool, step_s: float = 0.0
) -> dict[str, Any]:
    """The object. `step_s` is how long a step takes of late, 0 while unknown; `live`: somebody watches the run."""
    record = tail.newest(run.records / "rank-00000.jsonl", "step")
    metrics = {k: v for k, v in record.items() if k not in _NOT_METRICS and isinstance(v, (int, float, str, bool))}
    ended = state.history[-1] if state.history else None
    told = max(int(record.get("step", 0)), state.committed_step, ended.step if ended else 0)
    step = max([beat.step for beat in beats], default=0) or told
    total = max((beat.steps_total for beat in beats), default=ended.steps_total if ended else 0)
    speed = 1 / step_s if step_s > 0 else _mean_speed(state, beats, now_s)
    running = live and state.phase == RunState.RUNNING
    return {
        "run": plan.run,
        "name": plan.name,
        "state": shown_state(state, beats, live=live),
        "host": socket.gethostname(),
        "attempt": state.attempt,
        "restarts": state.restarts,
        "segments": state.segments,
        "step": step,
        "steps_total": total or None,
        "epoch": max((beat.epoch for beat in beats), default=ended.epoch if ended else int(record.get("epoch", 0))),
        "metrics": metrics,
        "checkpoint": _checkpoint(state, now_s),
        "mirror": _mirror(run, plan, state, now_s),
        "intervals": {chosen.tier: chosen.seconds for chosen in state.intervals},
        "memory": _memory(state, beats, now_s),
        "devices": list(state.devices),
        "queue": _queue(state),
        "restored": _restored(state),
        "findings": [_finding(finding, plan.run) for finding in state.findings],
        "exit_code": state.result.exit_code if state.result else None,
        "reason": state.result.reason if state.result else "",
        "dir": str(run.root),
        "pid": state.started.pid if state.started else None,
        "speed_steps_per_s": speed if running else None,
        "eta_s": (total - step) / speed if running and speed and total > step else None,
        "to_be_continued": bool(state.result and state.result.to_be_continued),
        "started_s": state.starts[0].t if state.starts else None,
        "created_s": state.created_s,
        "updated_s": state.updated_s,
        "attempts": _attempts(state),
    }


def shown_state(state: State, beats: Sequence[Beat], *, live: bool) -> str:
    """The run's phase, or a view of it: `saving` while ranks save, `lost` when nobody watches a begun run."""
    begun = state.attempt or state.awaited or state.phase == RunState.PREPARING
    if not live and state.phase not in OVER and begun:
        return "lost"
    if state.phase == RunState.RUNNING and any(beat.phase in (Phase.SAVING, Phase.WAITING) for beat in beats):
        return "saving"
    return state.phase.value


def _mean_speed(state: State, beats: Sequence[Beat], now_s: float) -> float | None:
    if not beats or state.started is None or now_s <= state.started.t:
        return None
    return (beats[0].step - beats[0].first_step) / (now_s - state.started.t) or None


def _finding(finding: FindingRaised, run: str) -> dict[str, Any]:
    return {**dataclasses.asdict(finding), "hint": re.sub(r"\bRUN\b", run, finding.hint)}


def _checkpoint(state: State, now_s: float) -> dict[str, Any] | None:
    if state.committed is None:
        return None
    newest = state.committed
    return {"step": newest.step, "tier": "disk", "age_s": max(0.0, now_s - newest.t), "size_bytes": newest.size_bytes}


def _memory(state: State, beats: Sequence[Beat], now_s: float) -> dict[str, Any] | None:
    """The newest copy in memory that every rank holds; it is gone with the run."""
    step, at_s = newest_copy(beats) if state.phase not in OVER else (0, 0)
    return {"step": step, "age_s": max(0.0, now_s - at_s)} if step else None


def _queue(state: State) -> dict[str, Any] | None:
    """What a run that waits for devices waits for; None for one that does not."""
    told = state.awaited
    if told is None:
        return None
    return {"wants": told.wants, "ahead": told.ahead, "why": told.why, "since_s": state.awaited_s}


def _restored(state: State) -> dict[str, Any] | None:
    """What the newest attempt that has begun continued from; None for a start from nothing."""
    found = state.restored
    return {"attempt": found.attempt, "step": found.step, "tier": found.tier} if found and found.tier else None


def _mirror(run: RunDir, plan: Plan, state: State, now_s: float) -> dict[str, Any] | None:
    """Where the mirror stands: how many it holds, how many newer ones it lacks and how long, since when it is away."""
    if plan.checkpoint.mirror is None:
        return None
    try:
        known = json.loads(run.mirror.read_bytes())
    except (OSError, ValueError):
        known = {}
    held = [Position(*one) for one in known.get("held", [])]
    newest = state.committed and Position(state.committed.term, state.committed.sequence)
    behind = newest is not None and newest not in held
    unsent = _unsent(Path(plan.checkpoint.dir), max(held, default=Position(0, 0))) if behind else []
    return {
        "url": plan.checkpoint.mirror.url,
        "held": len(held),
        "behind": behind,
        "unsent": len(unsent),
        "unsent_s": max(0.0, now_s - min(unsent)) if unsent else None,
        "unreachable_since_s": known.get("unreachable_since_s"),
        "superseded": bool(known.get("superseded")),
    }


def _unsent(root: Path, after: Position) -> list[float]:
    """When each checkpoint of the folder behind a position was committed, in unix seconds; nothing is read."""
    from holdfast.checkpoint import manifest  # hashes: not for a run without a mirror

    found: dict[Position, float] = {}
    with suppress(OSError):  # a folder that is away, or a manifest that is just being removed
        for entry in os.scandir(manifest.folder(root)):
            position = manifest.position_of(entry.name)
            if position is not None and position > after:
                at_s = entry.stat().st_mtime
                found[position] = min(at_s, found.get(position, at_s))
    return list(found.values())


def _attempts(state: State) -> list[dict[str, Any]]:
    ends = {ended.attempt: ended for ended in state.history}
    return [{"attempt": start.attempt, "started_s": start.t, **_end(ends.get(start.attempt))} for start in state.starts]


def _end(ended: AttemptEnded | None) -> dict[str, Any]:
    if ended is None:
        return {}
    return {"exit_class": ended.exit_class, "status": ended.status, "step": ended.step, "ended_s": ended.t}
