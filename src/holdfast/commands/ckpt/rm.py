"""`holdfast ckpt rm`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from holdfast.commands.arguments import RunArgument, json_option, print_json, say
from holdfast.commands.ckpt.selection import METAVAR, name_of, target
from holdfast.errors import UsageError

if TYPE_CHECKING:
    from holdfast.checkpoint.target import Target


@click.command("rm")
@click.argument("targets", metavar=f"{METAVAR}...", type=target, cls=RunArgument, nargs=-1, required=True)
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@json_option
def command(targets: tuple[Target, ...], yes: bool, as_json: bool) -> None:
    """Remove single checkpoints. Pinned ones and the newest two of a run are refused."""
    from holdfast.checkpoint.target import find
    from holdfast.commands.ckpt import keeping

    for one in targets:
        keeping.must_name_one(one)
    found = [(one, find(one)) for one in targets]
    names = [f"{one.name}@{name_of(info)}" for one, info in found]
    confirm(f"remove {', '.join(names)}?", yes=yes)
    for (one, info), name in zip(found, names, strict=True):
        keeping.remove(one, info)
        if not as_json:
            say(f"{name} (step {info.step}) removed")
    if as_json:
        print_json([{"run": one.name, "checkpoint": name_of(info), "step": info.step} for one, info in found])


def confirm(question: str, *, yes: bool) -> None:
    """A person may say no; a script has to say --yes. Raises UsageError, Abort."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"{question.removesuffix('?')}: nobody is there to ask", hint="--yes")
    click.confirm(question, abort=True, err=True)
