"""When a mishap of the archiver is over."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from holdfast.node.eventlog import EventLog
from holdfast.node.mishaps import CALM_S, Mishaps


class Archiver:
    """The mishaps of one archiver, and a clock that only the test moves."""

    def __init__(self, log: Path) -> None:
        self.now_s = 0.0
        self._path, self._mishaps = log, Mishaps(EventLog(log), lambda: self.now_s)

    def job(self, error: BaseException | None = None, *, after_s: float = 0.0) -> list[str]:
        """A job ends; what archiver.jsonl says by then."""
        self.now_s += after_s
        self._mishaps.tell("archive", error)
        return (
            [json.loads(line)["event"] for line in self._path.read_text().splitlines()] if self._path.exists() else []
        )


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "archiver.jsonl"


def test_it_is_over_after_a_calm_with_jobs_that_end_well(log: Path) -> None:
    archiver = Archiver(log)

    assert archiver.job(KeyError("x")) == ["warning"]
    assert archiver.job(after_s=CALM_S - 1) == ["warning"]
    assert archiver.job(after_s=1) == ["warning", "cleared"]
    assert archiver.job(after_s=CALM_S) == ["warning", "cleared"]


def test_what_fails_again_and_again_is_told_once_and_stays(log: Path) -> None:
    archiver = Archiver(log)
    for _ in range(10):
        archiver.job(KeyError("x"), after_s=CALM_S / 2)
        said = archiver.job(after_s=CALM_S / 2)

    assert said == ["warning"]


def test_what_comes_back_after_it_was_over_is_told_again(log: Path) -> None:
    archiver = Archiver(log)
    archiver.job(KeyError("x"))
    archiver.job(after_s=CALM_S)

    assert archiver.job(KeyError("x")) == ["warning", "cleared", "warning"]


def test_the_next_archiver_ends_what_the_one_before_has_told(log: Path) -> None:
    Archiver(log).job(KeyError("x"))
    successor = Archiver(log)

    assert successor.job() == ["warning"]
    assert successor.job(after_s=CALM_S) == ["warning", "cleared"]
