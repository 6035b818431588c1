"""When a save is due."""

from __future__ import annotations

import pytest

from holdfast.checkpoint.triggers import Point, auto_interval_s, due, requested
from holdfast.plan import Every

NOTHING = Every(auto=False)


def why(
    every: Every, step: int = 1, epoch: int = 0, now_s: float = 0.0, *, blocked_s: float = 0.0, timed: bool = True
) -> str:
    now = Point(step, epoch, now_s)
    return due(every, last=Point(0, 0, 0.0), now=now, blocked_s=blocked_s, max_overhead_ratio=0.03, timed=timed)


def test_nothing_is_due_when_nothing_was_asked() -> None:
    assert why(NOTHING, 10**6, 10, 1e9) == ""


@pytest.mark.parametrize(
    ("every", "before", "at"),
    [
        (Every(auto=False, steps=20), {"step": 19}, {"step": 20}),
        (Every(auto=False, epochs=2), {"epoch": 1}, {"epoch": 2}),
        (Every(auto=False, seconds=60), {"now_s": 59.9}, {"now_s": 60.0}),
        (Every(), {"now_s": 9.9}, {"now_s": 10.0}),
    ],
)
def test_each_trigger_waits_for_its_measure(every: Every, before: dict[str, float], at: dict[str, float]) -> None:
    assert why(every, **before) == ""  # type: ignore[arg-type]
    assert why(every, **at) != ""  # type: ignore[arg-type]


def test_auto_keeps_inside_the_overhead() -> None:
    assert auto_interval_s(3.0, 0.03) == pytest.approx(100)
    assert why(Every(), now_s=99, blocked_s=3.0) == ""
    assert why(Every(), now_s=101, blocked_s=3.0) == "auto"


def test_clocks_decide_nothing_where_ranks_must_agree() -> None:
    assert why(Every(seconds=1), now_s=1e9, timed=False) == ""
    assert why(Every(seconds=1, steps=1), timed=False) == "every 1 steps"


def test_the_same_moment_is_not_saved_twice() -> None:
    assert why(Every(seconds=1, steps=1), step=0, now_s=1e9) == ""


@pytest.mark.parametrize(("number", "step", "open_now"), [(1, 5, True), (1, 4, False), (0, 9, False)])
def test_a_request_waits_for_its_step(number: int, step: int, open_now: bool) -> None:
    assert requested(number=number, handled=0, at_step=5, step=step) is open_now
