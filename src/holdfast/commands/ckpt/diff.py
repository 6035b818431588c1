"""`holdfast ckpt diff`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

from holdfast.commands.arguments import json_option, print_json, print_table, say
from holdfast.commands.ckpt.progress import bar
from holdfast.commands.ckpt.selection import METAVAR, name_of, target_argument
from holdfast.commands.wording import columns

if TYPE_CHECKING:
    from holdfast.checkpoint.difference import TensorDifference
    from holdfast.checkpoint.reading import Checkpoint
    from holdfast.checkpoint.target import Target

_SHOWN = 20
_HEADINGS = ("TENSOR", "WHAT", "REL L2", "MAX ABS", "CHANGED", "TYPE")


@click.command("diff")
@target_argument("first", metavar=METAVAR)
@target_argument("second", metavar=METAVAR)
@click.option("--all", "-a", "everything", is_flag=True, help=f"Every tensor, not the {_SHOWN} that differ most.")
@json_option
def command(first: Target, second: Target, everything: bool, as_json: bool) -> None:
    """How far two checkpoints are apart, tensor by tensor. Memory stays small, whatever their size."""
    from holdfast.checkpoint.reading import open_checkpoint
    from holdfast.checkpoint.target import find
    from holdfast.formats.base import needs_torch

    infos = find(first), find(second)
    with (
        needs_torch("a comparison"),
        open_checkpoint(first.root, infos[0]) as one,
        open_checkpoint(second.root, infos[1]) as other,
    ):
        found = _compared(one, other)
    found.sort(key=_order)
    if as_json:
        names = [f"{target.name}@{name_of(info)}" for target, info in zip((first, second), infos, strict=True)]
        print_json(
            {"first": names[0], "second": names[1], "tensors": [facts(d) for d in found], "parts": summary(found)}
        )
        return
    parts = summary(found)
    differing = [one for one in found if one.what != "same"]
    if differing:
        print_table(table(differing if everything else differing[:_SHOWN]))
        click.echo()
    click.echo("\n".join(f"{name}: {', '.join(f'{n} {what}' for what, n in p.items())}" for name, p in parts.items()))
    if len(differing) > _SHOWN and not everything:
        say(f"{len(differing) - _SHOWN} more differ less", hint="--all shows them")


def _compared(one: Checkpoint, other: Checkpoint) -> list[TensorDifference]:
    from holdfast.checkpoint import difference

    found = []
    with bar("comparing", difference.bytes_to_read(one, other)) as advance:
        for tensor in difference.compare(one, other):
            found.append(tensor)
            if tensor.name in one.tensors and tensor.what in ("changed", "retyped"):
                advance(one.tensors[tensor.name].size_bytes)
    return found


def _order(one: TensorDifference) -> tuple[int, float, str]:
    """What has no counterpart or another shape first, then the largest differences. Pure."""
    if one.relative_l2 is None:
        return (0, 0.0, one.name)
    return (1, -math.inf if math.isnan(one.relative_l2) else -one.relative_l2, one.name)


def summary(found: Iterable[TensorDifference]) -> dict[str, dict[str, int]]:
    """Top-level name → how many of its tensors are the same, changed and so on. Pure."""
    parts: dict[str, dict[str, int]] = {}
    for one in found:
        part = parts.setdefault(one.name.split("/", 1)[0], {})
        part[one.what] = part.get(one.what, 0) + 1
    return dict(sorted(parts.items()))


def facts(one: TensorDifference) -> dict[str, Any]:
    """One entry of `--json`; numbers that JSON has not are text. Pure."""
    looks = {
        side: None if look is None else {"dtype": look[0], "shape": list(look[1])}
        for side, look in (("first", one.first), ("second", one.second))
    }
    numbers = {"relative_l2": _plain(one.relative_l2), "max_abs": _plain(one.max_abs)}
    return {"name": one.name, "what": one.what, **looks, "elements": one.elements, "changed": one.changed, **numbers}


def _plain(value: float | None) -> float | str | None:
    if value is None or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity"


def table(found: Sequence[TensorDifference]) -> list[str]:
    """Headings and a line a tensor. Pure."""
    return columns([_HEADINGS, *(_row(one) for one in found)])


def _row(one: TensorDifference) -> tuple[str, ...]:
    looks = [
        f"{look[0]} {'x'.join(map(str, look[1])) or 'scalar'}" for look in (one.first, one.second) if look is not None
    ]
    look = looks[0] if len(set(looks)) == 1 else " → ".join(looks)
    if one.relative_l2 is None or one.max_abs is None:
        return (one.name, one.what, "-", "-", "-", look)
    return (
        one.name,
        one.what,
        f"{one.relative_l2:.3g}",
        f"{one.max_abs:.3g}",
        f"{one.changed} of {one.elements}",
        look,
    )
