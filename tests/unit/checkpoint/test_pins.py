"""Pins, and removing by hand: what is pinned, read or the last stays."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

import pytest

from holdfast.checkpoint import collect, lease, load, pins
from holdfast.checkpoint.commit import commit
from holdfast.checkpoint.folder import Folder
from holdfast.checkpoint.lease import Lease
from holdfast.checkpoint.lineage import Position
from holdfast.errors import UsageError
from holdfast.plan import Keep
from tests.slotparts import part_of

ONE, TWO, THREE = (Position(1, n) for n in (1, 2, 3))


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Three checkpoints of steps 1 to 3, a day apart, the last one new."""
    made = Folder(tmp_path / "checkpoints")
    made.open()
    for n in (1, 2, 3):
        commit(made, [part_of(seed=n, sequence=n, step=n, time_s=time.time() - 86400.0 * (3 - n))])
    return made


def steps(folder: Folder) -> list[int]:
    return [info.step for info in load.checkpoints(folder.root)]


def test_a_pin_says_why_and_keeps_until_it_is_taken_away(folder: Folder) -> None:
    pins.pin(folder, ONE, "in the paper", 5.0)
    collect.retain(folder, Keep(last=1))

    assert pins.read(folder.root, ONE) == pins.Pin("in the paper", 5.0)
    assert [info.pinned for info in load.checkpoints(folder.root)] == [True, False, False]
    pins.unpin(folder, ONE)
    assert pins.read(folder.root, ONE) is None
    assert [info.step for info in collect.retain(folder, Keep(last=1))] == [1]


def test_a_damaged_pin_is_a_pin(folder: Folder) -> None:
    pins.pin(folder, ONE, "x", 5.0)
    (folder.root / "pins" / "000001-00000001.json").write_bytes(b"{")

    collect.retain(folder, Keep(last=1))

    assert steps(folder) == [1, 2, 3]
    assert pins.read(folder.root, ONE) == pins.Pin()


def test_what_is_not_pinned_cannot_be_unpinned(folder: Folder) -> None:
    with pytest.raises(UsageError, match="term 1, sequence 2 is not pinned"):
        pins.unpin(folder, TWO)


def test_one_can_be_removed_and_is_not_missed_then(folder: Folder) -> None:
    assert collect.remove(folder, ONE).step == 1

    assert steps(folder) == [2, 3]
    assert load.choose(folder.root).fell_back == ()


def test_what_must_stay_is_not_removed_by_hand(folder: Folder) -> None:
    pins.pin(folder, ONE, "x", 5.0)

    with pytest.raises(UsageError, match="is pinned"):
        collect.remove(folder, ONE)
    pins.unpin(folder, ONE)
    collect.remove(folder, ONE)
    with pytest.raises(UsageError, match="no checkpoint of term 1, sequence 1"):
        collect.remove(folder, ONE)
    for position in (TWO, THREE):
        with pytest.raises(UsageError, match="the newest 2 stay, and the newest 2 that are verified"):
            collect.remove(folder, position)


def test_what_is_verified_stays_when_newer_ones_are_not(folder: Folder) -> None:
    """They are whole for all that is known, and nobody has read them yet."""
    for info in load.checkpoints(folder.root)[1:]:
        for entry in info.packs:
            folder.known.forget(entry.name)

    with pytest.raises(UsageError, match="the newest 2 stay"):
        collect.remove(folder, ONE)
    assert steps(folder) == [1, 2, 3]


def test_what_is_being_read_stays_with_its_packs_until_the_next_time(folder: Folder) -> None:
    first = load.checkpoints(folder.root)[0]
    with load.reading(folder.root, first):
        assert collect.retain(folder, Keep(last=2)) == []
        with pytest.raises(UsageError, match="is being read"):
            collect.remove(folder, ONE)
        assert load.verify(folder.root, first) == []

    assert [info.step for info in collect.retain(folder, Keep(last=2))] == [1]
    assert load.verify(folder.root, first) == ["the checkpoint of step 1 (term 1, sequence 1) was removed meanwhile"]


def test_a_reader_does_not_get_what_is_being_removed(folder: Folder) -> None:
    first = load.checkpoints(folder.root)[0]
    lock = folder.disk.lock(first.path)
    assert lock is not None

    with closing(lock), pytest.raises(load.Damaged, match="removed meanwhile"), load.reading(folder.root, first):
        pass


def test_pruning_names_what_it_would_remove_and_removes_what_it_named(folder: Folder) -> None:
    lease.write(folder, Lease(term=2, claim="b", attempt=2, base=ONE, owner={}, time_s=0.0))
    commit(folder, [part_of(seed=9, term=2, sequence=2, step=9)])
    than_s = time.time() - 3600.0

    named = collect.prune(folder, Keep(), than_s=than_s, dry_run=True)
    before = steps(folder)
    removed = collect.prune(folder, Keep(), than_s=than_s)

    assert [info.step for info in named] == [info.step for info in removed] == [2]
    assert (before, steps(folder)) == ([1, 2, 3, 9], [1, 3, 9])
