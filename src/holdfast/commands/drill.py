"""`holdfast drill`: break a live run on purpose, one fault after the other, and prove that it recovers.

Each fault has a deadline. The next one waits until the run trains again, so a fault never hides another's failure.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass

import click

from holdfast import faults
from holdfast.commands.arguments import going_on, json_option, optional_run, print_json, print_table, say
from holdfast.commands.liveness import must_be_live
from holdfast.commands.save import request
from holdfast.commands.wording import columns, plural
from holdfast.errors import HoldfastError, UsageError
from holdfast.faults.base import ROLES, CannotInject, Fault, Look, Target, lost_steps
from holdfast.runs import RunDir
from holdfast.units import show_duration

_LOOK_S = 0.2
_SILENT_S = 30.0  # a program that has not announced itself by then does not use the library
_HEADINGS = ("FAULT", "VERDICT", "RECOVERED AFTER", "LOST STEPS", "EVIDENCE")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What became of one fault. `seconds` runs from the breakage to the recovery, or to the deadline."""

    fault: str
    says: str
    passed: bool
    seconds: float
    lost_steps: int
    evidence: str


@click.command("drill")
@optional_run
@click.option("--demo", is_flag=True, help="Start a small throw-away run and break that.")
@click.option("--faults", "names", help=f"Comma-separated; all by default: {', '.join(faults.names())}.")
@click.option("--deadline", default=120.0, show_default=True, help="Seconds each fault may take to recover.")
@json_option
def command(run: RunDir | None, demo: bool, names: str | None, deadline: float, as_json: bool) -> int:
    """Break RUN on purpose and prove that it recovers; exits with 0 only when every fault was survived.

    Faults act on the processes of RUN alone; a disk that others use is never filled.
    """
    if (run is None) != demo:
        raise UsageError("give either a run or --demo", hint="holdfast drill --demo")
    chosen = [faults.load(name) for name in _checked(names)]
    results = _drilled(run, chosen, deadline) if run is not None else _demo(chosen, deadline)
    if as_json:
        print_json([asdict(result) for result in results])
    else:
        print_table(table(results))
    failed = sum(not result.passed for result in results)
    say(f"{plural(len(results), 'fault')}, {len(results) - failed} survived")
    return 1 if failed else 0


def drill(run: RunDir, chosen: list[Fault], *, deadline_s: float) -> Iterator[Result]:
    """Inject each fault in turn into a live run. Raises UsageError when the run is not live."""
    must_be_live(run, "drill")

    def save() -> None:
        request(run, "drill")

    target = Target(run, save)
    for fault in chosen:
        _await_training(target, deadline_s)
        result = _one(target, fault, deadline_s)
        say(f"{fault.NAME}: {'passed' if result.passed else 'FAILED'}, {result.evidence}")
        yield result


def table(results: list[Result]) -> list[str]:
    """The report, a line a fault. Pure."""
    rows = [
        (
            result.fault,
            "pass" if result.passed else "FAIL",
            show_duration(result.seconds) if result.passed else f"not in {show_duration(result.seconds)}",
            str(result.lost_steps),
            result.evidence,
        )
        for result in results
    ]
    return columns([_HEADINGS, *rows])


def _drilled(run: RunDir, chosen: list[Fault], deadline_s: float) -> list[Result]:
    with going_on(f"{run.id} goes on, and recovers by itself", hint=f"holdfast status {run.id}"):
        return list(drill(run, chosen, deadline_s=deadline_s))


def _demo(chosen: list[Fault], deadline_s: float) -> list[Result]:
    """Drill a run made for it, which is deleted afterwards unless something went wrong."""
    from holdfast.commands import drill_demo

    made = drill_demo.start()
    say(f"{made.id} trains in {made.root}")
    with going_on(f"the demo is over; kept: {made.root}"):
        try:
            results = list(drill(made, chosen, deadline_s=deadline_s))
        finally:
            drill_demo.end(made)
    if all(result.passed for result in results):
        drill_demo.delete(made)
    else:
        say(f"kept: {made.root}", hint=f"holdfast explain {made.root}")
    return results


def _one(target: Target, fault: Fault, deadline_s: float) -> Result:
    say(f"{fault.NAME}: {fault.SAYS}")
    before = target.look(time.time())
    started = time.monotonic()
    try:
        undo = fault.inject(target)
    except CannotInject as error:
        return _result(fault, False, 0.0, 0, str(error))
    with _progress(fault.NAME):
        try:
            bitten = _until(target, lambda now: fault.bitten(before, now), started + deadline_s)
        finally:
            undo()
        seen = _until(target, lambda now: bitten is not None and fault.recovered(before, now).ok, started + deadline_s)
    now = seen or target.look(time.time())
    evidence = fault.recovered(before, now).evidence if bitten else "the fault had no effect"
    return _result(fault, seen is not None, time.monotonic() - started, lost_steps(before, now), evidence)


def _result(fault: Fault, passed: bool, seconds: float, lost: int, evidence: str) -> Result:
    return Result(fault=fault.NAME, says=fault.SAYS, passed=passed, seconds=seconds, lost_steps=lost, evidence=evidence)


def _until(target: Target, wanted: Callable[[Look], bool], deadline: float) -> Look | None:
    """The first look that satisfies `wanted`, None when there is none before `deadline` (monotonic seconds)."""
    while True:
        now = target.look(time.time())
        if wanted(now):
            return now
        if time.monotonic() > deadline:
            return None
        time.sleep(_LOOK_S)


def _await_training(target: Target, deadline_s: float) -> None:
    """Until all four processes live and a step was completed; what never tells steps, must only live for a while.

    Raises HoldfastError.
    """
    first = target.look(time.time())

    def ready(now: Look) -> bool:
        trains = now.t - first.t > _SILENT_S if now.beat is None else now.step not in (0, first.step)
        return trains and now.processes.keys() == set(ROLES)

    if _until(target, ready, time.monotonic() + deadline_s) is None:
        raise HoldfastError(
            f"{target.run.id} did not train within {deadline_s:g} s, so nothing more was broken",
            hint=f"holdfast status {target.run.id}",
        )


def _checked(names: str | None) -> list[str]:
    wanted = names.split(",") if names else faults.names()
    if unknown := [name for name in wanted if name not in faults.names()]:
        raise UsageError(f"no fault named {unknown[0]!r}", hint=f"there are {', '.join(faults.names())}")
    return wanted


def _progress(name: str) -> AbstractContextManager[object]:
    """A spinner where a person looks."""
    from rich.console import Console

    return Console(stderr=True).status(f"{name}: waiting for recovery")
