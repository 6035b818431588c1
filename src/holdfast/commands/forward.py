"""`holdfast forward`: ports of this machine that lead to a host, and stay where they are while it is away."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from holdfast.commands.arguments import going_on, json_option, keepalive_option, print_json, print_table, say
from holdfast.errors import UsageError

if TYPE_CHECKING:
    from holdfast.link.client import Links, Up
    from holdfast.link.mux import End

_WATCH_S = 2.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """One `PORT[:[HOST:]PORT]`: `listen` is a port here, 0 for any."""

    listen: int
    end: End


@click.command("forward")
@click.argument("host", required=False)
@click.argument("specs", metavar="PORT[:[HOST:]PORT]...", nargs=-1)
@click.option("-d", "--detach", "keep", is_flag=True, help="Leave it to the agent, until --stop.")
@click.option("--ls", "listing", is_flag=True, help="What is forwarded now, and how the links are.")
@click.option("--stop", is_flag=True, help="End what was left to the agent: of HOST and its PORTs here, or all.")
@keepalive_option
@json_option
def command(host: str | None, specs: tuple[str, ...], keep: bool, listing: bool, stop: bool, as_json: bool) -> None:
    """Let PORT of this machine lead to HOST, until Ctrl-C; after a cut it is the same port again.

    8888 is port 8888 on both ends; 8080:80 and 8080:db:80 lead elsewhere; 0:80 takes any port here; 0:/path is a unix
    socket there.
    """
    if listing:
        return _list(as_json)
    if stop:
        return _stop(host, [_number(spec) for spec in specs])
    if host is None or not specs:
        raise UsageError("say which host, and which ports", hint="holdfast forward gpu-a 8888")
    wanted = [parse(spec) for spec in specs]
    if keep:
        from holdfast.link import target
        from holdfast.link.client import Links

        with Links() as links:
            _show(host, _begin(links, links.up(host, config=target.users_config()), wanted, keep=True), as_json)
        return None
    with going_on("the ports are closed"):
        stay(host, wanted, ready=lambda had: _show(host, had, as_json))
    return None


def parse(spec: str) -> Wanted:
    """What `PORT`, `PORT:PORT`, `PORT:HOST:PORT` and `PORT:/PATH` mean. Raises UsageError."""
    from holdfast.link.mux import End

    here, colon, there = spec.partition(":")
    if there.startswith("/"):
        return Wanted(_number(here), End(path=there))
    host, _, port = there.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") or "localhost"
    end = End(host, _number(port if colon else here))
    if not end.port:
        raise UsageError(f"{spec!r} names no port there", hint="0:80 leads from any port here to port 80 there")
    return Wanted(_number(here), end)


def _number(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise UsageError(f"{text!r} is not a port", hint="8888, 8080:80, 8080:db:80 or 0:/path/of/socket")
    return int(text)


def stay(host: str, wanted: Sequence[Wanted], *, ready: Callable[[Sequence[Wanted]], None]) -> None:
    """Forward, and say what happens to the link, until interrupted; an agent that was killed is replaced.

    ready: is told the ports that were had. Raises HostUnreachable when the host cannot be reached at first, or when a
    person has to let ssh in and does not.
    """
    from holdfast.link import target
    from holdfast.link.client import AgentGone, Links

    told = False
    while True:
        with Links() as links:
            up = links.up(host, config=target.users_config())
            wanted = _begin(links, up, wanted)
            if not told:
                ready(wanted)
            told = True
            with suppress(AgentGone):
                _watch(links, up, [each.listen for each in wanted])
        say(f"{host}: the link agent has ended; it is started again")


def _begin(links: Links, up: Up, wanted: Sequence[Wanted], *, keep: bool = False) -> list[Wanted]:
    """What is wanted, with the ports that were had. Raises UsageError when one is taken."""
    return [Wanted(links.forward(up.key, each.listen, each.end, keep=keep), each.end) for each in wanted]


def _show(host: str, had: Sequence[Wanted], as_json: bool) -> None:
    if as_json:
        print_json([{"alias": host, "listen": each.listen, "connect": str(each.end)} for each in had])
        return
    for each in had:
        click.echo(f"127.0.0.1:{each.listen} leads to {each.end} of {host}")


def _watch(links: Links, up: Up, ports: Sequence[int]) -> None:
    """Say each change of the link, and why connections break.

    Raises AgentGone, NeedsAuthentication, HostUnreachable.
    """
    from holdfast.link import target
    from holdfast.link.states import State

    state, lost_s = State.UP.value, time.monotonic()
    broken: dict[int, str] = {}
    while True:
        told = links.changed(up.key, state, within_s=_WATCH_S)
        if told["state"] == state:
            broken = _broken(links, ports, broken)
            continue
        if state == State.UP.value:
            lost_s = time.monotonic()
        state = told["state"]
        sentence = _sentence(told, time.monotonic() - lost_s)
        if sentence:
            say(f"{up.alias}: {sentence}")
        if state == State.NEEDS_AUTHENTICATION.value:
            links.up(up.alias, config=target.users_config())


def _broken(links: Links, ports: Sequence[int], said: dict[int, str]) -> dict[int, str]:
    """Why the last connections through our ports could not be made; says what was not said yet."""
    now = {one["listen"]: one["why"] for one in links.forwards() if one["listen"] in ports}
    for port, why in now.items():
        if why and why != said.get(port):
            say(f"127.0.0.1:{port}: {why}")
    return now


def _sentence(told: dict[str, Any], away_s: float) -> str:
    """What is worth a line: neither each attempt nor each pause between them."""
    state, why = told["state"], f": {told['why']}" if told["why"] else ""
    if state == "up":
        return f"up again after {away_s:.1f} s"
    if state == "suspect":
        return "nothing was heard for a moment"
    if state == "needs-authentication":
        return f"it needs you to log in{why}"
    return f"away{why}" if state == "down" else ""


def _list(as_json: bool) -> None:
    from holdfast.link.client import Links

    with Links() as links:
        forwards, every = links.forwards(), links.every()
    if as_json:
        return print_json({"forwards": forwards, "links": every})
    lines = [f"{'HERE':<17}{'THERE':<32}{'LINK':<22}{'OPEN':>4}  KEPT"]
    for one in forwards:
        there = f"{one['alias']} {one['connect']}"
        kept = "until --stop" if one["kept"] else "no"
        lines.append(f"127.0.0.1:{one['listen']:<7}{there:<32}{one['state']:<22}{one['connections']:>4}  {kept}")
        lines += [f"  {one['why']}"] if one["why"] else []
    idle = [link for link in every if link["key"] not in {one["key"] for one in forwards}]
    lines += [f"{'-':<17}{link['alias']:<32}{link['state']:<22}" for link in idle]
    return print_table(lines) if len(lines) > 1 else say("nothing is forwarded, and no link is held")


def _stop(host: str | None, ports: list[int]) -> None:
    from holdfast.link.client import Links

    with Links() as links:
        kept = [one for one in links.forwards() if one["kept"] and host in (None, one["alias"])]
        chosen = [one for one in kept if not ports or one["listen"] in ports]
        if len(chosen) < max(1, len(ports)):
            raise UsageError(
                f"nothing like that is forwarded {f'to {host}' if host else 'anywhere'}", hint="holdfast forward --ls"
            )
        for one in chosen:
            links.unforward(one["listen"])
            say(f"127.0.0.1:{one['listen']} leads nowhere any more")
