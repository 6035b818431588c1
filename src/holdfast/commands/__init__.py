"""The verbs: one file each, imported only when it is called.

`VERBS` is the one table. A module exposes `command`, a click command; what its callback returns is the exit code
(None is 0). `--help` and completion answer from the table alone.
"""

from __future__ import annotations

import difflib
import importlib
from typing import NamedTuple

import click
from click.shell_completion import CompletionItem

from holdfast import __version__


class Verb(NamedTuple):
    """One row: `module` below this package, `summary` as `--help` prints it."""

    module: str
    summary: str


VERBS: dict[str, dict[str, Verb]] = {
    "Start": {
        "run": Verb("run", "start a run and stay with it (-d: leave it)"),
        "resume": Verb("resume", "continue from the newest, a step or the best checkpoint"),
        "schedule": Verb("schedule", "start runs by the clock, never two at a time"),
    },
    "Look": {
        "ps": Verb("ps", "list the runs"),
        "status": Verb("status", "where one run stands"),
        "logs": Verb("logs", "its output (-f: as it comes)"),
        "attach": Verb("attach", "live view; Ctrl-C leaves the run running"),
        "events": Verb("events", "its journal: what happened, when"),
        "explain": Verb("explain", "why each attempt ended, and what to do"),
    },
    "Steer": {
        "save": Verb("save", "write a checkpoint at the next step"),
        "stop": Verb("stop", "save, then stop"),
        "kill": Verb("kill", "stop at once, without saving"),
        "wait": Verb("wait", "until it ends; exits as the run did"),
        "rm": Verb("rm", "delete ended runs, checkpoints included"),
        "ckpt": Verb("ckpt", "its checkpoints: look, verify, move, remove"),
    },
    "Machine": {
        "shell": Verb("shell", "a terminal in the run's code and environment"),
        "drill": Verb("drill", "break a run on purpose and prove that it recovers"),
        "host": Verb("host", "make this machine continue its runs after a reboot"),
        "schema": Verb("schema", "the JSON schema of the run file"),
        "completion": Verb("completion", "the completion script of a shell"),
    },
}

_all = {name: verb for verbs in VERBS.values() for name, verb in verbs.items()}


class Verbs(click.Group):
    """A group that imports a verb when it is called, and no other."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every verb, in the order of the table."""
        return list(_all)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb's click command, None for an unknown one."""
        if cmd_name not in _all:
            return None
        command = importlib.import_module(f"holdfast.commands.{_all[cmd_name].module}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's, but an unknown verb is answered with the nearest one."""
        if args and args[0] not in _all:
            near = difflib.get_close_matches(args[0], _all, n=1)
            said = f"; did you mean {near[0]!r}?" if near else ""
            raise click.UsageError(f"no verb named {args[0]!r}{said}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table, by its headings."""
        for heading, verbs in VERBS.items():
            with formatter.section(heading):
                formatter.write_dl([(name.ljust(10), verb.summary) for name, verb in verbs.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Verb names from the table."""
        return [CompletionItem(name, help=verb.summary) for name, verb in _all.items() if name.startswith(incomplete)]


@click.command(
    "holdfast",
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    subcommand_metavar="VERB [ARGS]...",
    epilog="`holdfast VERB --help` explains one verb.",
)
@click.version_option(__version__, message="holdfast %(version)s")
def group() -> None:
    """Declare a training run once, in one file. It finishes, whatever breaks."""
