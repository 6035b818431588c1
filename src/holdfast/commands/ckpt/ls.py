"""`holdfast ckpt ls`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from holdfast.commands.arguments import clock_of, json_option, print_json, say
from holdfast.commands.ckpt.selection import facts, meant, name_of, target_argument
from holdfast.commands.wording import age, columns, number
from holdfast.units import show_size

if TYPE_CHECKING:
    from holdfast.checkpoint.survey import CheckpointInfo
    from holdfast.checkpoint.target import Target

_HEADINGS = ("CHECKPOINT", "STEP", "EPOCH", "AGE", "SIZE", "REASON", "METRICS")


@click.command("ls")
@target_argument(metavar="RUN|FOLDER", required=False)
@click.option("--all", "-a", "everything", is_flag=True, help="Also those that `resume RUN@STEP` has set aside.")
@json_option
@click.pass_context
def command(context: click.Context, target: Target | None, everything: bool, as_json: bool) -> None:
    """The checkpoints of a run or a folder, newest last."""
    from holdfast.checkpoint.target import every

    asked = meant(target)
    found = [info for info in every(asked) if everything or info.live]
    if as_json:
        print_json([facts(info) for info in found])
    elif found:
        click.echo("\n".join(table(found, clock_of(context)())))
    else:
        say(f"{asked.name} has no checkpoint yet", hint=f"holdfast save {asked.name}")


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
