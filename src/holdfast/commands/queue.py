"""`holdfast queue`: the devices of this machine, who has them, and who waits for them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from holdfast import runs
from holdfast.commands.arguments import json_option, print_json, print_table, say
from holdfast.commands.liveness import ENDED, live, status_of
from holdfast.commands.wording import clock, columns, printable
from holdfast.errors import HoldfastError
from holdfast.units import show_size

if TYPE_CHECKING:
    from holdfast.node.standby import Standby

_DEVICES = ("GPU", "NAME", "MEMORY", "HAS IT")
_WAITING = ("WAITS", "FOR", "SINCE")
_STANDBYS = ("STANDS BY FOR", "STATE", "LAST SIGN OF LIFE", "SINCE")


@click.command("queue")
@json_option
def command(as_json: bool) -> None:
    """The devices of this machine, who has them, who waits for what, and for which runs of others it stands by."""
    found = standing()
    if as_json:
        print_json(found)
        return
    _show({"": found})


def together(found: Mapping[str, Any], as_json: bool) -> None:
    """The devices of several machines, by the name of each, in one table."""
    if as_json:
        print_json([{"host": host, **each} for host, each in found.items()])
    else:
        _show(found)


def standing() -> dict[str, Any]:
    """The `queue --json` object. Raises NoAnswer, HoldfastError."""
    from holdfast.node import gpus, nvidia, standby
    from holdfast.units import write_accelerators

    try:
        book = gpus.look()
    except OSError as error:
        raise HoldfastError(f"nobody can tell who has which device: {error}") from error
    try:
        devices = nvidia.devices()
        strangers = nvidia.strangers(nvidia.computing(), dict(book.claims))
    except nvidia.NoDevices as error:  # an answer too: the others of a pool have some
        say(str(error), hint=error.hint)
        devices, strangers = [], {}
    return {
        "devices": [
            {
                "index": device.index,
                "uuid": device.uuid,
                "name": device.name,
                "memory_bytes": device.memory_bytes,
                "used_bytes": device.used_bytes,
                "run": Path(book.claims.get(device.uuid, "")).name,
                "busy": device.unfit or strangers.get(device.uuid, ""),
            }
            for device in devices
        ],
        "waiting": [
            {"run": Path(one.dir).name, "wants": write_accelerators(one.wants), "since_s": one.since_s}
            for one in book.waiting
        ],
        "standbys": [state for place in standby.every() if (state := _state(place))],
        "runs": sum(_goes_on(run) for run in runs.every()),
        "load_ratio": os.getloadavg()[0] / (os.cpu_count() or 1),
    }


def _show(found: Mapping[str, Any]) -> None:
    if lines := table(found):
        print_table(lines)


def _state(place: Standby) -> dict[str, Any] | None:
    """None, and said, where one cannot be read: the others can, and so can the devices."""
    try:
        return place.state()
    except HoldfastError as error:
        say(str(error), hint=error.hint)
        return None


def _goes_on(run: runs.RunDir) -> bool:
    try:
        return live(run) and status_of(run)["state"] not in ENDED
    except HoldfastError:  # `ps` says what is wrong with it
        return False


def table(found: Mapping[str, Any]) -> list[str]:
    """The devices, below them the line, and the runs of others; each only where there is some. Pure but for the zone.

    found: host → the object; a single host that is called "" needs no column.
    """
    devices = [_with(host, found, _device(device)) for host, each in found.items() for device in each["devices"]]
    waiting = [_with(host, found, _waits(one)) for host, each in found.items() for one in each["waiting"]]
    standbys = [_with(host, found, _stands(one)) for host, each in found.items() for one in each["standbys"]]
    lines: list[str] = []
    for heading, rows in ((_DEVICES, devices), (_WAITING, waiting), (_STANDBYS, standbys)):
        if rows:
            lines += [*([""] if lines else []), *columns([_with("HOST", found, heading), *rows])]
    return lines


def _with(host: str, found: Mapping[str, Any], cells: Sequence[str]) -> tuple[str, ...]:
    return tuple(cells) if list(found) == [""] else (host, *cells)


def _device(device: Mapping[str, Any]) -> tuple[str, ...]:
    who = [text for text in (device["run"], device["busy"]) if text]
    return str(device["index"]), device["name"], _memory(device), printable("; ".join(who)) or "-"


def _memory(device: Mapping[str, Any]) -> str:
    if device["memory_bytes"] is None or device["used_bytes"] is None:
        return "-"
    return f"{show_size(device['used_bytes'])} of {show_size(device['memory_bytes'])}"


def _waits(one: Mapping[str, Any]) -> tuple[str, ...]:
    return one["run"], one["wants"], clock(one["since_s"])


def _stands(one: Mapping[str, Any]) -> tuple[str, ...]:
    alive = "-" if one["alive_s"] is None else clock(one["alive_s"])
    return (
        one["run"],
        printable("; ".join(text for text in (one["state"], one["why"]) if text)),
        alive,
        clock(one["since_s"]),
    )
