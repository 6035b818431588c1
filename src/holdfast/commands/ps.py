"""`holdfast ps`: the runs of this machine, one line each."""

from __future__ import annotations

from typing import Any

import click

from holdfast import runs
from holdfast.commands.arguments import fitted, json_option, print_json, say, takes_colours
from holdfast.commands.liveness import ENDED, status_of
from holdfast.commands.wording import age, columns, lasting, plural
from holdfast.errors import HoldfastError

_HEADINGS = ("RUN", "STATE", "ATTEMPT", "STEP", "LEFT", "SAVED")
_COLOURS = {"running": "green", "succeeded": "green", "failed": "red", "lost": "red"}


@click.command("ps")
@click.option("--all", "-a", "everything", is_flag=True, help="Ended runs too.")
@json_option
def command(everything: bool, as_json: bool) -> None:
    """List the runs of this machine: those that have not ended, or all."""
    found = [_status(run) for run in runs.every()]
    shown = [status for status in found if everything or status["state"] not in ENDED]
    if as_json:
        print_json(shown)
        return
    if shown:
        for line, state in zip(fitted(table(shown)), ["", *(status["state"] for status in shown)], strict=True):
            colour = _COLOURS.get(state) if takes_colours() else None
            click.echo(line.replace(state, click.style(state, fg=colour), 1) if colour else line)
    _tell(len(found), len(found) - len(shown))


def table(statuses: list[dict[str, Any]]) -> list[str]:
    """Headings and one line a run, aligned. Pure."""
    return columns([_HEADINGS, *(row(status) for status in statuses)])


def row(status: dict[str, Any]) -> tuple[str, ...]:
    """The cells of one run."""
    checkpoint = status.get("checkpoint")
    total = status.get("steps_total")
    step = status.get("step")
    return (
        status["run"],
        status["state"],
        str(status.get("attempt") or "-"),
        "-" if step is None else f"{step} of {total}" if total else str(step),
        lasting(status.get("eta_s")),
        f"step {checkpoint['step']}, {age(checkpoint.get('age_s'))}" if checkpoint else "-",
    )


def _status(run: runs.RunDir) -> dict[str, Any]:
    """One unreadable run must not hide the others."""
    try:
        return status_of(run)
    except HoldfastError as error:
        say(f"{run.id}: {error}", hint=error.hint)
        return {"run": run.id, "state": "unreadable", "dir": str(run.root)}


def _tell(found: int, hidden: int) -> None:
    if not found:
        say("no runs yet", hint="holdfast run -- python train.py")
    elif hidden:
        say(f"{plural(hidden, 'ended run')} not shown", hint="holdfast ps --all")
