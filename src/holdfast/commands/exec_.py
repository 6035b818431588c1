"""`holdfast exec`: one command on one or many hosts, over connections that are there already."""

from __future__ import annotations

import json
import shlex
import sys
from typing import TYPE_CHECKING, Any

import click

from holdfast.commands.arguments import duration_option, going_on, json_option, keepalive_option, print_of, say

if TYPE_CHECKING:
    from holdfast.link.remote import CommandOutcome


@click.command("exec", context_settings={"ignore_unknown_options": True})
@click.option(
    "--on", "patterns", required=True, multiple=True, metavar="HOST", help="An alias, a pattern ('gpu-*') or a pool."
)
@click.option("--at-once", type=click.IntRange(1, 256), default=32, show_default=True, help="Hosts at a time.")
@duration_option(
    "--timeout",
    default="60s",
    show_default=True,
    help="For each host, its connection included; on one host without --json for the connection alone.",
)
@keepalive_option
@json_option
@click.argument("words", metavar="-- COMMAND...", nargs=-1, type=click.UNPROCESSED, required=True)
def command(
    patterns: tuple[str, ...],
    at_once: int,
    timeout: float,
    as_json: bool,
    words: tuple[str, ...],
) -> int:
    """Run COMMAND on every HOST. Exits as it did on one host; on several with the highest status."""
    from holdfast.link import names, remote, target

    config = target.users_config()
    hosts = names.chosen(patterns, config)
    text = shlex.join(words) if len(words) > 1 else words[0]
    if len(hosts) == 1 and not as_json:
        return _straight(hosts[0], text, config, timeout)
    highest = 0
    with going_on("what has begun on the hosts goes on there"):
        for outcome in remote.everywhere(hosts, text, config=config, at_once=at_once, within_s=timeout):
            highest = max(highest, outcome.status)
            click.echo(json.dumps(_facts(outcome))) if as_json else _show(outcome)
    return highest


def _straight(host: str, text: str, config: str, timeout: float) -> int:
    from holdfast.commands import reach
    from holdfast.link import remote
    from holdfast.link.client import Links
    from holdfast.link.mux import HOST_ANSWER_S

    with Links() as links:
        up = reach.shared(links, links.up(host, config=config, within_s=timeout))
        sys.stdout.flush()
        with going_on(f"the command goes on at {host}"):
            return remote.run(up, text, (0, 1, 2), within_s=min(timeout, HOST_ANSWER_S))


def _show(outcome: CommandOutcome) -> None:
    print_of(outcome.host, outcome.out, outcome.err)
    if outcome.error:
        say(f"{outcome.host}: {outcome.error}", hint=outcome.hint)
    elif outcome.status:
        say(f"{outcome.host}: exit status {outcome.status}")


def _facts(outcome: CommandOutcome) -> dict[str, Any]:
    return {
        "host": outcome.host,
        "status": outcome.status,
        "out": outcome.out.decode(errors="replace"),
        "err": outcome.err.decode(errors="replace"),
        "error": outcome.error,
        "seconds": round(outcome.seconds, 3),
    }
