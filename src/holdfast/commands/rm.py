"""`holdfast rm`: delete ended runs with their checkpoints.

The run's lock is held meanwhile, so no shim can start in it. Checkpoints that the run file put elsewhere stay, and the
folder that a script chose itself (`Run(dir=…)`) loses only what we made there.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import click

from holdfast import fsio, process, runs
from holdfast.commands.arguments import RunArgument, say
from holdfast.errors import HoldfastError, LeaseHeld, UsageError
from holdfast.node.slotmemory import SlotFiles
from holdfast.runs import RunDir, plan_of


@click.command("rm")
@click.argument("names", metavar="RUN...", type=runs.find, cls=RunArgument, nargs=-1, required=True)
@click.option("--force", "-f", is_flag=True, help="Do not ask. Live runs are refused all the same.")
def command(names: tuple[RunDir, ...], force: bool) -> None:
    """Delete each RUN that is not live: its journal, logs, code snapshot and checkpoints."""
    for run in names:
        with _locked(run):
            if not force:
                _ask(run)
            elsewhere, alone = _checkpoints_elsewhere(run), _alone(run)
            _delete(run, alone=alone)
        say(f"{run.id} deleted" + (f"; its checkpoints stay in {elsewhere}" if elsewhere else ""))


def _locked(run: RunDir) -> fsio.Held:
    """The run's lock. Raises LeaseHeld while a shim does."""
    try:
        return fsio.lock_file(run.lock)
    except BlockingIOError:
        hint = "" if _alone(run) else f"holdfast stop {run.id}"
        raise LeaseHeld(str(run.root), process.holder(run), hint=hint) from None


def _ask(run: RunDir) -> None:
    """A person may say no; a script has to say --force."""
    saved = len(list((run.checkpoints / "manifests").glob("*.json")))
    if not sys.stdin.isatty():
        raise UsageError(
            f"{run.id} and its {saved} checkpoints would be gone for good", hint=f"holdfast rm --force {run.id}"
        )
    click.confirm(f"delete {run.id} with its {saved} checkpoints?", abort=True, err=True)


def _alone(run: RunDir) -> bool:
    """Whether the folder may hold more than ours: a script chose it, or nobody can tell."""
    try:
        return bool(plan_of(run)["alone"])
    except (HoldfastError, KeyError):
        return run.root.parent != runs.home() / "runs"


def _checkpoints_elsewhere(run: RunDir) -> Path | None:
    try:
        folder = Path(plan_of(run)["checkpoint"]["dir"])
    except (HoldfastError, KeyError, TypeError):
        return None
    return None if folder.is_relative_to(run.root) or not folder.exists() else folder


def _delete(run: RunDir, *, alone: bool) -> None:
    """The plan last, so that a run deleted half-way is still listed and can be deleted again."""
    files = SlotFiles.of(run.root, run.runtime, boot="")
    ours = [
        *(run.spec, run.journal, run.code, run.output, run.records, run.archiver_log, run.shim_log, run.node_log),
        *(run.stacks, run.checkpoints, run.lib, run.lock),
    ]
    if not alone:
        ours = list(run.root.iterdir())
    for entry in [*(entry for entry in ours if entry != run.plan), run.plan]:
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)
    if files is not None:
        files.remove()
    shutil.rmtree(run.runtime, ignore_errors=True)
    if not any(run.root.iterdir()):
        run.root.rmdir()
