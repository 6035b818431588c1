"""When a save is due."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.checkpoint.triggers import Point, counted, improves, requested, timed
from holdfast.plan import Best, Every, Rule

NOTHING = Every(auto=False)
START = Point(0, 0, 0.0)
REDIS = Every(auto=False, rules=(Rule(seconds=900, steps=1), Rule(seconds=60, steps=1000)))


def by_clock(every: Every, step: int = 1, epoch: int = 0, now_s: float = 0.0, *, auto_s: float = 10.0) -> str:
    return timed(every, last=START, now=Point(step, epoch, now_s), auto_s=auto_s)


def test_nothing_is_due_when_nothing_was_asked() -> None:
    now = Point(10**6, 10, 1e9)

    assert counted(NOTHING, last=START, now=now) == timed(NOTHING, last=START, now=now, auto_s=1.0) == ""


@pytest.mark.parametrize(
    ("every", "before", "at"),
    [
        (Every(auto=False, steps=20), Point(19, 9, 1e9), Point(20, 0, 0.0)),
        (Every(auto=False, epochs=2), Point(10**6, 1, 1e9), Point(1, 2, 0.0)),
    ],
)
def test_counted_triggers_wait_for_their_count(every: Every, before: Point, at: Point) -> None:
    assert counted(every, last=START, now=before) == ""
    assert counted(every, last=START, now=at) != ""


@pytest.mark.parametrize(("every", "limit_s"), [(Every(auto=False, seconds=60), 60.0), (Every(), 10.0)])
def test_timed_triggers_wait_for_their_time(every: Every, limit_s: float) -> None:
    assert by_clock(every, now_s=limit_s - 0.1) == ""
    assert by_clock(every, now_s=limit_s) != ""


@pytest.mark.parametrize(
    ("step", "now_s", "expected"),
    [
        (1, 899.0, ""),
        (1, 900.0, "15m if 1 step"),
        (999, 60.0, ""),
        (1000, 59.0, ""),
        (1000, 60.0, "1m if 1000 steps"),
        (0, 1e9, ""),
    ],
)
def test_a_rule_needs_its_time_and_its_steps(step: int, now_s: float, expected: str) -> None:
    assert by_clock(REDIS, step, now_s=now_s) == expected


@given(st.integers(0, 5000), st.floats(0, 2000), st.floats(0, 1000), st.integers(0, 1000))
def test_what_is_due_stays_due_until_a_save(step: int, now_s: float, later_s: float, more: int) -> None:
    if by_clock(REDIS, step, now_s=now_s):
        assert by_clock(REDIS, step + more, now_s=now_s + later_s)


@given(st.integers(1, 5000), st.floats(0, 2000))
def test_rules_are_due_exactly_when_redis_would_save(step: int, now_s: float) -> None:
    as_redis = any(step >= rule.steps and now_s >= rule.seconds for rule in REDIS.rules)

    assert bool(by_clock(REDIS, step, now_s=now_s)) is as_redis


def test_the_same_moment_is_not_saved_twice() -> None:
    every = Every(seconds=1, steps=1)

    assert counted(every, last=START, now=Point(0, 0, 1e9)) == by_clock(every, step=0, now_s=1e9) == ""


@pytest.mark.parametrize(
    ("mode", "value", "saved", "expected"),
    [
        ("min", 0.4, 0.5, True),
        ("min", 0.5, 0.5, False),
        ("min", 0.6, 0.5, False),
        ("max", 0.6, 0.5, True),
        ("max", 0.5, 0.5, False),
        ("max", -1.0, None, True),
    ],
)
def test_only_what_is_better_than_every_saved_value_improves(
    mode: str, value: float, saved: float | None, expected: bool
) -> None:
    assert improves(Best(metric="loss", mode=mode), value, saved) is expected


@pytest.mark.parametrize(("number", "step", "open_now"), [(1, 5, True), (1, 4, False), (0, 9, False)])
def test_a_request_waits_for_its_step(number: int, step: int, open_now: bool) -> None:
    assert requested(number=number, handled=0, at_step=5, step=step) is open_now
