"""Several trees into one: later files over earlier ones, options over files; and one tree into plain values.

Pure. Every node keeps the place it came from, so that a mistake points there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from holdfast.spec.document import Entry, Items, Node, Scalar, Table
from holdfast.spec.mistakes import Source, Span, whole

# values that are text whatever they look like: `3.10` of an environment variable is not 3.1
_AS_WRITTEN = ("envs", "file_mounts", "run")


def merge(under: Table, over: Table) -> Table:
    """Both tables, key by key; where both have one, tables merge and everything else is replaced."""
    entries = dict(under.entries)
    for key, entry in over.entries.items():
        below, value = entries.get(key), entry.value
        if below is not None and isinstance(below.value, Table) and isinstance(value, Table):
            value = merge(below.value, value)
        entries[key] = Entry(entry.key_at, value)
    return Table(over.at if over.entries else under.at, entries)


def nest(source: Source, steps: Sequence[str], value: Node) -> Table:
    """`a.b` and a value → a tree that holds it there; the keys stand at the start of the source's text."""
    node, end = value, len(".".join(steps))
    for step in reversed(steps):
        at = Span(source, 0, end - len(step), 0, end)
        node, end = Table(at, {step: Entry(at, node)}), end - len(step) - 1
    assert isinstance(node, Table)
    return node


def scalar(source: Source, text: str) -> Scalar:
    """A text that did not come from YAML."""
    return Scalar(whole(source), text, plain=False)


def lookup(node: Node | None, path: Sequence[str | int]) -> tuple[Node | None, Span | None]:
    """The deepest node on a path that exists, and the place of its key; what is missing is left out."""
    key_at: Span | None = None
    for step in path:
        if isinstance(node, Table) and step in node.entries:
            entry = node.entries[str(step)]
            node, key_at = entry.value, entry.key_at
        elif isinstance(node, Items) and isinstance(step, int) and step < len(node.items):
            node, key_at = node.items[step], None
        else:
            break
    return node, key_at


def values(node: Node, path: tuple[str, ...] = ()) -> Any:
    """Dicts, lists and scalars, as pydantic takes them."""
    if isinstance(node, Table):
        return {key: values(entry.value, (*path, key)) for key, entry in node.entries.items()}
    if isinstance(node, Items):
        return [values(item, (*path, "")) for item in node.items]
    if len(path) == 2 and path[0] in _AS_WRITTEN and node.value is not None:
        return node.text
    return node.value
