"""The ways over SSH, measured once and small on a real sshd, and what is made of the numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import link, linkplot, network
from bench.link import COLD, OURS, SHARED, Amount

TINY = Amount(
    rounds=1, trips_s=(0.0, 0.01), calls=4, commands=1, upload_bytes=2_000_000, stream_bytes=1_000_000, files=3
)


@pytest.mark.e2e
def test_every_way_does_every_task_and_the_distance_costs_what_it_should(tmp_path: Path, fetched: Path) -> None:
    facts = link.measure(TINY, say=lambda line: None, bundles=fetched)
    at = {(row["trip_s"], row["way"], row["task"]): row for row in facts["rows"]}

    for trip_s in TINY.trips_s:
        done = {task for _, way, task in at if (trip_s, way, task) in at and way == OURS}
        assert {"ping", "call", "command", "stream", "upload", "first call"} <= done
        assert len(at[trip_s, OURS, "call"]["times_s"]) == TINY.rounds * TINY.calls
        assert at[trip_s, SHARED, "upload"]["bytes_per_s"] > 0
        assert at[trip_s, "holdfast sync", "unchanged"]["median_s"] > trip_s
        assert at[trip_s, "tar over ssh", "sync"]["median_s"] > trip_s
    assert at[0.0, OURS, link.RESTED["call"]]["low_s"] < link.REST_S
    assert at[0.01, OURS, "call"]["low_s"] > 0.01 > at[0.0, OURS, "call"]["low_s"]
    assert len(facts["targets"]) == 10
    json.dumps(facts)
    linkplot.plot(tmp_path / "link.png", facts)
    assert (tmp_path / "link.png").read_bytes().startswith(b"\x89PNG")
    for trip in facts["trips"]:
        assert link.table(facts["rows"], trip).row_count == len([key for key in at if key[0] == trip["wanted_s"]])


def rows(**median_s: float) -> list[dict[str, Any]]:
    names = {"call": (OURS, "call"), "command": (OURS, "command"), "cold": (COLD, "command")}
    names |= {"ping": (OURS, "ping"), "rested": (OURS, link.RESTED["call"]), "rested_ping": (OURS, link.RESTED["ping"])}
    names |= {"first": (OURS, "first call"), "ours": (OURS, "upload"), "theirs": (SHARED, "upload")}
    return [
        {"trip_s": 0.0, "way": names[name][0], "task": names[name][1], "median_s": seconds}
        for name, seconds in median_s.items()
    ]


def test_targets_say_met_or_not() -> None:
    trip = {"wanted_s": 0.0, "measured_s": 0.0001}
    rested = {"rested": 0.002, "rested_ping": 0.0015}
    good = link.targets(
        rows(call=0.001, ping=0.0005, first=2.0, command=0.002, cold=0.2, ours=1.0, theirs=1.0, **rested), trip
    )
    poor = link.targets(
        rows(call=0.0012, ping=0.0001, first=2.1, command=0.002, cold=0.1, ours=1.0, theirs=0.94, **rested), trip
    )

    assert [sentence.partition(":")[0] for sentence in good] == ["met"] * 5 + ["beside"] * 2
    assert [sentence.partition(":")[0] for sentence in poor] == ["NOT met"] * 5 + ["beside"] * 2
    assert "0.50 ms more than a ping, target 1.00" in good[1]
    assert "0.832 s to 0.045 s (18 x)" in good[-2]
    assert "a call takes 2.00 ms, a ping 1.50" in good[-1]


def test_a_distance_is_what_it_is_said_to_be() -> None:
    with network.echo() as port, network.delayed(int(port), 0.02) as far:
        assert 0.02 <= network.trip_s(far, rounds=5) < 0.03
