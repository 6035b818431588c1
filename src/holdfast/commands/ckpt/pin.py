"""`holdfast ckpt pin`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from holdfast.commands.arguments import json_option, print_json, say
from holdfast.commands.ckpt.selection import name_of, target_argument

if TYPE_CHECKING:
    from holdfast.checkpoint.target import Target


@click.command("pin")
@target_argument()
@click.option("--reason", default="", help="Kept with the pin.")
@json_option
def command(target: Target, reason: str, as_json: bool) -> None:
    """Keep a checkpoint, by default the newest, whatever `checkpoint.keep` and `prune` say, until `unpin`."""
    from holdfast.checkpoint.target import find
    from holdfast.commands.ckpt import keeping

    info = find(target)
    keeping.pin(target, info, reason)
    if as_json:
        print_json({"checkpoint": name_of(info), "step": info.step, "pinned": True, "reason": reason})
    else:
        say(f"{target.name}@{name_of(info)} (step {info.step}) is pinned")
