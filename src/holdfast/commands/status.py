"""`holdfast status`: where one run stands, in a few lines or as the JSON object other programs read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click

from holdfast.commands import afar
from holdfast.commands.arguments import (
    at_terminal,
    chosen,
    going_on,
    json_option,
    optional_run,
    print_json,
    say,
    terminal_width,
)
from holdfast.commands.liveness import ENDED, polls, status_of
from holdfast.commands.wording import age, by_commas, clock, hanging, labelled, number, plural, unbroken
from holdfast.runs import RunDir
from holdfast.units import show_duration

_WATCH_S = 1.0


@click.command("status")
@optional_run
@json_option
@click.option("--watch", "-w", is_flag=True, help="Again and again, until the run is over.")
def command(run: RunDir | None, as_json: bool, watch: bool) -> None:
    """Where RUN stands. Without RUN: the only live one, else the newest."""
    meant = chosen(run)
    if watch:
        with going_on(f"{meant.id} goes on"):
            _watch(meant, as_json)
        return
    status = status_of(meant)
    if as_json:
        print_json(status)
        return
    width = terminal_width()
    click.echo("\n".join(render(status, width)))
    for hint in hints(status):
        click.echo("\n".join(hanging("hint: ", afar.typed(hint), width)), err=True)


def render(status: dict[str, Any], width: int | None = None) -> list[str]:
    """The lines for people, none longer than `width` columns where words allow that. Pure."""
    facts = [
        (status["run"], "    ".join(map(unbroken, _standing(status)))),
        *(("why", text) for text in [status.get("reason")] if text),
        *(("waits", by_commas(text)) for text in [waits(status)] if text),
        ("saved", "; ".join(map(unbroken, saved(status).split("; ")))),
        *(("mirror", by_commas(text)) for text in [mirror(status)] if text),
        *(("metrics", by_commas(text)) for text in [metrics(status)] if text),
        *(("finding", f"{finding['id']}: {finding['message']}") for finding in status.get("findings") or []),
    ]
    return list(labelled(facts, width))


def hints(status: dict[str, Any]) -> Iterator[str]:
    """One thing to do for each finding that has one, and for a run that can go on."""
    yield from (finding["hint"] for finding in status.get("findings") or [] if finding.get("hint"))
    if status["state"] == "failed":
        yield f"holdfast explain {status['run']}"
    if status["state"] == "lost" or status.get("to_be_continued"):
        yield f"holdfast resume {status['run']}"


def progress(status: dict[str, Any]) -> str:
    """ "step 18200 of 50000, epoch 3", or an empty text before the first step."""
    step, total, epoch = status.get("step"), status.get("steps_total"), status.get("epoch")
    if step is None:
        return ""
    said = f"step {step} of {total}" if total else f"step {step}"
    return f"{said}, epoch {epoch}" if epoch is not None else said


def saved(status: dict[str, Any]) -> str:
    """Step, age and tier of the newest copy, and of the newest checkpoint when that is older."""
    checkpoint, memory = status.get("checkpoint"), status.get("memory")
    if memory and (not checkpoint or memory["step"] > checkpoint["step"]):
        durable = _of_tier(checkpoint, checkpoint.get("tier")) if checkpoint else "nothing on disk yet"
        return f"{_of_tier(memory, 'memory')}; {durable}"
    if not checkpoint:
        began = status.get("restored")  # from a disk to which this run committed nothing: after `resume URL`
        return f"step {began['step']}, from the mirror" if began and began["tier"] != "memory" else "nothing yet"
    return _of_tier(checkpoint, checkpoint.get("tier"))


def _of_tier(copy: dict[str, Any], tier: str | None) -> str:
    return f"step {copy['step']}, {age(copy.get('age_s'))}" + (f", {tier}" if tier else "")


def mirror(status: dict[str, Any]) -> str:
    """Where the second copy stands, empty for a run without a mirror."""
    known = status.get("mirror")
    if not known:
        return ""
    if known["superseded"]:
        return f"{known['url']}, taken over by another machine"
    away = ", cannot be reached" if known["unreachable_since_s"] else ""
    return f"{known['url']}, {_standing_of(known)}{away}"


def _standing_of(mirror: dict[str, Any]) -> str:
    if mirror["unsent"]:
        there = "" if mirror["held"] else "nothing yet, "
        return f"{there}{plural(mirror['unsent'], 'checkpoint')} behind, the oldest {age(mirror['unsent_s'])}"
    return "behind" if mirror["behind"] else "up to date" if mirror["held"] else "nothing yet"


def waits(status: dict[str, Any]) -> str:
    """What a queued run waits for, how many are before it, and who has the devices; empty for any other."""
    line = status.get("queue")
    if not line or status["state"] in ENDED:
        return ""
    return f"for {line['wants']} since {clock(line['since_s'])}, {line['ahead']} ahead; {line['why']}"


def metrics(status: dict[str, Any]) -> str:
    """The last logged values and the speed."""
    said = [f"{name} {number(value)}" for name, value in (status.get("metrics") or {}).items()]
    speed = status.get("speed_steps_per_s")
    if speed:
        said.append(f"{speed:.3g} steps/s" if speed >= 0.1 else f"{show_duration(1 / speed)} a step")
    return ", ".join(said)


def _standing(status: dict[str, Any]) -> Iterator[str]:
    attempt, restarts = status.get("attempt"), status.get("restarts")
    said = status["state"]
    if status["state"] in ENDED and status.get("exit_code") is not None:
        said += f", exit code {status['exit_code']}"
    if attempt:
        said += f", attempt {attempt}"
    segments = status.get("segments")
    said += f", {plural(segments, 'segment')} before" if segments else ""
    yield said + (f", {plural(restarts, 'restart')}" if restarts else "")
    if text := progress(status):
        yield text
    if status.get("eta_s") is not None and status["state"] not in ENDED:
        yield f"left {show_duration(status['eta_s'])}"


def _watch(run: RunDir, as_json: bool) -> None:
    if as_json:
        for status in polls(run, every_s=_WATCH_S):
            click.echo(json.dumps(status))
    elif at_terminal():
        _redraw(run)
    else:
        say("not a terminal: a new block whenever something changes")
        last: list[str] = []
        for status in polls(run, every_s=_WATCH_S):
            lines = render(status)
            if lines != last:
                click.echo("\n".join(lines))
            last = lines


def _redraw(run: RunDir) -> None:
    from rich.live import Live
    from rich.text import Text

    with Live(auto_refresh=False) as screen:
        for status in polls(run, every_s=_WATCH_S):
            width = terminal_width()
            lines = render(status, width)
            for hint in hints(status):
                lines += hanging("hint: ", afar.typed(hint), width)
            screen.update(Text("\n".join(lines)), refresh=True)
