"""`holdfast ckpt verify`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from holdfast.commands.arguments import json_option, print_json, say
from holdfast.commands.ckpt.selection import name_of, target_argument
from holdfast.errors import NoValidCheckpoint

if TYPE_CHECKING:
    from holdfast.checkpoint.survey import CheckpointInfo
    from holdfast.checkpoint.target import Target


@click.command("verify")
@target_argument()
@json_option
def command(target: Target, as_json: bool) -> int:
    """Read every byte of RUN's checkpoints, or of one, and compare the hashes. Exits with 12 when one is damaged."""
    from holdfast.checkpoint import load
    from holdfast.checkpoint.target import every, find

    chosen_ones = every(target) if target.at is None else [find(target)]
    problems = {name_of(info): load.verify(target.root, info) for info in _with_progress(chosen_ones)}
    if target.at is None and (wrong := load.problems(target.root)):
        problems["folder"] = wrong
    damaged = {name: said for name, said in problems.items() if said}
    if as_json:
        print_json([{"checkpoint": name, "problems": said} for name, said in problems.items()])
    else:
        for name, said in problems.items():
            click.echo(f"{name}  {'; '.join(said) or 'intact'}")
    if damaged:
        say(f"{target.name}: {', '.join(damaged)} damaged", hint="a resume takes the newest intact one, and says so")
        return NoValidCheckpoint.exit_code
    if not problems:
        say(f"{target.name} has no checkpoint yet")
    return 0


def _with_progress(found: list[CheckpointInfo]) -> Iterable[CheckpointInfo]:
    """The same, behind a progress bar where a person looks."""
    if not sys.stderr.isatty():
        return found
    from rich.console import Console
    from rich.progress import track

    return track(found, description="verifying", transient=True, console=Console(stderr=True))
