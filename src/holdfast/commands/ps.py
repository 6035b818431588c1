"""`holdfast ps`: the runs of a machine, one line each; of several, in one table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from holdfast import runs
from holdfast.commands import remembered
from holdfast.commands.arguments import fitted, json_option, print_json, say, takes_colours
from holdfast.commands.liveness import ENDED, status_of
from holdfast.commands.status import waits
from holdfast.commands.wording import age, columns, lasting, plural
from holdfast.errors import HoldfastError

_HEADINGS = ("RUN", "STATE", "ATTEMPT", "STEP", "LEFT", "SAVED")
_COLOURS = {"running": "green", "succeeded": "green", "failed": "red", "lost": "red"}


@click.command("ps")
@click.option("--all", "-a", "everything", is_flag=True, help="Ended runs too.")
@json_option
def command(everything: bool, as_json: bool) -> None:
    """List the runs of a machine: those that have not ended, or all."""
    found = [_status(run) for run in runs.every()]
    shown = [status for status in found if everything or status["state"] not in ENDED]
    if as_json:
        print_json(shown)
        return
    _show(table(shown), shown)
    _tell_waits(shown)
    _tell(len(found), len(found) - len(shown))


def together(found: Mapping[str, Any], as_json: bool) -> None:
    """The runs of several machines, by the name of each, in one table."""
    shown = [{**status, "host": host} for host, statuses in found.items() for status in statuses]
    if as_json:
        print_json(shown)
    else:
        _show(table(shown, by_host=True), shown)
        _tell_waits([{**status, "run": f"{status['host']}:{status['run']}"} for status in shown])


def table(statuses: list[dict[str, Any]], *, by_host: bool = False) -> list[str]:
    """Headings and one line a run, aligned. Pure."""
    if by_host:
        rows = [(status["host"], *row(status)) for status in statuses]
        return columns([("HOST", *_HEADINGS), *rows])
    return columns([_HEADINGS, *(row(status) for status in statuses)])


def _show(lines: list[str], statuses: list[dict[str, Any]]) -> None:
    if not statuses:
        return
    for line, state in zip(fitted(lines), ["", *(status["state"] for status in statuses)], strict=True):
        colour = _COLOURS.get(state) if takes_colours() else None
        click.echo(line.replace(state, click.style(state, fg=colour), 1) if colour else line)


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


def _tell_waits(statuses: list[dict[str, Any]]) -> None:
    for status in statuses:
        if text := waits(status):
            say(f"{status['run']} waits {text}")


def _tell(found: int, hidden: int) -> None:
    if not found and (hosts := remembered.hosts()):
        say("no runs on this machine", hint=" ".join(["holdfast ps", *(f"--on {host}" for host in hosts)]))
    elif not found:
        say("no runs yet", hint="holdfast run -- python train.py")
    elif hidden:
        say(f"{plural(hidden, 'ended run')} not shown", hint="holdfast ps --all")
