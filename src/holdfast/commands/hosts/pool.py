"""`holdfast host pool`."""

from __future__ import annotations

from collections.abc import Mapping

import click

from holdfast.commands.arguments import json_option, print_json, print_table, say
from holdfast.commands.reaching import complete_hosts
from holdfast.commands.wording import columns
from holdfast.errors import UsageError


@click.command("pool")
@click.argument("name", required=False)
@click.argument("members", metavar="[HOST...]", nargs=-1, shell_complete=complete_hosts)
@click.option("--rm", "remove", is_flag=True, help="The name means nothing any more; its hosts stay as they are.")
@json_option
def command(name: str | None, members: tuple[str, ...], remove: bool, as_json: bool) -> None:
    """Let NAME mean these hosts wherever a host is taken, and `run` take the one that is freest. Without NAME: list."""
    from holdfast.link import pools

    if name is None:
        if remove:
            raise UsageError("which pool?", hint="holdfast host pool lists them")
        _show(pools.every(), as_json)
    elif remove:
        _remove(name, members)
    elif members:
        _make(name, members)
    elif name in pools.every():
        _show({name: pools.every()[name]}, as_json)
    else:
        raise UsageError(f"there is no pool {name!r}", hint=f"holdfast host pool {name} HOST... makes it")


def _make(name: str, members: tuple[str, ...]) -> None:
    from holdfast.link import include, names, pools, target

    include.check_name(name)
    config = target.users_config()
    meant = names.chosen(members, config)
    aliases = names.known(config)
    pools.make(name, meant, aliases)
    for host in meant:
        if host not in aliases:
            near = names.near(host, config)
            say(f"{host} is not in your ssh configuration", hint=f"did you mean {near}?" if near else "")
    say(f"{name} is {', '.join(meant)}", hint=f"holdfast run --on {name} -- python train.py")


def _remove(name: str, members: tuple[str, ...]) -> None:
    from holdfast.link import pools

    if members:
        raise UsageError("--rm removes the whole pool", hint=f"holdfast host pool {name} with the hosts that stay")
    if not pools.forget(name):
        raise UsageError(f"there is no pool {name!r}", hint="holdfast host pool lists them")
    say(f"{name} is no pool any more; its hosts stay as they are")


def _show(found: Mapping[str, tuple[str, ...]], as_json: bool) -> None:
    if as_json:
        print_json([{"pool": name, "hosts": list(members)} for name, members in found.items()])
    elif found:
        print_table(columns([("POOL", "HOSTS"), *((name, " ".join(members)) for name, members in found.items())]))
    else:
        say("there is no pool yet", hint="holdfast host pool NAME HOST...")
