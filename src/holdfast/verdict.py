"""What follows from the end of an attempt: another one, now or later, or the end of the run.

Pure. Budgets. An attempt *progressed* when a checkpoint newer than the one it began from became durable, or when it
left a copy in memory of a step that no attempt had saved before: one that always begins from the same copy does not.
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
from dataclasses import replace

from holdfast import events as ev
from holdfast.errors import STOPPED_WITH_CHECKPOINT, BudgetSpent, LeaseHeld, NoValidCheckpoint
from holdfast.exits import ExitClass
from holdfast.goodput import Failures
from holdfast.plan import RestartPlan, RestartRule
from holdfast.state import Ledger, Policy, State
from holdfast.units import show_duration

SETTLED_S = 600.0  # a program of unknown progress that ran this long counts as having come up
SEGMENT = (ExitClass.SEGMENT_END, ExitClass.SEGMENT_CUT)
MEANT = (ExitClass.SUCCEEDED, ExitClass.STOPPED, ExitClass.PREEMPTED, *SEGMENT)  # there was time to save before them
SUPERSEDED = "mirror-superseded"  # the finding


def failures_after(state: State, started: ev.AttemptStarted, ended: ev.AttemptEnded) -> Failures:
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


def ledger_after(state: State, ended: ev.AttemptEnded) -> Ledger:
    """The ledger once this attempt is counted."""
    if state.progressed:
        return replace(state.ledger, streak=1, no_progress=0, window=())
    began_s = state.started.t if state.started else ended.t
    code = ended.exit_class in (ExitClass.CODE_ERROR, ExitClass.IMPORT_ERROR, ExitClass.CANNOT_START)
    if not state.library and ended.t - began_s >= SETTLED_S:
        return replace(state.ledger, streak=1)
    counts = (state.library or code or ended.exit_class in SEGMENT) and ended.exit_class != ExitClass.LOST
    return replace(state.ledger, streak=state.ledger.streak + 1, no_progress=state.ledger.no_progress + counts)


def judge(state: State, ended: ev.AttemptEnded, policy: Policy, now_s: float) -> ev.Event:
    """What follows from the end of an attempt, which the state has counted: a restart, or the end of the run."""
    if ended.exit_class == ExitClass.SUCCEEDED and (state.stop or policy.restart.policy != "always"):
        return ev.RunEnded(t=now_s, state="succeeded", exit_code=0, reason="the program finished")
    if state.stop is not None or (ended.exit_class == ExitClass.STOPPED and policy.restart.policy == "no"):
        return stopped(state, now_s, ended)
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


def stopped(state: State, now_s: float, ended: ev.AttemptEnded | None = None) -> ev.RunEnded:
    """The end of a run that was asked to stop; `ended` is its last attempt, where one lived when it was asked."""
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


def _superseded(state: State) -> str | None:
    return next((finding.message for finding in state.findings if finding.id == SUPERSEDED), None)
