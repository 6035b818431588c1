"""Where two names are one: the second is told, and a name that only changed its case is not removed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.sync.manifest import folded
from holdfast.sync.tree import Tree
from tests.labs.folding import folding
from tests.unit.sync.ends import held, synced, tree


@pytest.fixture
def mac(tmp_path: Path) -> Iterator[Path]:
    with folding(tmp_path) as mountpoint:
        yield mountpoint


def test_two_names_that_are_one_there_are_told(tmp_path: Path, mac: Path) -> None:
    source = tree(tmp_path / "s", A="first", a="second", d__x="x", D__y="y")
    (source / "e\u0301").write_text("third")
    (source / "\xe9").write_text("fourth")

    done = synced(source, mac / "t").whole()

    assert {line.path: line.why for line in done.sent.lines if line.what == "kept" and line.why} == {
        "a": "here it would be one with A",
        "d": "here it would be one with D",
        "\xe9": "here it would be one with e\u0301",
    }
    assert {name: what[0] for name, what in held(mac / "t").items() if what != "folder"} == {
        "A": b"first",
        "e\u0301": b"third",
        "D/y": b"y",
    }


def test_a_name_that_changes_its_case_keeps_its_file(tmp_path: Path, mac: Path) -> None:
    source = tree(tmp_path / "s", Model="m")
    synced(source, mac / "t").whole()
    (source / "Model").rename(source / "model")

    done = synced(source, mac / "t", delete=True).whole()

    assert done.sent.paths("deleted") == []
    assert [what[0] for what in held(mac / "t").values()] == [b"m"]


def test_where_names_are_as_they_are_all_of_them_arrive(tmp_path: Path) -> None:
    source = tree(tmp_path / "s", A="first", a="second")

    synced(source, tmp_path / "t").whole()

    assert held(tmp_path / "t") == held(source)
    with Tree(tmp_path / "t") as there:
        assert not there.folds("staging")
    assert held(tmp_path / "t") == held(source)


@pytest.mark.parametrize(
    ("one", "other"), [("A", "a"), ("\xe9", "e\u0301"), ("\xc9", "e\u0301"), ("Stra\xdfe", "STRASSE")]
)
def test_names_that_some_file_system_takes_for_one(one: str, other: str) -> None:
    assert folded(one) == folded(other)
