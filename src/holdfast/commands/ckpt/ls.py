"""`holdfast ckpt ls`."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import TYPE_CHECKING

import click

from holdfast.commands.arguments import clock_of, json_option, print_json, print_table, say
from holdfast.commands.ckpt.selection import facts, is_complete, meant, mirrored, name_of, target_argument, tier_of
from holdfast.commands.wording import age, columns, number, printable
from holdfast.units import show_size

if TYPE_CHECKING:
    from holdfast.checkpoint.survey import CheckpointInfo
    from holdfast.checkpoint.target import Target

_HEADINGS = ("CHECKPOINT", "STEP", "EPOCH", "AGE", "SIZE", "ADDED", "TIER", "REASON", "METRICS")


@click.command("ls")
@target_argument(required=False)
@click.option("--all", "-a", "everything", is_flag=True, help="Also those that `resume RUN@STEP` has set aside.")
@json_option
@click.pass_context
def command(context: click.Context, target: Target | None, everything: bool, as_json: bool) -> None:
    """The checkpoints of a run or a folder, newest last; or the one behind @."""
    from holdfast.checkpoint.target import every, find, how_to_save

    asked = meant(target)
    found = [info for info in every(asked) if everything or info.live] if asked.at is None else [find(asked)]
    elsewhere = mirrored(asked)
    if as_json:
        print_json([facts(info, elsewhere) for info in found])
    elif found:
        print_table(table(found, clock_of(context)(), elsewhere))
    else:
        say(f"{asked.name} has no checkpoint yet", hint=how_to_save(asked))


def table(found: Sequence[CheckpointInfo], now_s: float, elsewhere: Container[tuple[int, int]] = ()) -> list[str]:
    """Headings and a line a checkpoint; names that say more than run and step. ADDED: bytes that no older one needs."""
    named = any(info.name and not info.name.endswith(f"-{info.step:08d}") for info in found)
    rows = [_row(info, now_s, elsewhere) + ((printable(info.name) or "-",) if named else ()) for info in found]
    return columns([_HEADINGS + (("NAME",) if named else ()), *rows])


def _row(info: CheckpointInfo, now_s: float, elsewhere: Container[tuple[int, int]]) -> tuple[str, ...]:
    told = (("aside", not info.live), ("pinned", info.pinned), ("packs missing", not is_complete(info)))
    marks = [mark for mark, holds in told if holds]
    return (
        name_of(info) + (f" ({', '.join(marks)})" if marks else ""),
        str(info.step),
        str(info.epoch),
        age(now_s - info.time_s),
        show_size(info.size_bytes),
        show_size(info.added_bytes),
        tier_of(info, elsewhere),
        printable(info.reason),
        printable(", ".join(f"{name} {number(value)}" for name, value in info.metrics.items())) or "-",
    )
