"""`holdfast ckpt show`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from holdfast.commands.arguments import json_option, print_json
from holdfast.commands.ckpt.selection import facts, name_of, target_argument
from holdfast.commands.wording import clock, columns, number, plural
from holdfast.units import show_size

if TYPE_CHECKING:
    from holdfast.checkpoint.target import Target


@click.command("show")
@target_argument()
@json_option
def command(target: Target, as_json: bool) -> None:
    """What one checkpoint holds: by default the newest."""
    from holdfast.checkpoint.target import find

    info = find(target)
    manifest = json.loads(info.path.read_bytes())
    if as_json:
        print_json({**facts(info), "manifest": manifest})
        return
    lines = [("checkpoint", name_of(info)), ("step", f"{info.step}, epoch {info.epoch}"), ("time", clock(info.time_s))]
    lines += [("reason", info.reason), ("size", f"{show_size(info.size_bytes)}, {plural(info.world, 'rank')}")]
    lines += [(name, number(value)) for name, value in info.metrics.items()]
    lines += contents(manifest)
    click.echo("\n".join(columns(lines)))


def contents(manifest: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """How many tensors and bytes of each kind a manifest names, over all ranks. Pure."""
    sizes: dict[str, int] = {}
    tensors: dict[str, set[str]] = {}
    for chunk in (chunk for rank in manifest["ranks"] for chunk in rank["chunks"]):
        kind = chunk["kind"]
        sizes[kind] = sizes.get(kind, 0) + chunk["bytes"]
        tensors.setdefault(kind, set()).update(tensor["name"] for tensor in chunk["tensors"])
    for kind, total in sizes.items():
        yield kind, f"{plural(len(tensors[kind]), 'tensor')}, {show_size(total)}"
