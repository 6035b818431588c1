"""`holdfast ckpt prune`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from holdfast import runs
from holdfast.commands.arguments import (
    RunArgument,
    clock_of,
    duration_option,
    json_option,
    print_json,
    print_table,
    say,
)
from holdfast.commands.ckpt.rm import confirm
from holdfast.commands.ckpt.selection import name_of, target, whole
from holdfast.commands.wording import age, columns, plural
from holdfast.errors import HoldfastError, UsageError
from holdfast.units import show_size

if TYPE_CHECKING:
    from holdfast.checkpoint.survey import CheckpointInfo
    from holdfast.checkpoint.target import Target


@click.command("prune")
@click.argument("targets", metavar="[RUN|FOLDER...]", type=target, cls=RunArgument, nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Every run on this machine.")
@duration_option("--older-than", required=True, help="Only what is older, such as 7d.")
@click.option("--keep-last", type=click.IntRange(2), default=2, show_default=True, help="Of each run, however old.")
@click.option("--dry-run", is_flag=True, help="Show what would go, and remove nothing.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@json_option
@click.pass_context
def command(
    context: click.Context,
    targets: tuple[Target, ...],
    everything: bool,
    older_than: float,
    keep_last: int,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> int:
    """Remove old checkpoints, those set aside included. Pinned, best and newest ones stay."""
    from holdfast.commands.ckpt import keeping

    if bool(targets) == everything:
        raise UsageError("give either runs or --all", hint="holdfast ckpt prune --all --older-than 7d --dry-run")
    now_s = clock_of(context)()
    asked = [target(str(run.root)) for run in runs.every()] if everything else [whole(one) for one in targets]
    found = [(one, info) for one in asked for info in keeping.prunable(one, now_s - older_than, keep_last)]
    if not as_json:
        _show(found, now_s)
    if found and not dry_run:
        confirm(f"remove {plural(len(found), 'checkpoint')}?", yes=yes)
    failed = [] if dry_run else [said for one, info in found if (said := _remove(one, info))]
    if as_json:
        print_json({"dry_run": dry_run, "removed": [facts(one, info) for one, info in found], "problems": failed})
    for said in failed:
        say(said)
    return 1 if failed else 0


def _show(found: Sequence[tuple[Target, CheckpointInfo]], now_s: float) -> None:
    if not found:
        say("nothing is that old, or all of it is pinned, best or needed")
        return
    rows = [
        (one.name, name_of(info), str(info.step), age(now_s - info.time_s), show_size(_frees([(one, info)])))
        for one, info in found
    ]
    print_table(columns([("RUN", "CHECKPOINT", "STEP", "AGE", "FREES"), *rows]))
    say(f"{plural(len(found), 'checkpoint')}, {show_size(_frees(found))} together")


def _frees(found: Sequence[tuple[Target, CheckpointInfo]]) -> int:
    """Bytes that only these checkpoints need; what two of them share counts for both together, for neither alone."""
    from holdfast.checkpoint.target import every
    from holdfast.commands.ckpt.keeping import freed_bytes

    total = 0
    for root in {one.root for one, _ in found}:
        gone = [info for one, info in found if one.root == root]
        places = {info.position for info in gone}
        one = next(one for one, _ in found if one.root == root)
        total += freed_bytes(gone, [info for info in every(one) if info.position not in places])
    return total


def _remove(one: Target, info: CheckpointInfo) -> str:
    """A sentence when it could not be; the others are removed all the same."""
    from holdfast.commands.ckpt import keeping

    try:
        keeping.remove(one, info)
    except (HoldfastError, OSError) as error:
        if info.path.exists():  # else retention was quicker, and it is gone as it should be
            return f"{one.name}@{name_of(info)}: {error}"
    return ""


def facts(one: Target, info: CheckpointInfo) -> dict[str, Any]:
    """One entry of `--json`. Pure."""
    return {"run": one.name, "checkpoint": name_of(info), "step": info.step, "time_s": info.time_s, "live": info.live}
