"""A verb that goes to the machine its words name. The verb itself does not know: it is called there as it is here."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import click
from click.shell_completion import CompletionItem

from holdfast.commands import places, remembered
from holdfast.commands.arguments import KEEPALIVE, KeepaliveOption
from holdfast.commands.table import Away
from holdfast.errors import HostUnreachable

Together: TypeAlias = Callable[[Mapping[str, Any], bool], None]  # what each machine said with --json; is it asked for?
_JOURNEY = "holdfast.journey"


def reaching(verb: click.Command, away: Away, together: Together | None = None) -> click.Command:
    """`verb`, or the verbs of a group, with `--on` and `--timeout`, for the runs of every machine."""
    if isinstance(verb, click.Group):
        group = copy.copy(verb)
        group.commands = {name: reaching(each, away) for name, each in verb.commands.items()}
        return group
    return Reaching(verb, away, together)


class Reaching(click.Command):
    """A verb and, before its words are read, the question where they are to be carried out."""

    def __init__(self, verb: click.Command, away: Away, together: Together | None) -> None:
        super().__init__(
            verb.name,
            context_settings=verb.context_settings,
            callback=verb.callback,
            params=[*verb.params, *_options(verb)],
            help=verb.help,
            hidden=verb.hidden,
        )
        self._away, self._together = away, together

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click's, unless the words go elsewhere: then that machine reads them."""
        if ctx.resilient_parsing or (found := self._journey(ctx, args)) is None:
            return super().parse_args(ctx, args)
        ctx.meta[_JOURNEY] = found
        return []

    def _journey(self, ctx: click.Context, args: list[str]) -> places.Journey | None:
        try:
            return places.journey(self, self._away, ctx, args)
        except places.Nowhere as error:
            self._halt([places.Line(error.host, (), (error.run,))], error.within_s, str(error))
            raise

    def invoke(self, ctx: click.Context) -> Any:
        """The verb's exit status, of several machines the highest."""
        found: places.Journey | None = ctx.meta.pop(_JOURNEY, None)
        if found is None:
            return super().invoke(ctx)
        from holdfast.commands import remote

        away = [line for line in found.lines if line.host]
        if self._away.rides:
            return max(remote.ride(line, _path(ctx), found) for line in away)
        status = self._carry_out(away, _path(ctx), found)
        if self._away.ends and not status:
            from holdfast.commands import failover

            for line in away:
                failover.end(line.host, line.runs, found.within_s)
        if self._away.removes and not status:
            for line in away:
                remembered.forget(line.host, line.runs)
        for line in found.lines[len(away) :]:
            with self.make_context(ctx.info_name, list(line.words), parent=ctx.parent) as here:
                status = max(status, super().invoke(here) or 0)
        return status

    def _carry_out(self, away: Sequence[places.Line], path: tuple[str, ...], found: places.Journey) -> int:
        from holdfast.commands import remote

        try:
            status = remote.carry_out(away, path, found, self._together)
        except HostUnreachable as error:
            self._halt(away, found.within_s, str(error))
            raise
        if status:
            self._halt(away, found.within_s, "")
        return status

    def _halt(self, away: Sequence[places.Line], within_s: float, why: str) -> None:
        """Where this verb ends runs and could not: let no other host of a pool go on with them. Raises HostUnreachable.

        `why`: the machine is away; empty where it has answered, and only may have lost the run.
        """
        if self._away.halts:
            from holdfast.commands import failover

            for line in away:
                for run in line.runs:
                    failover.stop(run, line.host, within_s, why)


def _options(verb: click.Command) -> list[click.Parameter]:
    taken = {option for param in verb.params for option in param.opts}
    ours = [
        click.Option(
            [places.ON, "on"], multiple=True, metavar="HOST", expose_value=False, shell_complete=complete_hosts,
            help="There instead of here: an alias, a pattern ('gpu-*') or a pool.",
        ),
        click.Option(
            [places.WITHIN, "within"], metavar="DURATION", expose_value=False, default="30s", show_default=True,
            help="How long HOST may not answer.",
        ),
        KeepaliveOption([KEEPALIVE]),
    ]  # fmt: skip
    return [option for option in ours if option.opts[0] not in taken]


def complete_hosts(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Aliases of the user's ssh configuration, and pools, for the shell."""
    from holdfast.link import names, pools, target

    found = [*names.known(target.users_config()), *pools.every()]
    return [CompletionItem(name) for name in found if name.startswith(incomplete)]


def _path(context: click.Context) -> tuple[str, ...]:
    """The verb as it is typed: `ckpt prune`."""
    above = _path(context.parent) if context.parent is not None and context.parent.parent is not None else ()
    return (*above, context.info_name or "")
