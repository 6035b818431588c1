"""Which copy a rank may give up, and what fits into a header."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from holdfast.checkpoint.slots import PAGE, Slot, State, oldest_spare

H, S, F, W = State.HELD, State.SEALED, State.FREE, State.WRITING


@pytest.fixture
def slots() -> Iterator[list[Slot]]:
    made = [Slot(os.memfd_create("test")) for _ in range(3)]
    yield made
    for slot in made:
        slot.close()
        os.close(slot.descriptor)


@pytest.mark.parametrize(
    ("held", "expected"),
    [
        ([(F, 1, 0), (F, 1, 0), (F, 1, 0)], None),
        ([(H, 1, 5), (F, 1, 4), (W, 1, 6)], None),
        ([(H, 1, 5), (H, 1, 4), (H, 1, 6)], 1),
        ([(H, 2, 1), (H, 1, 9), (F, 0, 0)], 1),
        ([(S, 1, 4), (H, 1, 5), (S, 1, 3)], None),
        ([(S, 1, 6), (H, 1, 5), (S, 1, 3)], 1),
        ([(S, 1, 3), (H, 1, 4), (H, 1, 5)], 1),
    ],
)
def test_the_oldest_copy_is_spare_while_a_newer_one_is_held_or_sealed(
    slots: list[Slot], held: list[tuple[State, int, int]], expected: int | None
) -> None:
    for slot, (state, term, sequence) in zip(slots, held, strict=True):
        slot.set(term=term, sequence=sequence, state=state)

    assert oldest_spare(slots) is (None if expected is None else slots[expected])


def test_a_long_message_is_cut_to_the_header_page(slots: list[Slot]) -> None:
    slot = slots[0]
    slot.reserve(2 * PAGE)
    slot.view[PAGE] = 7

    slot.write_message("é" * PAGE)

    assert slot.view[PAGE] == 7
    assert set(slot.read_message()[:-1]) == {"é"}
