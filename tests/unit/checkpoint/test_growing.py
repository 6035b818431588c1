"""A slot that is filled while it grows."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

import pytest

from holdfast.checkpoint.growing import growing
from holdfast.checkpoint.slots import PAGE, Slot
from holdfast.errors import StoreRefused
from tests.slotparts import new_slot

BIG = 40 << 20  # several steps


def test_memory_is_there_when_it_is_given_and_the_slot_s_own() -> None:
    slot = new_slot()
    with growing(slot, BIG) as memory:
        for offset in range(PAGE, BIG - PAGE, 1 << 20):
            memory.memory(offset, PAGE)[:] = (offset >> 20).to_bytes(2, "little") * (PAGE // 2)

    assert len(slot.view) == BIG == os.fstat(slot.descriptor).st_blocks * 512
    for offset in range(PAGE, BIG - PAGE, 1 << 20):
        assert slot.view[offset : offset + PAGE] == (offset >> 20).to_bytes(2, "little") * (PAGE // 2)


def test_a_slot_that_is_large_enough_is_filled_as_it_is() -> None:
    slot = new_slot()
    slot.reserve(BIG)
    with growing(slot, BIG // 2) as memory:
        memory.memory(PAGE, PAGE)[:2] = b"ab"

    assert len(slot.view) == BIG
    assert slot.view[PAGE : PAGE + 2] == b"ab"


@pytest.mark.parametrize("asked", [True, False])
def test_no_room_is_told_to_whoever_waits_and_at_the_end(*, asked: bool) -> None:
    @contextlib.contextmanager
    def refuse(_descriptor: int, _more_bytes: int) -> Iterator[None]:
        raise OSError(errno.ENOMEM, "not here")
        yield

    slot = Slot(os.memfd_create("test"), refuse)
    with pytest.raises(StoreRefused, match="no memory for a slot of 41943040 bytes: not here"), growing(slot, BIG) as m:
        if asked:
            m.memory(BIG - PAGE, PAGE)

    assert len(slot.view) == PAGE


def test_whatever_goes_wrong_reaches_who_waits() -> None:
    @contextlib.contextmanager
    def broken(_descriptor: int, _more_bytes: int) -> Iterator[None]:
        raise KeyError("a bug")
        yield

    slot = Slot(os.memfd_create("test"), broken)
    with pytest.raises(KeyError, match="a bug"), growing(slot, BIG) as m:
        m.memory(BIG - PAGE, PAGE)
