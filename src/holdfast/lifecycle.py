"""The life of a run as a table: state × journal event → state + actions.

Pure. The supervisor writes an event to the journal, gives it to `decide`, and carries out the actions; `fold` of the
journal therefore rebuilds the state of a supervisor that died, budgets included, and `SupervisorStarted` makes
`decide` name again what was left undone. What follows from the end of an attempt is for `verdict` to say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from holdfast import events as ev
from holdfast.state import OVER, Ledger, Policy, RunState, State
from holdfast.verdict import SEGMENT, SUPERSEDED, failures_after, judge, ledger_after, stopped

YIELDS = (SUPERSEDED, "mirror-stop")  # the findings at which a run of a pool stops
HISTORY = 20  # attempts that a state remembers


@dataclass(frozen=True, slots=True)
class Prepare:
    """Run `setup`."""


@dataclass(frozen=True, slots=True)
class StartAttempt:
    """Sweep, then start attempt `attempt`, not before `at_s` (unix seconds)."""

    attempt: int
    at_s: float


@dataclass(frozen=True, slots=True)
class Classify:
    """Gather evidence and journal AttemptEnded."""

    exit: ev.ExitSeen


@dataclass(frozen=True, slots=True)
class Emit:
    """Journal this event next."""

    event: ev.Event


@dataclass(frozen=True, slots=True)
class AskStop:
    """Agree on a step to save and leave at; after `grace_s` end the attempt."""

    grace_s: float


@dataclass(frozen=True, slots=True)
class KillAttempt:
    """SIGKILL every process of the attempt."""


@dataclass(frozen=True, slots=True)
class RequestSave:
    """Ask for save number `number` at the next step all ranks can meet."""

    number: int


@dataclass(frozen=True, slots=True)
class Finish:
    """The run is over: let everything of ours leave."""


Action = Prepare | StartAttempt | Classify | Emit | AskStop | KillAttempt | RequestSave | Finish
Actions = tuple[Action, ...]
Step = tuple[State, Actions]
E = TypeVar("E", bound=ev.Event)
_TABLE: dict[type[ev.Event], Callable[[State, Any, Policy], Step]] = {}


def decide(state: State, event: ev.Event, policy: Policy) -> Step:
    """The state after `event` and what must be done now, in order. Events that change nothing give no action."""
    rule = _TABLE.get(type(event))
    state = replace(state, updated_s=max(state.updated_s, event.t))
    return rule(state, event, policy) if rule else (state, ())


def fold(events: Iterable[ev.Event], policy: Policy | None = None) -> State:
    """The state that these events leave behind."""
    state = State()
    for event in events:
        state, _ = decide(state, event, policy or Policy())
    return state


def segment_is_over(state: State, policy: Policy, now_s: float) -> bool:
    """Whether the running attempt has had its `segment`, and nobody has told it so."""
    if policy.segment_s is None or state.started is None or state.exit is not None:
        return False
    asked = state.stop is not None or state.segment is not None
    return not asked and now_s - state.started.t >= policy.segment_s


def _on(kind: type[E]) -> Callable[[Callable[[State, E, Policy], Step]], Callable[[State, E, Policy], Step]]:
    def register(rule: Callable[[State, E, Policy], Step]) -> Callable[[State, E, Policy], Step]:
        _TABLE[kind] = rule
        return rule

    return register


@_on(ev.RunCreated)
def _created(state: State, event: ev.RunCreated, _policy: Policy) -> Step:
    return replace(state, run=event.run, created_s=event.t, since_s=event.t), ()


@_on(ev.SupervisorStarted)
def _supervisor(state: State, event: ev.SupervisorStarted, policy: Policy) -> Step:
    """Name again whatever the supervisor before this one had left to do."""
    state, actions = _left_to_do(state, event, policy)
    return state, (*actions, *_yields(state, event.t, policy))


def _left_to_do(state: State, event: ev.SupervisorStarted, policy: Policy) -> Step:
    rebooted = bool(state.boot) and state.boot != event.boot
    state = replace(state, boot=event.boot or state.boot, devices=() if rebooted else state.devices)
    if event.adopted:
        return state, _for_adopted(state)
    if state.phase in OVER:
        return state, (Finish(),)
    if state.exit is not None:
        return state, (Classify(state.exit),)
    if state.ended is not None:
        return state, (Emit(judge(state, state.ended, policy, state.ended.t)),)
    if state.started is not None:  # it was running, and nobody saw it end
        gone = ev.ExitSeen(t=event.t, attempt=state.started.attempt, status=None)
        return state, (Emit(gone),)
    if state.stop is not None:
        return state, (Emit(stopped(state, event.t)),)
    if state.scheduled is not None:
        at_s = event.t if rebooted else state.scheduled.t + state.scheduled.delay_s
        return state, (StartAttempt(state.scheduled.attempt, at_s),)
    return state, _begin(state, event.t, policy)


def _for_adopted(state: State) -> Actions:
    if state.phase in OVER:
        return (KillAttempt(),)  # it should not be there
    if state.stop is None:
        return (AskStop(state.segment.grace_s),) if state.segment else ()
    return (KillAttempt(),) if state.stop.how == "kill" else (AskStop(state.stop.grace_s),)


def _begin(state: State, now_s: float, policy: Policy) -> Actions:
    if policy.setup and not state.setup_done:
        return (Prepare(),)
    return (StartAttempt(state.next_attempt, now_s),)


@_on(ev.SetupStarted)
def _setup_started(state: State, _event: ev.SetupStarted, _policy: Policy) -> Step:
    return replace(state, phase=RunState.PREPARING), ()


@_on(ev.SetupEnded)
def _setup_ended(state: State, event: ev.SetupEnded, policy: Policy) -> Step:
    if state.stop is not None:
        return state, (Emit(stopped(state, event.t)),)
    if state.phase != RunState.PREPARING:
        return state, ()
    if event.status == 0:
        state = replace(state, phase=RunState.QUEUED, setup_done=True)
        return state, (StartAttempt(state.next_attempt, event.t),)
    code = event.status if 0 < event.status < 128 else 1
    reason = f"setup ended with status {event.status}; see output.log"
    return state, (Emit(ev.RunEnded(t=event.t, state="failed", exit_code=code, reason=reason)),)


@_on(ev.DevicesAwaited)
def _devices_awaited(state: State, event: ev.DevicesAwaited, _policy: Policy) -> Step:
    if state.phase in OVER or state.stop is not None or state.started is not None:
        return state, ()
    since_s = state.awaited_s if state.awaited else event.t
    return replace(state, phase=RunState.QUEUED, devices=(), awaited=event, awaited_s=since_s), ()


@_on(ev.DevicesTaken)
def _devices_taken(state: State, event: ev.DevicesTaken, _policy: Policy) -> Step:
    if state.phase in OVER:
        return state, ()
    stood_s = max(0.0, event.t - state.awaited_s) if state.awaited else 0.0
    return replace(state, devices=tuple(event.devices), awaited=None, queued_s=state.queued_s + stood_s), ()


@_on(ev.AttemptStarted)
def _attempt_started(state: State, event: ev.AttemptStarted, policy: Policy) -> Step:
    state = replace(
        state,
        phase=RunState.STOPPING if state.stop else RunState.RUNNING,
        attempt=event.attempt,
        started=event,
        scheduled=None,
        hang=None,
        segment=None,
        base_step=event.resume_step,
        progressed=False,
        starts=(*state.starts, event)[-HISTORY:],
    )
    return state, _for_adopted(state)


@_on(ev.Restored)
def _restored(state: State, event: ev.Restored, _policy: Policy) -> Step:
    if event.attempt != state.attempt:
        return replace(state, library=True), ()
    if event.tier == "mirror":
        state = replace(state, seen=replace(state.seen, lost=state.seen.lost + 1))
    # What became durable before this was the attempt before; and the lease holds from now on what was wanted.
    return replace(state, library=True, base_step=event.step, progressed=False, want="newest", restored=event), ()


@_on(ev.CheckpointCommitted)
def _committed(state: State, event: ev.CheckpointCommitted, _policy: Policy) -> Step:
    """Progress, even when the archiver finishes the save after the trainer's death."""
    known = state.committed
    if known is not None and (event.term, event.sequence) <= (known.term, known.sequence):
        return state, ()
    state = replace(state, committed=event, library=True, reached=max(state.reached, event.step))
    if event.step > state.base_step:
        ledger = replace(state.ledger, streak=0, no_progress=0, window=())
        state = replace(state, progressed=True, settled=True, ledger=ledger)
    return state, ()


@_on(ev.FindingRaised)
def _finding(state: State, event: ev.FindingRaised, policy: Policy) -> Step:
    others = tuple(finding for finding in state.findings if finding.id != event.id)
    state = replace(state, findings=(*others, event))
    return state, _yields(state, event.t, policy) if event.id in YIELDS else ()


def _yields(state: State, now_s: float, policy: Policy) -> Actions:
    """A run of a pool stops when another machine goes on with it, two must not compute the same; or when told so."""
    known = {finding.id for finding in state.findings}
    if not policy.yields or state.stop is not None or state.phase in OVER or known.isdisjoint(YIELDS):
        return ()
    how = "superseded" if SUPERSEDED in known else "stop"
    return (Emit(ev.StopRequested(t=now_s, how=how, grace_s=policy.stop_grace_s)),)


@_on(ev.FindingCleared)
def _finding_cleared(state: State, event: ev.FindingCleared, _policy: Policy) -> Step:
    return replace(state, findings=tuple(finding for finding in state.findings if finding.id != event.id)), ()


@_on(ev.TrackerSeen)
def _tracker(state: State, event: ev.TrackerSeen, _policy: Policy) -> Step:
    known = {**dict(state.trackers), event.variable: event.value}
    return replace(state, trackers=tuple(sorted(known.items()))), ()


@_on(ev.IntervalChosen)
def _interval(state: State, event: ev.IntervalChosen, _policy: Policy) -> Step:
    others = tuple(chosen for chosen in state.intervals if chosen.tier != event.tier)
    return replace(state, intervals=(*others, event)), ()


@_on(ev.HangDetected)
def _hang(state: State, event: ev.HangDetected, _policy: Policy) -> Step:
    return (replace(state, hang=event) if event.attempt == state.attempt else state), ()


@_on(ev.SaveRequested)
def _save(state: State, event: ev.SaveRequested, _policy: Policy) -> Step:
    return replace(state, save_number=max(state.save_number, event.number)), (RequestSave(event.number),)


@_on(ev.StopRequested)
def _stop(state: State, event: ev.StopRequested, _policy: Policy) -> Step:
    if state.phase in OVER:
        return state, ()
    if state.stop is not None and event.how != "kill":
        return state, ()  # asked already
    preparing = state.phase == RunState.PREPARING
    state = replace(state, stop=event, phase=RunState.STOPPING)
    if event.how == "kill" or preparing:
        lives = preparing or state.started is not None
        return state, ((KillAttempt(),) if lives else (Emit(stopped(state, event.t)),))
    if state.started is None and state.ended is None:
        return state, (Emit(stopped(state, event.t)),)
    return state, (AskStop(event.grace_s),)


@_on(ev.SegmentOver)
def _segment_over(state: State, event: ev.SegmentOver, _policy: Policy) -> Step:
    """As a stop, of this attempt alone."""
    running = state.started is not None and state.started.attempt == event.attempt and state.exit is None
    if not running or state.stop is not None or state.segment is not None:
        return state, ()
    return replace(state, segment=event), (AskStop(event.grace_s),)


@_on(ev.ExitSeen)
def _exit(state: State, event: ev.ExitSeen, _policy: Policy) -> Step:
    if state.phase in OVER:  # it should not have lived
        return state, (Finish(),)
    if state.started is None or event.attempt != state.started.attempt or state.exit is not None:
        return state, ()
    return replace(state, exit=event), (Classify(event),)


@_on(ev.AttemptEnded)
def _ended(state: State, event: ev.AttemptEnded, policy: Policy) -> Step:
    if state.started is None or event.attempt != state.started.attempt:
        return state, ()
    seen = failures_after(state, state.started, event)
    if event.memory_step > max(state.base_step, state.reached):
        state = replace(state, progressed=True, settled=True, reached=event.memory_step)
    ledger = ledger_after(state, event)
    state = replace(
        state, ended=event, exit=None, started=None, ledger=ledger, history=(*state.history, event)[-HISTORY:]
    )
    state = replace(state, seen=seen)
    return state, (Emit(judge(state, event, policy, event.t)),)


@_on(ev.RestartScheduled)
def _restart(state: State, event: ev.RestartScheduled, _policy: Policy) -> Step:
    ledger = state.ledger
    if not event.free:
        ledger = replace(ledger, restarts=ledger.restarts + 1, window=(*ledger.window, event.t))
    state = replace(state, phase=RunState.RESTARTING, ended=None, scheduled=event, ledger=ledger)
    planned = event.reason in SEGMENT
    state = replace(state, restarts=state.restarts + (not planned), segments=state.segments + planned)
    return state, (StartAttempt(event.attempt, event.t + event.delay_s),)


@_on(ev.ResumeRequested)
def _resume(state: State, event: ev.ResumeRequested, policy: Policy) -> Step:
    if state.phase not in OVER:
        return state, ()
    state = replace(
        state,
        phase=RunState.QUEUED,
        result=None,
        stop=None,
        hang=None,
        ended=None,
        scheduled=None,
        want=event.want,
        reached=0,
        since_s=event.t,
        queued_s=0.0,
        ledger=Ledger(),
    )
    return state, _begin(state, event.t, policy)


@_on(ev.RunEnded)
def _over(state: State, event: ev.RunEnded, _policy: Policy) -> Step:
    state = replace(state, phase=RunState(event.state), result=event, ended=None, exit=None, started=None)
    return replace(state, scheduled=None, devices=(), awaited=None), (Finish(),)
