"""What a kept run of the safety harness replaces, which files it damages, and when it says that nothing was tried."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import engines, machine, safety
from bench.faults import Bench, DoesNotSave
from bench.faults.flip import pick
from bench.faults.prune import Prune

GIVEN = {"trials": 1, "first_seed": 0, "size_mb": 2.0}
BEFORE = [
    {"engine": "dcp", "fault": "flip", "seed": 0, "verdict": "recovered"},
    {"engine": "dcp", "fault": "prune", "seed": 0, "verdict": "torn"},
    {"engine": "torch_save", "fault": "flip", "seed": 0, "verdict": "told"},
    {"engine": "torch_save", "fault": "harness", "failed": "it died"},
]
ANEW = {"seed": 0, "verdict": "lost"}


def kept(asked_engines: str, asked_faults: str, anew: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """(engine, fault, verdict) of all lines after a run that was asked for these."""
    given = argparse.Namespace(**GIVEN, engines=asked_engines, faults=asked_faults)
    path = safety._keep(anew, given)
    lines = json.loads(path.read_text())["lines"]
    assert all(title in path.with_suffix(".md").read_text() for title in ("flipped bit", "loading while it prunes"))
    return [(line["engine"], line["fault"], line.get("verdict", "failed")) for line in lines]


@pytest.fixture(autouse=True)
def before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "RESULTS", tmp_path)
    facts = {"trials_each": 1, "first_seed": 0, "state_mb": 2.0, "lines": BEFORE}
    (tmp_path / "safety.json").write_text(json.dumps(facts))


def test_one_fault_of_one_engine_is_taken_anew_and_everything_else_stays() -> None:
    assert kept("dcp", "prune", [{"engine": "dcp", "fault": "prune", **ANEW}]) == [
        ("dcp", "flip", "recovered"),
        ("dcp", "prune", "lost"),
        ("torch_save", "flip", "told"),
        ("torch_save", "harness", "failed"),
    ]


def test_a_failure_of_a_whole_engine_goes_when_the_engine_is_taken_anew() -> None:
    assert kept("torch_save", "flip", [{"engine": "torch_save", "fault": "flip", **ANEW}]) == [
        ("dcp", "flip", "recovered"),
        ("dcp", "prune", "torn"),
        ("torch_save", "flip", "lost"),
    ]


def test_the_files_of_the_newest_save_are_damaged_first(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    for number, name in enumerate(["b-old", "a-new", "c-empty"]):
        path = folder / name / "file"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"" if name == "c-empty" else b"x")
        os.utime(path, ns=(number, number))

    assert [pick(folder, seed).parent.name for seed in range(3)] == ["a-new", "b-old", "a-new"]


def test_pruning_is_not_judged_where_nothing_saves_any_more(tmp_path: Path) -> None:
    trials = Prune().trials(engines.named("reference"), Bench(tmp_path, 100_000), range(2))

    assert next(trials).verdict.value == "recovered"
    for process in multiprocessing.active_children():
        process.kill()
        process.join()

    with pytest.raises(DoesNotSave):
        next(trials)


def test_what_is_kept_does_not_say_where_things_lie_on_this_machine(tmp_path: Path) -> None:
    here = Path(safety.__file__)
    said = f"no {tmp_path}/dcp-1/state/step-3: {sys.prefix}/lib/torch/serialization.py, {here}"

    assert json.loads(safety.told({"detail": said}, tmp_path)) == {
        "detail": "no dcp-1/state/step-3: lib/torch/serialization.py, bench/safety.py"
    }
