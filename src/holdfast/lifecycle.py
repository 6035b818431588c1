"""The life of a run as a table: state × journal event → state + actions.

Pure, and the only place where anything is decided. The supervisor writes an event to the journal, gives it to
`decide`, and carries out the actions; `fold` of the journal therefore rebuilds the state of a supervisor that died,
budgets included, and `SupervisorStarted` makes `decide` name again what was left undone.

Budgets. An attempt *progressed* when a checkpoint newer than the one it began from became durable, or when it left a
copy in memory of a step that no attempt had saved before: one that always begins from the same copy does not.
- without progress: `max_no_progress` ended attempts in a row without any end the run. Attempts of a program that was
  never seen to use the library are not counted, since nobody knows its progress, unless its code is at fault.
- general: `max_restarts` restarts in all.
- window: `window_restarts` restarts within `window_s`, all of them since the last progress.
- free: preemption, a restarted machine, a kill from outside after progress, and rules that say so.
  They count against progress alone; a restarted machine against nothing.
- a segment's end is no failure: neither policy nor rules nor pauses matter. It counts against progress alone, also for
  a program of unknown progress, unless that has had its `SETTLED_S`.
The first restart after progress is immediate; later ones wait `backoff_initial_s * backoff_factor**n`, capped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, TypeVar

from holdfast import events as ev
from holdfast.errors import STOPPED_WITH_CHECKPOINT, BudgetSpent, LeaseHeld, NoValidCheckpoint
from holdfast.exits import ExitClass, describe
from holdfast.goodput import Failures
from holdfast.plan import Plan, RestartPlan, RestartRule
from holdfast.units import show_duration

__all__ = ["ExitClass", "State", "decide", "describe", "fold"]

SETTLED_S = 600.0  # a program of unknown progress that ran this long counts as having come up
SEGMENT = (ExitClass.SEGMENT_END, ExitClass.SEGMENT_CUT)
MEANT = (ExitClass.SUCCEEDED, ExitClass.STOPPED, ExitClass.PREEMPTED, *SEGMENT)  # there was time to save before them
SUPERSEDED = "mirror-superseded"  # the finding
YIELDS = (SUPERSEDED, "mirror-stop")  # those at which a run of a pool stops
HISTORY = 20  # attempts that a state remembers


class RunState(str, Enum):
    """What `status` calls it; `saving` and `lost` are views made there."""

    QUEUED = "queued"
    PREPARING = "preparing"
    RUNNING = "running"
    RESTARTING = "restarting"
    STOPPING = "stopping"
    STOPPED = "stopped"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


OVER = (RunState.STOPPED, RunState.SUCCEEDED, RunState.FAILED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What the plan says about the life of the run."""

    restart: RestartPlan = field(default_factory=RestartPlan)
    setup: bool = False
    stop_grace_s: float = 60.0
    segment_s: float | None = None
    yields: bool = False  # stop when another machine has gone on

    @classmethod
    def of(cls, plan: Plan) -> Policy:
        """The policy of a plan."""
        return cls(
            restart=plan.restart, setup=bool(plan.setup), stop_grace_s=plan.stop_grace_s, segment_s=plan.segment_s,
            yields=plan.yields,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """Restarts so far; `resume` opens a new one."""

    restarts: int = 0
    streak: int = 0  # ended attempts since the last progress
    no_progress: int = 0
    window: tuple[float, ...] = ()  # times of counted restarts since the last progress, unix seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Everything the journal says about a run, in bounded size."""

    phase: RunState = RunState.QUEUED
    attempt: int = 0  # newest one that was started
    started: ev.AttemptStarted | None = None  # the attempt that runs, or whose end is not classified yet
    exit: ev.ExitSeen | None = None  # seen, not classified
    ended: ev.AttemptEnded | None = None  # classified, not decided
    scheduled: ev.RestartScheduled | None = None
    stop: ev.StopRequested | None = None
    hang: ev.HangDetected | None = None  # of the running attempt
    segment: ev.SegmentOver | None = None  # the same
    result: ev.RunEnded | None = None
    devices: tuple[str, ...] = ()  # uuids of those it has
    awaited: ev.DevicesAwaited | None = None  # what is told of the line in which it stands
    awaited_s: float = 0.0  # since when it stands there
    queued_s: float = 0.0  # how long it has stood there since `since_s`: `max_duration` does not count that
    want: Any = "newest"  # what the next attempt restores
    ledger: Ledger = field(default_factory=Ledger)
    library: bool = False  # some attempt restored, so progress is known
    base_step: int = 0  # step the running attempt began from
    progressed: bool = False  # since it began
    reached: int = 0  # newest step that was ever saved, in memory or on disk, since the last resume
    settled: bool = False  # any attempt ever progressed
    committed: ev.CheckpointCommitted | None = None
    findings: tuple[ev.FindingRaised, ...] = ()
    save_number: int = 0
    restarts: int = 0  # in all, free ones and those before a resume included, segments apart
    segments: int = 0  # ends of segments that another attempt followed
    setup_done: bool = False
    run: str = ""
    boot: str = ""
    created_s: float = 0.0
    since_s: float = 0.0  # created or last resumed: `max_duration` and its place in the queue count from here
    updated_s: float = 0.0
    history: tuple[ev.AttemptEnded, ...] = ()
    starts: tuple[ev.AttemptStarted, ...] = ()
    restored: ev.Restored | None = None
    seen: Failures = field(default_factory=Failures)  # in all attempts that ended
    intervals: tuple[ev.IntervalChosen, ...] = ()  # the newest of each tier
    trackers: tuple[tuple[str, str], ...] = ()  # environment variables that continue a tracker's history

    @property
    def next_attempt(self) -> int:
        """Number of the attempt after the newest."""
        return self.attempt + 1

    @property
    def committed_step(self) -> int:
        """Newest durable step."""
        return self.committed.step if self.committed else 0


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
        return state, (Emit(_verdict(state, state.ended, policy, state.ended.t)),)
    if state.started is not None:  # it was running, and nobody saw it end
        gone = ev.ExitSeen(t=event.t, attempt=state.started.attempt, status=None)
        return state, (Emit(gone),)
    if state.stop is not None:
        return state, (Emit(_stopped(state, event.t)),)
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
        return state, (Emit(_stopped(state, event.t)),)
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


def _superseded(state: State) -> str | None:
    return next((finding.message for finding in state.findings if finding.id == SUPERSEDED), None)


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
        return state, ((KillAttempt(),) if lives else (Emit(_stopped(state, event.t)),))
    if state.started is None and state.ended is None:
        return state, (Emit(_stopped(state, event.t)),)
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
    seen = _seen(state, state.started, event)
    if event.memory_step > max(state.base_step, state.reached):
        state = replace(state, progressed=True, settled=True, reached=event.memory_step)
    ledger = _after(state, event)
    state = replace(
        state, ended=event, exit=None, started=None, ledger=ledger, history=(*state.history, event)[-HISTORY:]
    )
    state = replace(state, seen=seen)
    return state, (Emit(_verdict(state, event, policy, event.t)),)


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


# -- evidence


def _seen(state: State, started: ev.AttemptStarted, ended: ev.AttemptEnded) -> Failures:
    """The failures once this attempt is counted: it is one when it trained and nobody meant it to end."""
    seen, lost_machine = state.seen, ended.exit_class == ExitClass.LOST
    until_s = ended.t
    if lost_machine:  # it may have been off for days: until the last sign of life
        until_s = state.committed.t if state.committed else started.t
    failed = state.stop is None and ended.exit_class not in MEANT and ended.step > state.base_step
    return replace(
        seen,
        process=seen.process + (failed and not lost_machine),
        machine=seen.machine + lost_machine,
        trained_s=seen.trained_s + max(0.0, until_s - started.t),
    )


# -- the decision


def _after(state: State, ended: ev.AttemptEnded) -> Ledger:
    """The ledger once this attempt is counted."""
    if state.progressed:
        return replace(state.ledger, streak=1, no_progress=0, window=())
    began_s = state.started.t if state.started else ended.t
    code = ended.exit_class in (ExitClass.CODE_ERROR, ExitClass.IMPORT_ERROR, ExitClass.CANNOT_START)
    if not state.library and ended.t - began_s >= SETTLED_S:
        return replace(state.ledger, streak=1)
    counts = (state.library or code or ended.exit_class in SEGMENT) and ended.exit_class != ExitClass.LOST
    return replace(state.ledger, streak=state.ledger.streak + 1, no_progress=state.ledger.no_progress + counts)


def _verdict(state: State, ended: ev.AttemptEnded, policy: Policy, now_s: float) -> ev.Event:
    """What follows the end of an attempt: a restart, or the end of the run."""
    if ended.exit_class == ExitClass.SUCCEEDED and (state.stop or policy.restart.policy != "always"):
        return ev.RunEnded(t=now_s, state="succeeded", exit_code=0, reason="the program finished")
    if state.stop is not None or (ended.exit_class == ExitClass.STOPPED and policy.restart.policy == "no"):
        return _stopped(state, now_s, ended)
    if ended.exit_class in SEGMENT:
        return _next_segment(state, ended, policy, now_s)
    rule = next((rule for rule in policy.restart.rules if _matches(rule, ended)), None)
    stops = _final(state, ended, policy, rule)
    if stops:
        none_intact = ended.exit_class == ExitClass.NO_CHECKPOINT
        code = NoValidCheckpoint.exit_code if none_intact else _own_code(ended.status)
        return ev.RunEnded(t=now_s, state="failed", exit_code=code, reason=stops)
    free = rule.free if rule else _is_free(state, ended)
    spent = _spent(state.ledger, policy.restart, now_s, free=free)
    if spent:
        reason = f"{spent}; the last attempt ended with {ended.exit_class}"
        return ev.RunEnded(t=now_s, state="failed", exit_code=BudgetSpent.exit_code, reason=reason)
    return ev.RestartScheduled(
        t=now_s,
        attempt=ended.attempt + 1,
        delay_s=_delay_s(state.ledger.streak, policy.restart),
        reason=ended.exit_class,
        free=free,
    )


def _next_segment(state: State, ended: ev.AttemptEnded, policy: Policy, now_s: float) -> ev.Event:
    """At once, unless one after another brings nothing."""
    spent = _spent(state.ledger, policy.restart, now_s, free=True)
    if spent:
        given = f"`segment` ({show_duration(policy.segment_s)})" if policy.segment_s else "`segment`"
        reason = f"{spent}: {given} is too short to start, take a step and save"
        return ev.RunEnded(t=now_s, state="failed", exit_code=BudgetSpent.exit_code, reason=reason)
    return ev.RestartScheduled(t=now_s, attempt=ended.attempt + 1, delay_s=0.0, reason=ended.exit_class, free=True)


def _matches(rule: RestartRule, ended: ev.AttemptEnded) -> bool:
    if rule.exit_class is not None:
        return rule.exit_class == ended.exit_class
    if rule.exit_codes:
        return ended.status in rule.exit_codes
    text = "\n".join((*ended.evidence, ended.traceback))
    return rule.pattern is not None and re.search(rule.pattern, text) is not None


def _final(state: State, ended: ev.AttemptEnded, policy: Policy, rule: RestartRule | None) -> str:
    """Why no budget matters here, or an empty text."""
    if rule is not None:
        return f"a rule of `restart.rules` stops on {ended.exit_class}" if rule.action == "stop" else ""
    if policy.restart.policy == "no":
        return f"the program ended ({ended.exit_class}), and `restart.policy` is no"
    if ended.exit_class == ExitClass.NO_CHECKPOINT:
        return "no checkpoint is intact"
    before = state.history[-2] if len(state.history) > 1 else None
    if ended.exit_class == ExitClass.CANNOT_START:
        confirmed = before is not None and before.exit_class == ExitClass.CANNOT_START
        if confirmed or (not state.settled and before is None):
            return "the program cannot be started: " + (ended.evidence[0] if ended.evidence else "no reason given")
    return ""


def _is_free(state: State, ended: ev.AttemptEnded) -> bool:
    if ended.exit_class in (ExitClass.PREEMPTED, ExitClass.STOPPED, ExitClass.LOST):
        return True
    return ended.exit_class == ExitClass.KILLED and state.progressed


def _spent(ledger: Ledger, plan: RestartPlan, now_s: float, *, free: bool) -> str:
    if ledger.no_progress >= plan.max_no_progress:
        return f"{ledger.no_progress} attempts in a row brought no newer checkpoint"
    if free:
        return ""
    if ledger.restarts >= plan.max_restarts:
        return f"all {plan.max_restarts} restarts are used up"
    recent = [at_s for at_s in ledger.window if at_s > now_s - plan.window_s]
    if len(recent) >= plan.window_restarts:
        return f"{len(recent)} restarts within {plan.window_s:g} s without progress"
    return ""


def _delay_s(streak: int, plan: RestartPlan) -> float:
    if streak <= 1:
        return 0.0
    exponent = min(streak - 2, 64)  # far beyond any cap, and no overflow
    return min(plan.backoff_max_s, plan.backoff_initial_s * float(plan.backoff_factor) ** exponent)


def _stopped(state: State, now_s: float, ended: ev.AttemptEnded | None = None) -> ev.RunEnded:
    how = state.stop.how if state.stop else "stop"
    saved = ended is None or ended.exit_class == ExitClass.STOPPED or state.committed is not None
    code = 137 if how == "kill" else STOPPED_WITH_CHECKPOINT if saved or how == "preempted" else 143
    code = LeaseHeld.exit_code if how == "superseded" else code
    words = {
        "kill": "killed on request",
        "preempted": "preempted",
        "max-duration": "max_duration is over",
        "superseded": _superseded(state) or "another machine goes on with it",
    }
    reason = words.get(how, "stopped on request")
    return ev.RunEnded(t=now_s, state="stopped", exit_code=code, reason=reason, to_be_continued=how == "preempted")


def _own_code(status: int | None) -> int:
    """The exit code of a run that ends with its program: the program's own, as a shell would say it."""
    if status is None or status == 0:
        return 1
    return status if status > 0 else 128 - status
