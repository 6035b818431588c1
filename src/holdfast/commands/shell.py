"""`holdfast shell`: a terminal, or one command, where the run's code is and with its environment.

`HOLDFAST_RUN_DIR` is left out on purpose: with it, a script tried by hand would take itself for the run's trainer.
Secrets are not in the plan; those that the caller's own environment has are there.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from holdfast.commands.arguments import run_argument, say
from holdfast.errors import UsageError
from holdfast.process import TRAINER_VARIABLES, callers
from holdfast.runs import RunDir, plan_of


@click.command("shell", context_settings={"ignore_unknown_options": True})
@run_argument
@click.argument("words", metavar="[-- COMMAND...]", nargs=-1, type=click.UNPROCESSED)
def command(run: RunDir, words: tuple[str, ...]) -> None:
    """A terminal in RUN's code folder with its environment, or one command after `--`."""
    plan = plan_of(run)
    argv = list(words) or [os.environ.get("SHELL") or "/bin/sh"]
    if not words:
        say(f"{run.id}: {plan['cwd']} (exit leaves, the run goes on)")
    sys.stdout.flush()
    try:
        os.chdir(plan["cwd"])
        os.execvpe(argv[0], argv, environment(run, plan, callers(os.environ)))  # noqa: S606 - a command line of the user's own
    except OSError as error:
        raise UsageError(f"cannot start {argv[0]} in {plan['cwd']}: {error.strerror}") from error


def environment(run: RunDir, plan: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, str]:
    """The trainer's environment for a person: the caller's, the plan's, ours, and a marked prompt. Pure but for a look
    for the newest manifest."""
    checkpoints = Path(plan["checkpoint"]["dir"])
    newest = max((checkpoints / "manifests").glob("*.json"), default=None)
    kept = {name: value for name, value in environ.items() if name not in TRAINER_VARIABLES}
    path = [str(run.lib), plan["env"].get("PYTHONPATH") or environ.get("PYTHONPATH", "")]
    return {
        **kept,
        **plan["env"],
        "HOLDFAST_RUN_ID": run.id,
        "HOLDFAST_CKPT_DIR": str(checkpoints),
        "HOLDFAST_RESUME": str(newest or ""),
        "PYTHONPATH": os.pathsep.join(entry for entry in path if entry),
        "PS1": f"({run.id}) \\w $ ",
        "PROMPT_COMMAND": f"PS1='({run.id}) '${{PS1#'({run.id}) '}}",  # bash, after its start-up files set PS1
    }
