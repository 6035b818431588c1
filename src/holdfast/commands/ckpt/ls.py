"""`holdfast ckpt ls`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from holdfast.commands.arguments import chosen, clock_of, json_option, optional_run, print_json, say
from holdfast.commands.ckpt.selection import every, facts, name_of
from holdfast.commands.wording import age, columns, number
from holdfast.runs import RunDir
from holdfast.units import show_size

if TYPE_CHECKING:
    from holdfast.checkpoint.load import CheckpointInfo

_HEADINGS = ("CHECKPOINT", "STEP", "EPOCH", "AGE", "SIZE", "REASON", "METRICS")


@click.command("ls")
@optional_run
@click.option("--all", "-a", "everything", is_flag=True, help="Also those that `resume RUN@STEP` has set aside.")
@json_option
@click.pass_context
def command(context: click.Context, run: RunDir | None, everything: bool, as_json: bool) -> None:
    """The checkpoints of RUN, newest last."""
    meant = chosen(run)
    found = [info for info in every(meant) if everything or info.live]
    if as_json:
        print_json([facts(info) for info in found])
    elif found:
        click.echo("\n".join(table(found, clock_of(context)())))
    else:
        say(f"{meant.id} has no checkpoint yet", hint=f"holdfast save {meant.id}")


def table(found: Iterable[CheckpointInfo], now_s: float) -> list[str]:
    """Headings and a line a checkpoint. Pure."""
    rows = [
        (
            name_of(info) + ("" if info.live else " (aside)"),
            str(info.step),
            str(info.epoch),
            age(now_s - info.time_s),
            show_size(info.size_bytes),
            info.reason,
            ", ".join(f"{name} {number(value)}" for name, value in info.metrics.items()) or "-",
        )
        for info in found
    ]
    return columns([_HEADINGS, *rows])
