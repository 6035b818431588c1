"""What retention keeps."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.checkpoint.lineage import Position
from holdfast.checkpoint.retention import Candidate, choose, older, safe
from holdfast.plan import Best, Keep


def found(*losses: float | None, damaged: tuple[int, ...] = ()) -> list[Candidate]:
    return [
        Candidate(position=Position(1, n), metrics={} if loss is None else {"loss": loss}, whole=n not in damaged)
        for n, loss in enumerate(losses, 1)
    ]


def kept(candidates: list[Candidate], keep: Keep, now_s: float = 1e9) -> list[int]:
    return sorted(position.sequence for position in choose(candidates, keep, now_s=now_s))


def at(*times_s: float, **fields: Any) -> list[Candidate]:
    """Checkpoints of 1 byte each made at these times."""
    return [
        Candidate(position=Position(1, n), time_s=time_s, step=10 * n, epoch=n, needs={f"p{n}": {0: 1}}, **fields)
        for n, time_s in enumerate(times_s, 1)
    ]


def test_the_last_are_kept() -> None:
    assert kept(found(1, 2, 3, 4, 5), Keep(last=3)) == [3, 4, 5]


def test_there_are_always_two_to_fall_back_to() -> None:
    assert kept(found(1, 2, 3), Keep(last=1)) == [2, 3]


def test_the_best_are_kept_too() -> None:
    keep = Keep(last=2, best=Best(metric="loss", mode="min", count=2))

    assert kept(found(0.5, 0.1, 0.9, None, 0.8, 0.7), keep) == [1, 2, 5, 6]


def test_the_best_may_be_the_highest_and_of_equals_the_one_that_was_measured() -> None:
    keep = Keep(last=2, best=Best(metric="loss", mode="max"))

    assert kept(found(0.9, 0.9, 0.1, 0.2, 0.3), keep) == [1, 4, 5]


def test_what_several_share_is_given_back_with_the_last_of_them_alone() -> None:
    every = [
        Candidate(position=Position(1, n), step=n, needs={"shared": {0: 100}, f"own {n}": {0: 1}}) for n in range(1, 7)
    ]

    assert choose(every, Keep(last=6, max_bytes=103)) == {Position(1, n) for n in (4, 5, 6)}


def test_a_damaged_one_does_not_count_but_the_newest_stays_whatever_it_is() -> None:
    assert kept(found(1, 2, 3, 4, damaged=(3, 4)), Keep(last=2)) == [1, 2, 4]


def test_an_unknown_metric_keeps_the_last_only() -> None:
    assert kept(found(None, None, None), Keep(last=2, best=Best(metric="accuracy"))) == [2, 3]


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        (Keep(last=2, every_steps=30), [3, 6, 9, 11, 12]),
        (Keep(last=2, every_steps=25), [3, 5, 8, 10, 11, 12]),
        (Keep(last=2, every_epochs=5), [5, 10, 11, 12]),
        (Keep(last=2, every_s=4.0), [4, 8, 11, 12]),
    ],
)
def test_the_first_at_or_after_each_multiple_is_kept(keep: Keep, expected: list[int]) -> None:
    assert kept(at(*range(1, 13)), keep) == expected


def test_multiples_are_the_same_whenever_retention_is_applied() -> None:
    every = at(*range(1, 40))
    remaining: list[Candidate] = []
    for one in every:
        remaining.append(one)
        chosen = choose(remaining, Keep(last=2, every_steps=70))
        remaining = [other for other in remaining if other.position in chosen]

    assert {one.position for one in remaining} == choose(every, Keep(last=2, every_steps=70))


def test_age_takes_multiples_and_what_is_aside_and_neither_the_last_nor_the_best() -> None:
    found = at(*range(0, 100, 10))
    found[1] = dataclasses.replace(found[1], live=False)
    found[3] = dataclasses.replace(found[3], metrics={"loss": 0.1})
    keep = Keep(last=2, best=Best(metric="loss"), every_steps=10, max_age_s=35)

    assert kept(found, keep) == [4, 6, 7, 8, 9, 10]
    assert kept(found, dataclasses.replace(keep, max_age_s=None)) == list(range(1, 11))


def test_a_clock_that_jumps_once_costs_nothing() -> None:
    keep = Keep(last=3, every_steps=10, max_age_s=100)

    assert kept(at(1, 2, 3, 4, 5, 1e9), keep) == [1, 2, 3, 4, 5, 6]
    assert kept(at(1, 2, 3, 4, 5, 6), keep, now_s=1e12) == [1, 2, 3, 4, 5, 6]
    assert kept(at(1e9, 1e9, 3, 4, 5, 6), keep, now_s=0) == [1, 2, 3, 4, 5, 6]


def test_past_the_bytes_aside_goes_first_then_the_oldest() -> None:
    found = at(*range(8))
    found[5] = dataclasses.replace(found[5], live=False)
    keep = Keep(last=5)

    assert [kept(found, dataclasses.replace(keep, max_bytes=most)) for most in (6, 5, 4, 1)] == [
        [3, 4, 5, 6, 7, 8],
        [3, 4, 5, 7, 8],
        [4, 5, 7, 8],
        [7, 8],
    ]


def test_bytes_that_are_shared_count_once() -> None:
    found = [dataclasses.replace(one, needs={"base": {0: 100}, **one.needs}) for one in at(*range(5))]

    assert kept(found, Keep(last=5, max_bytes=105)) == [1, 2, 3, 4, 5]
    assert kept(found, Keep(last=5, max_bytes=104)) == [2, 3, 4, 5]


def test_two_verified_ones_stay_however_many_newer_were_never_read() -> None:
    found = [dataclasses.replace(one, verified=n < 3) for n, one in enumerate(at(*range(7)))]

    assert kept(found, Keep(last=2, max_bytes=1)) == [2, 3, 6, 7]


def test_pins_outlive_everything() -> None:
    found = at(*range(6))
    found[0] = dataclasses.replace(found[0], pinned=True)
    found[1] = dataclasses.replace(found[1], pinned=True, live=False)

    assert kept(found, Keep(last=2, max_bytes=1, max_age_s=1)) == [1, 2, 5, 6]
    assert {one.sequence for one in older(found, Keep(), than_s=1e9)} == {3, 4}


def test_pruning_goes_by_the_time_given_and_spares_the_best() -> None:
    found = [dataclasses.replace(one, metrics={"loss": one.time_s}) for one in at(*range(8))]

    assert {one.sequence for one in older(found, Keep(best=Best(metric="loss")), than_s=4)} == {2, 3, 4}
    assert {one.sequence for one in older(found, Keep(), than_s=1e9)} == {1, 2, 3, 4, 5, 6}


@given(st.lists(st.booleans(), min_size=1), st.integers(1, 5))
def test_the_newest_and_two_whole_ones_always_remain(wholes: list[bool], last: int) -> None:
    candidates = [Candidate(position=Position(1, n), whole=whole) for n, whole in enumerate(wholes)]

    remaining = choose(candidates, Keep(last=last))

    assert candidates[-1].position in remaining
    assert sum(one.whole for one in candidates if one.position in remaining) >= min(2, sum(wholes))


CANDIDATES = st.lists(
    st.builds(
        lambda **fields: fields,
        whole=st.booleans(), verified=st.booleans(), live=st.booleans(), pinned=st.booleans(),
        time_s=st.floats(-1e9, 1e12), step=st.integers(0, 100), epoch=st.integers(0, 9),
        metrics=st.dictionaries(st.just("loss"), st.floats(0, 1)),
        needs=st.dictionaries(st.sampled_from("abc"), st.dictionaries(st.integers(0, 3), st.just(5))),
    ),
    max_size=12,
)  # fmt: skip
KEEPS = st.builds(
    Keep,
    last=st.integers(1, 4), best=st.none() | st.just(Best(metric="loss")), every_steps=st.none() | st.integers(1, 50),
    max_age_s=st.none() | st.floats(0, 1e12), max_bytes=st.none() | st.integers(0, 100),
)  # fmt: skip


@given(CANDIDATES, KEEPS, st.floats(-1e12, 1e12))
def test_whatever_the_rules_and_the_clock_what_is_safe_stays(
    fields: list[dict[str, Any]], keep: Keep, now_s: float
) -> None:
    candidates = [Candidate(position=Position(1, n), **one) for n, one in enumerate(fields)]
    live = [one for one in candidates if one.live]

    remaining = choose(candidates, keep, now_s=now_s)
    pruned = {one.position for one in candidates} - older(candidates, keep, than_s=now_s)

    assert safe(candidates) <= remaining
    for left in (remaining, pruned):
        assert not live or live[-1].position in left
        assert all(one.position in left for one in candidates if one.pinned)
        for sound in ([o for o in live if o.whole], [o for o in live if o.whole and o.verified]):
            assert sum(one.position in left for one in sound) >= min(2, len(sound))
