"""`holdfast ckpt verify`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import click

from holdfast import runs
from holdfast.commands.arguments import json_option, print_json, say
from holdfast.commands.ckpt.progress import bar
from holdfast.commands.ckpt.selection import mirrored, name_of, target, target_argument
from holdfast.commands.wording import plural
from holdfast.errors import NoValidCheckpoint, UsageError

if TYPE_CHECKING:
    from holdfast.checkpoint.survey import CheckpointInfo
    from holdfast.checkpoint.target import Target


@click.command("verify")
@target_argument("asked", required=False)
@click.option("--all", "everything", is_flag=True, help="The checkpoints of every run on this machine.")
@json_option
def command(asked: Target | None, everything: bool, as_json: bool) -> int:
    """Read every byte of a run's checkpoints, or of one, and compare the hashes. Exits with 12 when one is damaged."""
    if (asked is None) != everything:
        raise UsageError("give either a run or --all", hint="holdfast ckpt verify --all")
    meant = [asked] if asked is not None else [target(str(run.root)) for run in runs.every()]
    problems = _problems(meant, every_run=everything)
    damaged = [name for name, said in problems.items() if said]
    if as_json:
        print_json([{"checkpoint": name, "problems": said} for name, said in problems.items()])
    else:
        for name, said in problems.items():
            click.echo(f"{name}  {'; '.join(said) or 'intact'}")
    if damaged:
        whose = f"{meant[0].name}: " if asked is not None else f"{plural(len(damaged), 'part')} of what is stored: "
        say(f"{whose}{', '.join(damaged)} damaged", hint=_what_now(asked, problems))
        return NoValidCheckpoint.exit_code
    if not problems:
        say(f"{meant[0].name if asked is not None else 'no run'} has no checkpoint yet")
    return 0


def _what_now(asked: Target | None, problems: Mapping[str, Sequence[str]]) -> str:
    if asked is None or asked.at is not None or not all(problems.values()):
        return "a resume takes the newest intact one, and says so"
    if mirrored(asked):
        return f"holdfast ckpt pull {asked.name} brings the newest from the mirror"
    return "none is left to continue from"


def _problems(meant: Sequence[Target], *, every_run: bool) -> dict[str, list[str]]:
    """What is wrong with each checkpoint, and with each folder where something is."""
    from holdfast.checkpoint import load
    from holdfast.checkpoint.target import every, find

    found = {one: every(one) if one.at is None else [find(one)] for one in meant}
    problems: dict[str, list[str]] = {}
    with bar("verifying", _total(info for infos in found.values() for info in infos)) as advance:
        for one, infos in found.items():
            begin = f"{one.name}@" if every_run else ""
            for info in infos:
                problems[begin + name_of(info)] = load.verify(one.root, info)
                advance(info.size_bytes)
            if one.at is None and (wrong := load.problems(one.root)):
                problems[f"{one.name}: folder" if every_run else "folder"] = wrong
    return problems


def _total(infos: Iterable[CheckpointInfo]) -> int:
    return sum(info.size_bytes for info in infos)
