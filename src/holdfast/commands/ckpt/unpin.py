"""`holdfast ckpt unpin`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from holdfast.commands.arguments import json_option, print_json, say
from holdfast.commands.ckpt.selection import name_of, target_argument

if TYPE_CHECKING:
    from holdfast.checkpoint.target import Target


@click.command("unpin")
@target_argument()
@json_option
def command(target: Target, as_json: bool) -> None:
    """Leave a pinned checkpoint to `checkpoint.keep` again."""
    from holdfast.checkpoint.target import find
    from holdfast.commands.ckpt import keeping

    keeping.must_name_one(target)
    info = find(target)
    keeping.unpin(target, info)
    if as_json:
        print_json({"checkpoint": name_of(info), "step": info.step, "pinned": False})
    else:
        say(f"{target.name}@{name_of(info)} (step {info.step}) is no longer pinned")
