"""`holdfast host check`."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from holdfast.commands.arguments import going_on, json_option, print_json, print_table
from holdfast.commands.hosts.options import host_argument

if TYPE_CHECKING:
    from holdfast.link.client import Links
    from holdfast.link.reuse import Way

_LOOK_S = 0.25
_NOTICED = 1.5  # a round trip so many times longer or shorter is a change


@click.command("check")
@host_argument
@click.option("--calls", type=click.IntRange(2, 50), default=3, show_default=True, help="New connections to make.")
@click.option("--watch", is_flag=True, help="A line for each change of the connection, until Ctrl-C.")
@json_option
def command(host: str, calls: int, watch: bool, as_json: bool) -> int:
    """Show whether the connection to HOST is shared and what that saves, measured now."""
    from holdfast.link import client, hosts, reuse, target

    to = target.resolve(host, config=target.users_config())
    if watch:
        with going_on(f"the connection to {host} goes on"):
            for fact in _changes(host, to.key):
                click.echo(json.dumps(fact) if as_json else _line(fact))
        return 0
    with client.Links() as links:
        up = links.up(host)
        ways = asyncio.run(reuse.compare(up, to, calls))
        link = next(each for each in links.every() if each["key"] == up.key)
    is_shared = hosts.for_call(host).multiplex
    if as_json:
        print_json({**_fact(host, link), "shared": is_shared, "ways": [_told(way) for way in ways]})
    else:
        _show(host, link, ways, is_shared)
    return 0


def _show(host: str, link: dict[str, Any], ways: Sequence[Way], is_shared: bool) -> None:
    from holdfast.link.probing import ms
    from holdfast.units import show_duration

    rows = [("", "MEDIAN", "CALLS", "CPU OF SSHD")]
    rows += [(way.name, ms(way.median_s), str(len(way.times_s)), _cpu(way)) for way in ways]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    print_table(
        ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    )
    cold, ours = ways[0], ways[2]
    saved = f"{ms(cold.median_s - ours.median_s)} a call"
    if cold.cpu_s is not None and ours.cpu_s is not None:
        saved += f", and {ms(max(0.0, cold.cpu_s - ours.cpu_s))} of CPU there"
    age = show_duration(max(0.0, time.time() - link["opened_s"]))
    trip = ms(link["trip_s"])
    click.echo(f"{host} is {link['state']}: a connection {age} old, round trip {trip}, keepalive {link['keepalive']}")
    faster = f"{cold.median_s / ours.median_s:.0f} times faster"
    if is_shared:
        click.echo(f"reuse saves {saved}: {faster}")
    else:
        click.echo(f"no other call uses it (--multiplex off); reuse would save {saved}: {faster}")


def _cpu(way: Way) -> str:
    from holdfast.link.probing import ms

    if way.cpu_s is None:
        return "-"
    return ms(way.cpu_s) if way.cpu_s else "less than can be counted"


def _told(way: Way) -> dict[str, Any]:
    return {"way": way.name, "median_s": way.median_s, "times_s": list(way.times_s), "sshd_cpu_s": way.cpu_s}


def _changes(host: str, key: str) -> Iterator[dict[str, Any]]:
    """The state of the link now, then each other one. key: of the place that `host` means, whatever else it is called.

    Asked for once: a link that somebody uses comes back by itself, and one that needs a person is not asked again.
    """
    from holdfast.link.client import AgentGone, Links

    last: dict[str, Any] | None = None
    while True:
        with suppress(AgentGone), Links() as links:  # one that was killed is replaced
            for link in _looks(links, host, key):
                if last is None or _is_other(last, link):
                    last = link
                    yield _fact(host, link)


def _looks(links: Links, host: str, key: str) -> Iterator[dict[str, Any]]:
    """The link, again and again. Raises AgentGone."""
    from holdfast.errors import HostUnreachable

    with suppress(HostUnreachable):  # the link says why
        key = links.up(host, within_s=5.0).key
    while True:
        yield from (each for each in links.every() if each["key"] == key)
        time.sleep(_LOOK_S)


def _is_other(before: dict[str, Any], now: dict[str, Any]) -> bool:
    same = all(before[name] == now[name] for name in ("state", "keepalive", "path", "why"))
    moved = abs(before["since_s"] - now["since_s"]) > 1.0
    low, high = sorted((before["trip_s"] or 1e-3, now["trip_s"] or 1e-3))
    return not same or moved or (high > low * _NOTICED and high - low > 0.01)


def _fact(host: str, link: dict[str, Any]) -> dict[str, Any]:
    names = ("state", "since_s", "trip_s", "loss_ratio", "keepalive", "users", "why")
    return {"host": host, **{name: link[name] for name in names}}


def _line(fact: dict[str, Any]) -> str:
    from holdfast.link.probing import ms

    clock = time.strftime("%H:%M:%S", time.localtime(fact.get("since_s")))
    trip = f", {ms(fact['trip_s'])}" if fact.get("trip_s") else ""
    lost = f", {fact['loss_ratio']:.0%} lost" if fact.get("loss_ratio") else ""
    why = f": {fact['why']}" if fact.get("why") else ""
    return f"{clock}  {fact['host']}  {fact['state']}{trip}{lost}{why}"
