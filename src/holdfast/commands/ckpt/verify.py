"""`holdfast ckpt verify`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from holdfast.commands.arguments import json_option, print_json, say
from holdfast.commands.ckpt.selection import every, name_of, one, root_of
from holdfast.commands.resume import At, target_argument
from holdfast.errors import NoValidCheckpoint
from holdfast.runs import RunDir

if TYPE_CHECKING:
    from holdfast.checkpoint.load import CheckpointInfo


@click.command("verify")
@target_argument()
@json_option
def command(target: tuple[RunDir, At], as_json: bool) -> int:
    """Read every byte of RUN's checkpoints, or of one, and compare the hashes. Exits with 12 when one is damaged."""
    from holdfast.checkpoint import load

    run, at = target
    root = root_of(run)
    chosen_ones = every(run) if at is None else [one(run, at)]
    problems = {name_of(info): load.verify(root, info) for info in _with_progress(chosen_ones)}
    if at is None and (wrong := load.problems(root)):
        problems["folder"] = wrong
    damaged = {name: said for name, said in problems.items() if said}
    if as_json:
        print_json([{"checkpoint": name, "problems": said} for name, said in problems.items()])
    else:
        for name, said in problems.items():
            click.echo(f"{name}  {'; '.join(said) or 'intact'}")
    if damaged:
        say(f"{run.id}: {', '.join(damaged)} damaged", hint="a resume takes the newest intact one, and says so")
        return NoValidCheckpoint.exit_code
    if not problems:
        say(f"{run.id} has no checkpoint yet")
    return 0


def _with_progress(found: list[CheckpointInfo]) -> Iterable[CheckpointInfo]:
    """The same, behind a progress bar where a person looks."""
    if not sys.stderr.isatty():
        return found
    from rich.console import Console
    from rich.progress import track

    return track(found, description="verifying", transient=True, console=Console(stderr=True))
