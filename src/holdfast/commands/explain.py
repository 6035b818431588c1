"""`holdfast explain`: why each attempt ended, what was decided, what is left of the budgets, and what to do.

Reads the journal and the plan only, so it works on any machine that has them, whether the run is live or not.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import click

from holdfast.commands import afar
from holdfast.commands.advice import advice
from holdfast.commands.arguments import chosen, clock_of, json_option, optional_run, print_json
from holdfast.commands.liveness import live
from holdfast.commands.wording import clock, plural
from holdfast.errors import UsageError
from holdfast.events import (
    AttemptEnded,
    AttemptStarted,
    DevicesAwaited,
    DevicesTaken,
    Event,
    HangDetected,
    IntervalChosen,
    RestartScheduled,
    Restored,
    ResumeRequested,
    RunEnded,
    StacksCaptured,
)
from holdfast.runs import RunDir, plan_of
from holdfast.units import show_duration, show_ratio

_BOUNDS = {
    "": "nothing bounds that",
    "overhead": "longer, since saving may take {ratio} of the time at most",
    "write": "longer, since one save is finished before the next begins",
    "floor": "longer, since more often is of no use",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """One attempt, as far as the journal tells it."""

    started: AttemptStarted
    asked: Mapping[str, int] | None = None  # a step, or term and sequence, that a person wanted to continue from
    devices: Sequence[str] = ()  # index and name of those it had for itself
    restored: Restored | None = None
    hang: HangDetected | None = None
    stacks: str = ""
    ended: AttemptEnded | None = None
    restart: RestartScheduled | None = None


@click.command("explain")
@optional_run
@json_option
@click.pass_context
def command(context: click.Context, run: RunDir | None, as_json: bool) -> None:
    """Why each attempt of RUN ended, with the evidence, what to do, and how often `auto` saves and why."""
    from holdfast.journal import read

    meant = chosen(run)
    if plan_of(meant).get("alone"):
        raise UsageError(
            f"{meant.id} was started by its own script: without a supervisor nobody noted why it ended",
            hint=f"holdfast status {meant.root}; holdfast run -- SCRIPT supervises it",
        )
    events = read(meant.journal)[0] if meant.journal.exists() else []
    restart = plan_of(meant)["restart"]
    now_s = clock_of(context)()
    lost = _is_lost(meant, events)
    if as_json:
        print_json(as_object(meant, events, restart, now_s, lost=lost))
    else:
        click.echo("\n".join(render(meant, events, restart, now_s, lost=lost)))


def _is_lost(run: RunDir, events: Sequence[Event]) -> bool:
    """Whether it goes on no more though nothing has ended it."""
    from holdfast.lifecycle import fold
    from holdfast.node.status import shown_state

    return shown_state(fold(events), (), live=live(run)) == "lost"


def stories(events: Sequence[Event]) -> list[Story]:
    """The attempts, oldest first. Pure."""
    told: list[Story] = []
    asked: Mapping[str, int] | None = None
    devices: Sequence[str] = ()
    for event in events:
        if isinstance(event, ResumeRequested):
            asked = event.want if isinstance(event.want, dict) else None
        elif isinstance(event, DevicesTaken):
            devices = event.names
        elif isinstance(event, AttemptStarted):
            told.append(Story(started=event, asked=asked, devices=devices))
            asked = None
        elif told:
            told[-1] = _continued(told[-1], event)
    return told


def budgets(events: Sequence[Event], restart: Mapping[str, Any], now_s: float) -> dict[str, dict[str, int]]:
    """Restarts used and allowed since the last resume: in all, in the window, and ends in a row without progress."""
    from holdfast.lifecycle import fold

    ledger = fold(events).ledger
    recent = sum(at_s > now_s - restart["window_s"] for at_s in ledger.window)
    return {
        "restarts": {"used": ledger.restarts, "allowed": restart["max_restarts"]},
        "window": {"used": recent, "allowed": restart["window_restarts"]},
        "no_progress": {"used": ledger.no_progress, "allowed": restart["max_no_progress"]},
    }


def intervals(events: Sequence[Event]) -> list[IntervalChosen]:
    """What `auto` chose last for each tier. Pure."""
    return list({event.tier: event for event in events if isinstance(event, IntervalChosen)}.values())


def waiting(events: Sequence[Event]) -> list[DevicesAwaited]:
    """What the run waits for now, if it stands in the queue for devices."""
    from holdfast.lifecycle import fold

    awaited = fold(events).awaited
    return [awaited] if awaited else []


def render(
    run: RunDir, events: Sequence[Event], restart: Mapping[str, Any], now_s: float, *, lost: bool = False
) -> list[str]:
    """The lines for people. Pure but for the time zone and how the caller calls this machine."""
    told = stories(events)
    lines = [] if told else [f"{run.id}: no attempt was started yet"]
    for story in told:
        lines += [*_attempt(run, story, None if lost else now_s), ""]
    for interval in intervals(events):
        lines += [*_sum(interval), ""]
    lines += [f"{run.id} waits for {line.wants}, {line.ahead} ahead; {line.why}" for line in waiting(events)]
    end = _end(events)
    if end:
        goes_on = "; it is to be continued" if end.to_be_continued else ""
        lines.append(f"{run.id} {end.state}, exit code {end.exit_code}: {end.reason}{goes_on}")
    if lost:
        lines.append(f"{run.id} is lost: no process of holdfast carries it any more")
    if told and not (end and end.state == "succeeded"):
        lines.append(_budget_line(budgets(events, restart, now_s), restart))
    last = next((story.ended for story in reversed(told) if story.ended), None)
    return lines + [f"to do: {afar.typed(said)}" for said in advice(run.id, last, end, lost=lost)]


def as_object(
    run: RunDir, events: Sequence[Event], restart: Mapping[str, Any], now_s: float, *, lost: bool = False
) -> dict[str, Any]:
    """The same facts for programs. Pure."""
    end = _end(events)
    told = stories(events)
    last = next((story.ended for story in reversed(told) if story.ended), None)
    return {
        "run": run.id,
        "attempts": [
            {name: value for name, value in asdict(story).items() if value not in (None, "", ())} for story in told
        ],
        "queue": [asdict(awaited) for awaited in waiting(events)],
        "end": None if end is None else asdict(end),
        "budgets": budgets(events, restart, now_s),
        "intervals": [asdict(interval) for interval in intervals(events)],
        "advice": advice(run.id, last, end, lost=lost),
    }


def _continued(story: Story, event: Event) -> Story:
    if isinstance(event, Restored):
        return replace(story, restored=event)
    if isinstance(event, HangDetected):
        return replace(story, hang=event)
    if isinstance(event, StacksCaptured):
        return replace(story, stacks=event.path)
    if isinstance(event, AttemptEnded):
        return replace(story, ended=event)
    return replace(story, restart=event) if isinstance(event, RestartScheduled) else story


def _attempt(run: RunDir, story: Story, now_s: float | None) -> Iterator[str]:
    """Its lines. `now_s` is None where it goes on no more."""
    started, ended = story.started, story.ended
    until_s = ended.t if ended else now_s
    lasted = "end unseen" if until_s is None else show_duration(until_s - started.t)
    so_far = "" if ended or now_s is None else " so far"
    yield f"attempt {started.attempt}  {clock(started.t)}, {lasted}{so_far}, {_origin(story)}"
    if story.devices:
        yield f"  on GPU {', '.join(story.devices)}"
    for fallen in story.restored.fell_back if story.restored else []:
        yield f"  not used: {fallen}"
    if story.hang:
        yield (
            f"  no heartbeat for {show_duration(story.hang.silent_s)} at step {story.hang.step}"
            f" (allowed: {show_duration(story.hang.allowed_s)})"
        )
    if story.stacks:
        yield f"  stacks: {run.root / story.stacks}"
    if ended:
        from holdfast.exits import describe

        yield from textwrap.indent(describe(ended).removeprefix(f"attempt {ended.attempt} "), "  ").splitlines()
        yield from textwrap.indent(ended.traceback.strip(), "    ").splitlines()
    if story.restart:
        counted = "free" if story.restart.free else "counted"
        when = f"after {show_duration(story.restart.delay_s)}" if story.restart.delay_s else "at once"
        yield f"  then: attempt {story.restart.attempt} {when} ({story.restart.reason}; {counted})"


def _sum(interval: IntervalChosen) -> Iterator[str]:
    """How an interval came about."""
    yield f"{interval.tier}: `auto` saves every {show_duration(interval.seconds)}"
    cost, write, restart = map(show_duration, (interval.blocked_s, interval.write_s, interval.restart_s))
    yield f"  T_s  a save takes {cost} from training, and is finished after {write}"
    seen = f"{plural(interval.failures, 'failure')} seen in {show_duration(interval.trained_s)}"
    yield f"  T_f  {show_duration(interval.failure_s)} between failures: {seen}, over what is assumed beforehand"
    yield f"  T_r  {restart} for a restart"
    bound = _BOUNDS[interval.bound].format(ratio=show_ratio(interval.max_overhead_ratio))
    yield f"  T_s + sqrt(2 (T_f + T_r) T_s + T_s²) = {show_duration(interval.best_s)} loses least; {bound}"


def _origin(story: Story) -> str:
    if story.restored is None and story.asked:
        wanted = story.asked
        return f"from step {wanted['step']}" if "step" in wanted else f"from {wanted['term']}-{wanted['sequence']}"
    step = story.restored.step if story.restored else story.started.resume_step
    tier = f" ({story.restored.tier})" if story.restored and story.restored.tier in ("memory", "mirror") else ""
    return f"from step {step}{tier}" if step else "from the beginning"


def _end(events: Sequence[Event]) -> RunEnded | None:
    """The end, unless something began after it."""
    for event in reversed(events):
        if isinstance(event, RunEnded):
            return event
        if isinstance(event, (AttemptStarted, ResumeRequested)):
            return None
    return None


def _budget_line(left: dict[str, dict[str, int]], restart: Mapping[str, Any]) -> str:
    def said(name: str) -> str:
        return f"{max(0, left[name]['allowed'] - left[name]['used'])} of {left[name]['allowed']}"

    return (
        f"restarts left: {said('restarts')} in all, {said('window')} per {show_duration(restart['window_s'])};"
        f" {plural(left['no_progress']['used'], 'attempt')} in a row without progress"
        f" ({left['no_progress']['allowed']} allowed)"
    )
