"""A run of a pool is found where it is. What hosts say is given here; nobody is connected."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from holdfast.commands import remembered
from holdfast.commands.whereabouts import newest


def test_a_place_knows_the_rest_of_its_pool(own_home: Path) -> None:
    remembered.remember("gpu-a", "digits", own_home, {}, (), ["gpu-a", "gpu-b"])

    (place,) = remembered.places("digits")

    assert (place.host, place.others) == ("gpu-a", ("gpu-b",))


@pytest.mark.parametrize("pool", [(), ("gpu-a",)])
def test_one_host_is_no_pool(own_home: Path, pool: tuple[str, ...]) -> None:
    remembered.remember("gpu-a", "digits", own_home, {}, (), pool)

    assert remembered.places("digits")[0].others == ()


def test_a_run_that_was_found_elsewhere_is_remembered_there(own_home: Path) -> None:
    remembered.remember("gpu-a", "digits", own_home, {}, (), ["gpu-a", "gpu-b"])
    before = remembered.places("digits")[0]

    remembered.move("digits", before, "gpu-b")

    assert remembered.places("digits") == [replace(before, host="gpu-b")]


def test_an_index_without_pools_is_read(own_home: Path) -> None:
    remembered.remember("gpu-a", "digits", own_home, {}, ())
    file = own_home / "home" / "remote" / "digits.json"
    file.write_text(file.read_text().replace(',\n   "pool": []', ""))

    assert '"pool"' not in file.read_text()
    assert remembered.places("digits")[0].pool == ()


def said(state: str, updated_s: float = 1.0, *, superseded: bool = False) -> dict[str, Any]:
    return {"state": state, "updated_s": updated_s, "mirror": {"superseded": superseded}}


@pytest.mark.parametrize(
    ("last", "others", "there"),
    [
        (None, {"b": said("running")}, "b"),
        (said("lost"), {"b": said("running")}, "b"),
        (said("stopped", superseded=True), {"b": said("succeeded")}, "b"),
        (said("lost"), {"b": said("lost"), "c": said("queued")}, "c"),
        (None, {"b": said("stopped", 5.0), "c": said("running", 9.0)}, "c"),
        (None, {"b": said("stopped", 3609.0), "c": said("running", 9.0)}, "c"),  # the clock of b is an hour ahead
        (said("lost"), {}, "a"),  # nobody has gone on yet
        (said("lost"), {"b": said("stopped", superseded=True)}, "a"),
        (None, {"b": said("lost", 5.0), "c": said("lost", 9.0)}, "c"),
        (None, {}, None),
    ],
)
def test_a_run_is_where_somebody_carries_it(last: Any, others: dict[str, Any], there: str | None) -> None:
    assert newest("a", last, others) == there
