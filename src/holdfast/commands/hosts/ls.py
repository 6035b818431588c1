"""`holdfast host ls`."""

from __future__ import annotations

from typing import Any

import click

from holdfast.commands.arguments import json_option, print_json, print_table, say

_HEAD = ("HOST", "STATE", "SINCE", "ROUND TRIP", "USERS", "KEEPALIVE", "SETTINGS")


@click.command("ls")
@click.option("--all", "-a", "every", is_flag=True, help="Every alias of the ssh configuration too.")
@json_option
def command(every: bool, as_json: bool) -> None:
    """Hosts that something is set or known for, and those with a connection now."""
    from holdfast.link import client, hosts, include, names, target

    settings, links = hosts.load(), {link["alias"]: link for link in client.held()}
    aliases = names.known(target.users_config()) if every else []
    found = dict.fromkeys([*include.load(), *settings, *links, *aliases])
    facts = [_facts(name, settings.get(name, hosts.Host()), links.get(name, {})) for name in found]
    if as_json:
        print_json(facts)
    elif facts:
        print_table(_lines(facts))
    else:
        say("no host is set up here", hint="any alias of ~/.ssh/config works as it is; see them with --all")


def _facts(name: str, host: Any, link: dict[str, Any]) -> dict[str, Any]:
    from holdfast.link import hosts

    chosen = hosts.choose([("the host's settings", host.settings)], host.measured)
    return {
        "host": name,
        "state": link.get("state", "down"),
        "since_s": link.get("since_s"),
        "trip_s": link.get("trip_s") or (host.measured.trip_s if host.measured else None),
        "loss_ratio": link.get("loss_ratio"),
        "users": link.get("users", 0),
        "keepalive": link.get("keepalive") or hosts.show_keepalive(chosen.keepalive),
        "settings": hosts.write(host.settings),
        "why": dict(chosen.why),
        "trouble": link.get("why", ""),
        "measured_s": host.measured.at_s if host.measured else None,
    }


def _lines(facts: list[dict[str, Any]]) -> list[str]:
    rows = [_HEAD, *(_row(each) for each in facts)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _row(fact: dict[str, Any]) -> tuple[str, ...]:
    import time

    from holdfast.link.probing import ms
    from holdfast.units import show_duration

    since = show_duration(max(0.0, time.time() - fact["since_s"])) if fact["since_s"] else "-"
    settings = " ".join(f"{name}={value}" for name, value in fact["settings"].items())
    trip = ms(fact["trip_s"]) if fact["trip_s"] else "-"
    return fact["host"], fact["state"], since, trip, str(fact["users"]), fact["keepalive"], settings or "-"
