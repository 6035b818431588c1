"""`holdfast ckpt show`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from holdfast.commands.arguments import json_option, print_json, print_table
from holdfast.commands.ckpt.selection import facts, name_of, target_argument
from holdfast.commands.wording import clock, columns, number, plural, printable
from holdfast.units import show_size

if TYPE_CHECKING:
    from holdfast.checkpoint.contents import TensorInfo
    from holdfast.checkpoint.target import Target

_HEADINGS = ("TENSOR", "TYPE", "SHAPE", "KIND", "SIZE")


@click.command("show")
@target_argument()
@click.option("--tensors", "-t", "listed", is_flag=True, help="Every tensor with type, shape, kind and size.")
@json_option
def command(target: Target, listed: bool, as_json: bool) -> None:
    """What one checkpoint holds: by default the newest. Reads no tensor."""
    from holdfast.checkpoint import pins
    from holdfast.checkpoint.reading import open_checkpoint
    from holdfast.checkpoint.target import find

    info = find(target)
    pin = pins.read(target.root, info.position)
    with open_checkpoint(target.root, info) as checkpoint:
        tensors = checkpoint.tensors
        manifest = {"packs": [{"name": p.name, "bytes": p.size_bytes} for p in checkpoint.manifest.packs]}
        manifest["ranks"] = list(checkpoint.manifest.ranks)
    if as_json:
        extra = {"tensors": [tensor_facts(one) for one in tensors.values()]} if listed else {"manifest": manifest}
        print_json({**facts(info), "pin": pin and asdict(pin), **extra})
        return
    lines = [("checkpoint", name_of(info)), ("step", f"{info.step}, epoch {info.epoch}"), ("time", clock(info.time_s))]
    lines += [("name", printable(info.name))] if info.name else []
    lines += [
        ("reason", printable(info.reason)),
        ("size", f"{show_size(info.size_bytes)}, {plural(info.world, 'rank')}"),
    ]
    lines += [("pinned", printable(pin.reason) or "yes")] if pin else []
    lines += [("added", f"{show_size(info.added_bytes)} that no older checkpoint needs")]
    lines += [(printable(name), number(value)) for name, value in info.metrics.items()]
    lines += contents(tensors)
    click.echo("\n".join(columns(lines)))
    if listed:
        print_table(["", *table(tensors.values())])


def contents(tensors: Mapping[str, TensorInfo]) -> Iterator[tuple[str, str]]:
    """How many tensors and bytes of each kind there are, replicas of several ranks once. Pure."""
    sizes: dict[str, list[int]] = {}
    for tensor in tensors.values():
        sizes.setdefault(tensor.kind, []).append(tensor.size_bytes)
    for kind, found in sizes.items():
        yield kind, f"{plural(len(found), 'tensor')}, {show_size(sum(found))}"


def table(tensors: Iterable[TensorInfo]) -> list[str]:
    """Headings and a line a tensor. Pure."""
    rows = [
        (printable(one.name), one.dtype, "x".join(map(str, one.shape)) or "scalar", one.kind, show_size(one.size_bytes))
        for one in tensors
    ]
    return columns([_HEADINGS, *rows])


def tensor_facts(one: TensorInfo) -> dict[str, Any]:
    """One entry of `--tensors --json`. Pure."""
    return {
        "name": one.name,
        "dtype": one.dtype,
        "shape": list(one.shape),
        "kind": one.kind,
        "size_bytes": one.size_bytes,
    }
