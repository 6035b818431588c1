"""Where a run stands that a script started by itself: no supervisor, so no journal to fold."""

from __future__ import annotations

from dataclasses import replace

from holdfast.errors import STOPPED_WITH_CHECKPOINT
from holdfast.events import AttemptStarted, CheckpointCommitted, RunEnded
from holdfast.heartbeat import Beat
from holdfast.node import tail
from holdfast.node.pages import Pages
from holdfast.plan import Plan
from holdfast.process import Identity, alive
from holdfast.runs import RunDir
from holdfast.state import RunState, State

ATTEMPT = 1  # nobody counts the attempts of a script that is started by hand
_ENDS = {"finished": ("succeeded", 0), "stopped": ("stopped", STOPPED_WITH_CHECKPOINT)}


def by_itself(run: RunDir, plan: Plan) -> tuple[State, list[Beat]]:
    """The state as pages, records and the archiver's log tell it, and the pages; `started` is set while it lives."""
    beats = Pages(run.runtime / "pages").beats(ATTEMPT)
    live = next((beat for beat in beats if alive(Identity(beat.pid, beat.start_ticks))), None)
    state = State(run=plan.run, attempt=ATTEMPT, created_s=plan.created_s, committed=_newest(run))
    if live is not None:
        started = AttemptStarted(attempt=ATTEMPT, pid=live.pid, start_ticks=live.start_ticks, log_offset=0)
        return replace(state, phase=RunState.RUNNING, started=started), beats
    said = tail.last_event(run.records / "rank-00000.jsonl", tuple(_ENDS))
    if said is None:
        return replace(state, phase=RunState.RUNNING), beats  # begun, and nobody there: shown as lost
    name, code = _ENDS[said["event"]]
    result = RunEnded(t=float(said["t"]), state=name, exit_code=code, reason=f"its own script {said['event']}")
    return replace(state, phase=RunState(name), result=result), beats


def _newest(run: RunDir) -> CheckpointCommitted | None:
    said = tail.last_event(run.archiver_log, ("committed",))
    if said is None:
        return None
    return CheckpointCommitted(
        t=float(said["t"]),
        step=int(said["step"]),
        term=int(said["term"]),
        sequence=int(said["sequence"]),
        size_bytes=int(said.get("size_bytes", 0)),
        reason=str(said.get("reason", "")),
    )
