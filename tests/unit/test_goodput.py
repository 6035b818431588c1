"""The interval that loses least: against brute force, against a simulation, and inside its bounds."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from holdfast.goodput import (
    PRIOR_S,
    Costs,
    Failures,
    Tier,
    best_s,
    interval,
    kinds,
    least_s,
    mean_time_s,
)

BLOCKED = st.floats(1e-3, 60.0)
FAILURE = st.floats(600.0, 1e7)
RESTART = st.floats(0.0, 3600.0)


def availability(interval_s: float, blocked_s: float, failure_s: float, restart_s: float) -> float:
    """A(T_c) of the paper: the share of time, 0 to 1, in which new steps are trained."""
    return (1 - blocked_s / interval_s) * failure_s / (failure_s + restart_s + interval_s / 2)


@given(BLOCKED, FAILURE, RESTART, st.floats(0.01, 100.0))
def test_no_other_interval_is_more_available(blocked_s: float, failure_s: float, restart_s: float, by: float) -> None:
    best = best_s(blocked_s, failure_s, restart_s)
    other = best * by
    assume(other > blocked_s)

    gained = availability(best, blocked_s, failure_s, restart_s) - availability(other, blocked_s, failure_s, restart_s)
    assert gained >= -1e-12


@given(BLOCKED, FAILURE)
def test_young_and_daly_are_its_limit(blocked_s: float, failure_s: float) -> None:
    assume(blocked_s < failure_s / 1e4)

    young_s = math.sqrt(2 * failure_s * blocked_s)
    assert young_s <= best_s(blocked_s, failure_s, 0.0) <= young_s * 1.02


def trained_share(interval_s: float, blocked_s: float, failure_s: float, restart_s: float, seed: int) -> float:
    """Share of a long life spent on steps that were kept: failures at random times, even while saving."""
    rng = random.Random(seed)
    kept_s = passed_s = 0.0
    for _ in range(20_000):
        lives_s = rng.expovariate(1 / failure_s)
        kept_s += (lives_s // interval_s) * (interval_s - blocked_s)
        passed_s += lives_s + restart_s
    return kept_s / passed_s


@pytest.mark.parametrize(("blocked_s", "failure_s", "restart_s"), [(2.0, 3600.0, 60.0), (0.1, 600.0, 5.0)])
def test_a_simulated_life_trains_most_at_the_formulas_interval(
    blocked_s: float, failure_s: float, restart_s: float
) -> None:
    best = best_s(blocked_s, failure_s, restart_s)

    shares = [trained_share(best * by, blocked_s, failure_s, restart_s, seed=1) for by in (0.25, 1.0, 4.0)]

    assert shares[1] == max(shares)
    assert shares[1] == pytest.approx(availability(best, blocked_s, failure_s, restart_s), abs=0.01)


def test_before_evidence_the_prior_holds_and_rates_add_up() -> None:
    nothing = Failures()

    assert mean_time_s(("process",), nothing) == pytest.approx(PRIOR_S["process"])
    together = 1 / (1 / PRIOR_S["process"] + 1 / PRIOR_S["machine"])
    assert mean_time_s(("process", "machine"), nothing) == pytest.approx(together)


@given(st.integers(2, 200), st.floats(60.0, 1e5))
def test_evidence_outweighs_the_prior(count: int, each_s: float) -> None:
    seen = Failures(process=count, trained_s=count * each_s)

    found = mean_time_s(("process",), seen)
    assert found == pytest.approx((PRIOR_S["process"] + count * each_s) / (1 + count))
    assert abs(found - each_s) <= (PRIOR_S["process"] + each_s) / count


@given(st.integers(0, 50), st.integers(0, 50), st.floats(0.0, 1e7), BLOCKED)
def test_more_failures_never_make_the_interval_longer(
    process: int, machine: int, trained_s: float, blocked_s: float
) -> None:
    def chosen(**seen: int) -> float:
        failures = Failures(trained_s=trained_s, **seen)
        return interval("disk", Costs(blocked_s=blocked_s), failures, memory=False, max_overhead_ratio=0.03).seconds

    calm = chosen(process=process, machine=machine)
    assert chosen(process=process + 1, machine=machine) <= calm
    assert chosen(process=process, machine=machine + 1) <= calm


@pytest.mark.parametrize(
    ("costs", "bound", "seconds"),
    [
        (Costs(blocked_s=0.0), "floor", 10.0),
        (Costs(blocked_s=0.5), "", None),
        (Costs(blocked_s=0.5, write_s=3000.0), "write", 3000.0),
        (Costs(blocked_s=600.0), "overhead", 20_000.0),
    ],
)
def test_what_bounds_the_interval_is_said(costs: Costs, bound: str, seconds: float | None) -> None:
    found = interval("disk", costs, Failures(), memory=False, max_overhead_ratio=0.03)

    assert found.bound == bound
    assert found.seconds == pytest.approx(found.best_s if seconds is None else seconds)


@given(
    BLOCKED, st.floats(0.0, 1e4), st.floats(0.001, 1.0), st.sampled_from(["memory", "disk", "mirror"]), st.booleans()
)
def test_the_bounds_always_hold(blocked_s: float, write_s: float, ratio: float, tier: Tier, memory: bool) -> None:
    costs = Costs(blocked_s=blocked_s, write_s=write_s)

    found = interval(tier, costs, Failures(), memory=memory, max_overhead_ratio=ratio)

    assert found.seconds >= least_s(costs, ratio)
    assert found.seconds >= max(found.best_s, 10.0)
    assert blocked_s / found.seconds <= ratio * (1 + 1e-9)


def test_each_tier_counts_the_failures_it_is_there_for() -> None:
    assert kinds("memory", memory=True) == ("process",)
    assert kinds("disk", memory=True) == ("machine",)
    assert kinds("disk", memory=False) == ("process", "machine")
    assert kinds("mirror", memory=True) == ("lost",)


def test_failures_come_back_from_json_and_unknown_words_are_left_out() -> None:
    assert Failures.from_json({"process": 2, "trained_s": 5.0, "later": 1}) == Failures(process=2, trained_s=5.0)
