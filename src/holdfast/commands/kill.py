"""`holdfast kill`: end a run at once. What was saved stays; steps since the newest checkpoint are lost."""

from __future__ import annotations

import click

from holdfast.commands.arguments import run_argument
from holdfast.commands.stop import end
from holdfast.runs import RunDir


@click.command("kill")
@run_argument
@click.option("--wait/--no-wait", default=True, help="Come back when it has ended. [default: wait]")
def command(run: RunDir, wait: bool) -> None:
    """End RUN at once, without saving. `holdfast stop` saves first."""
    end(run, "kill", {}, wait=wait)
