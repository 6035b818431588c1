"""A click group made of a table, whose verbs are imported only when they are called."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import click
from click.shell_completion import CompletionItem


class Away(NamedTuple):
    """How a verb is called on another machine. The verb does not know: `reaching` does it for all of them."""

    lasts: str = ""  # the option with which it goes on for as long as somebody looks, `*`: always; it outwaits the link
    unless: str = ""  # but not with that option
    leads: bool = False  # while it lasts the run's `ports` of this machine lead there
    removes: bool = False  # the runs that it names are no more when it has succeeded
    ends: bool = False  # once it has succeeded no other machine of a pool is to go on with these runs
    halts: bool = False  # runs of a pool whose machine is away are told through their mirror
    rides: bool = False  # it needs a terminal of its own: through ssh, and not as a call


class Verb(NamedTuple):
    """One row: `module` below `holdfast.commands`, `summary` as `--help` prints it, `away` where it is for machines."""

    module: str
    summary: str
    away: Away | None = None


THERE = Away()
Table: TypeAlias = Mapping[str, Mapping[str, Verb]]  # heading → name → verb


class Verbs(click.Group):
    """A group that imports a verb when it is called, and no other; help and completion answer from `table` alone."""

    def __init__(self, *arguments: Any, table: Table, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._table = table
        self._verbs = {name: verb for verbs in table.values() for name, verb in verbs.items()}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every verb, in the order of the table."""
        return list(self._verbs)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb's click command, None for an unknown one."""
        if cmd_name not in self._verbs:
            return None
        row = self._verbs[cmd_name]
        module = importlib.import_module(f"holdfast.commands.{row.module}")
        command = module.command
        assert isinstance(command, click.Command)
        if row.away is None:
            return command
        from holdfast.commands.reaching import reaching

        return reaching(command, row.away, getattr(module, "together", None))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's, but an unknown verb is answered with the nearest one."""
        if args and args[0] not in self._verbs:
            near = difflib.get_close_matches(args[0], self._verbs, n=1)
            said = f"; did you mean {near[0]!r}?" if near else ""
            raise click.UsageError(f"no verb named {args[0]!r}{said}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table, by its headings."""
        for heading, verbs in self._table.items():
            with formatter.section(heading):
                formatter.write_dl([(name.ljust(10), verb.summary) for name, verb in verbs.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Verb names from the table."""
        found = self._verbs.items()
        return [CompletionItem(name, help=verb.summary) for name, verb in found if name.startswith(incomplete)]
