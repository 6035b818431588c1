"""Which checkpoints a resume may continue from, after any going back and forth."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from holdfast.checkpoint.lineage import Position, live, parent

ONE, TWO, THREE = (Position(1, n) for n in (1, 2, 3))


def test_one_term_is_all_live() -> None:
    assert live([TWO, ONE], {1: None}) == [ONE, TWO]


def test_what_came_after_the_base_is_aside() -> None:
    later = Position(2, 2)

    assert live([ONE, TWO, THREE, later], {1: None, 2: ONE}) == [ONE, later]


def test_a_term_without_a_checkpoint_yet_already_puts_the_others_aside() -> None:
    assert live([ONE, TWO], {1: None, 2: ONE}) == [ONE]


def test_a_start_from_nothing_puts_everything_aside() -> None:
    assert live([ONE, TWO], {1: None, 2: None}) == []


def test_bases_are_followed_down_several_terms() -> None:
    found = [ONE, TWO, Position(2, 3), Position(2, 4), Position(3, 4)]

    assert live(found, {1: None, 2: TWO, 3: Position(2, 3)}) == [ONE, TWO, Position(2, 3), Position(3, 4)]


def test_a_term_that_is_skipped_by_the_newest_is_aside() -> None:
    assert live([ONE, Position(2, 2), Position(3, 2)], {1: None, 2: ONE, 3: ONE}) == [ONE, Position(3, 2)]


def test_a_lost_lease_is_taken_to_have_continued_from_the_newest_before() -> None:
    assert live([ONE, TWO, Position(2, 3)], {1: None}) == [ONE, TWO, Position(2, 3)]


def test_nothing_gives_nothing() -> None:
    assert live([], {}) == []
    assert parent(ONE, []) is None


def test_the_parent_is_the_one_before() -> None:
    assert parent(Position(2, 5), [ONE, TWO]) == TWO
    assert parent(TWO, [ONE, TWO, THREE]) == ONE


positions = st.builds(Position, st.integers(1, 5), st.integers(1, 5))


@given(st.lists(positions), st.dictionaries(st.integers(1, 5), st.none() | positions))
def test_any_records_give_an_ordered_part_that_ends_in_the_newest_term(
    found: list[Position], bases: dict[int, Position | None]
) -> None:
    line = live(found, bases)

    assert line == sorted(set(line))
    assert set(line) <= set(found)
    newest = max([position.term for position in found] + list(bases), default=0)
    assert {p for p in found if p.term == newest} <= set(line)
