"""`holdfast events`: the journal of a run, one event a line. Events of a newer version are shown too."""

from __future__ import annotations

import json
from typing import Any

import click

from holdfast.commands.arguments import chosen, optional_run
from holdfast.commands.liveness import polls
from holdfast.commands.wording import clock, number
from holdfast.runs import RunDir

_FRAME = ("v", "n", "t", "event")


@click.command("events")
@optional_run
@click.option("--follow", "-f", is_flag=True, help="As they come, until the run is over.")
@click.option("--json", "as_json", is_flag=True, help="The journal's own lines.")
def command(run: RunDir | None, follow: bool, as_json: bool) -> None:
    """What happened in RUN, and when. Without RUN: the only live one, else the newest."""
    meant = chosen(run)
    at = _show(meant, 0, as_json)
    if follow:
        for _ in polls(meant):
            at = _show(meant, at, as_json)


def sentence(line: dict[str, Any]) -> str:
    """One journal line for people: time, name, and the fields that say something. Pure but for the time zone."""
    said = [f"{name}={_shown(value)}" for name, value in line.items() if name not in _FRAME and _says(value)]
    return "  ".join([clock(line["t"]), str(line["event"]).ljust(20), " ".join(said)]).rstrip()


def _show(run: RunDir, offset: int, as_json: bool) -> int:
    """Print whole lines from `offset` on; returns where the next one will begin."""
    if not run.journal.exists():
        return offset
    with run.journal.open("rb") as journal:
        journal.seek(offset)
        new = journal.read()
    whole = new[: new.rfind(b"\n") + 1]
    for raw in whole.splitlines():
        click.echo(raw.decode() if as_json else sentence(json.loads(raw)))
    return offset + len(whole)


def _says(value: object) -> bool:
    return value is not None and value is not False and value not in ("", [], {})


def _shown(value: object) -> str:
    text = number(value) if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
    first, _, rest = text.partition("\n")
    return json.dumps(first + (" …" if rest else "")) if " " in first or rest else first
