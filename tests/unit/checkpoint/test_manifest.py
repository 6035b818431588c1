"""Manifests and slot tables are hostile input: they are right, or refused in a sentence."""

from __future__ import annotations

import copy
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.checkpoint import canonical, manifest
from holdfast.checkpoint.canonical import Damaged, NewerFormat
from holdfast.checkpoint.lineage import Position
from holdfast.checkpoint.manifest import Manifest, PackEntry
from holdfast.checkpoint.table import check_slot_table
from holdfast.errors import HoldfastError
from tests.slotparts import table_of
from tests.unit.checkpoint.test_pack import json_values


def made() -> dict[str, Any]:
    """A right manifest, as JSON."""
    table, _ = table_of(term=3, sequence=17)
    chunks = [{**chunk, "id": "ab" * 32, "pack": 0, "offset": 8192 * n} for n, chunk in enumerate(table["chunks"])]
    head = {name: value for name, value in table.items() if name != "chunks"}
    found = Manifest(
        position=Position(3, 17),
        parent=Position(3, 16),
        base=None,
        packs=(PackEntry("cd" * 32, 1 << 20),),
        ranks=({"table": head, "chunks": chunks},),
    )
    parsed: dict[str, Any] = canonical.decode(found.raw, "x")
    return parsed


def parsed(value: dict[str, Any]) -> Manifest:
    raw = canonical.encode(value)
    return manifest.parse(f"000003-00000017-{canonical.digest(raw)}.json", raw)


def test_a_manifest_reads_as_written() -> None:
    found = parsed(made())

    assert (found.position, found.parent, found.base) == (Position(3, 17), Position(3, 16), None)
    assert canonical.decode(found.raw, "x") == made()
    assert parsed(made()).file_name == found.file_name


def test_a_newer_version_is_refused_not_skipped() -> None:
    with pytest.raises(NewerFormat, match="version 2"):
        parsed({**made(), "version": 2})


PLACES: list[tuple[Any, ...]] = [
    ("packs",), ("packs", 0), ("packs", 0, "name"), ("packs", 0, "bytes"), ("parent",), ("parent", "term"),
    ("base",), ("ranks",), ("ranks", 0), ("ranks", 0, "table"), ("ranks", 0, "chunks"), ("ranks", 0, "chunks", 0),
    ("ranks", 0, "chunks", 0, "offset"), ("ranks", 0, "chunks", 0, "bytes"), ("ranks", 0, "chunks", 0, "pack"),
    ("ranks", 0, "chunks", 0, "id"), ("ranks", 0, "chunks", 0, "kind"), ("ranks", 0, "chunks", 0, "tensors", 0),
    ("ranks", 0, "chunks", 0, "tensors", 0, "shape"), ("ranks", 0, "table", "rank"), ("ranks", 0, "table", "world"),
    ("ranks", 0, "table", "time_s"), ("ranks", 0, "table", "state"), ("term",), ("format",), ("version",),
]  # fmt: skip


@settings(max_examples=500)
@given(st.sampled_from(PLACES), json_values)
def test_any_value_in_any_place_is_accepted_or_refused_in_a_sentence(place: tuple[Any, ...], value: Any) -> None:
    changed: Any = made()
    inner = changed
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    with suppress(HoldfastError, ValueError):  # ValueError: infinity cannot be spelled, so nobody wrote it
        found = parsed(changed)
        assert canonical.decode(found.raw, "x") == changed


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("packs", 0, "name"), "../../../etc/passwd"),
        (("packs", 0, "bytes"), 1 << 40),
        (("ranks", 0, "chunks", 0, "offset"), 1 << 20),
        (("ranks", 0, "chunks", 0, "offset"), 100),
        (("ranks", 0, "chunks", 0, "bytes"), -1),
        (("ranks", 0, "chunks", 0, "bytes"), True),
        (("ranks", 0, "chunks", 0, "pack"), 1),
        (("ranks", 0, "chunks", 0, "tensors", 0, "offset"), 64),
        (("ranks", 0, "table", "world"), 2),
        (("term",), 4),
        (("extra",), 1),
    ],
)
def test_impossible_values_are_refused(place: tuple[Any, ...], value: Any) -> None:
    changed: Any = copy.deepcopy(made())
    inner = changed
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value

    with pytest.raises(Damaged):
        parsed(changed)


@settings(max_examples=300)
@given(st.sampled_from(["offset", "bytes", "kind", "tensors"]), json_values)
def test_slot_tables_are_checked_against_the_slot(field: str, value: Any) -> None:
    table, size = table_of()
    table["chunks"][0][field] = value
    with suppress(Damaged):
        check_slot_table(table, size, "slot")
        chunk = table["chunks"][0]
        assert 4096 <= chunk["offset"] <= size - chunk["bytes"]
