"""Two machines never both write to a mirror, whether the store knows conditions or not."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from holdfast.checkpoint.lease import Lease
from holdfast.checkpoint.lineage import Position
from holdfast.mirror import pull
from holdfast.mirror.fence import (
    Alive,
    Fence,
    HeldElsewhere,
    Owner,
    Superseded,
    alive,
    is_told_to_stop,
    refuse_if_alive,
    revoke_stop,
    tell_to_stop,
)
from holdfast.mirror.view import View
from holdfast.stores import Store, connect
from tests.mirrors import Machine, Place

HERE, THERE = Owner("a", "/runs/x"), Owner("b", "/runs/x")


def lease_of(term: int, claim: str) -> Lease:
    return Lease(term=term, claim=claim, attempt=1, base=None, owner={}, time_s=1.0)


def test_the_first_takes_the_term_and_keeps_it(connected: Place) -> None:
    own = lease_of(1, "a")
    assert Fence(connected(), HERE).hold(own, [])
    assert not Fence(connected(), HERE).hold(own, [])  # as after a restart


def test_who_knows_the_newest_lease_may_take_over_and_the_other_may_not_go_on(connected: Place) -> None:
    first, second = lease_of(1, "a"), lease_of(2, "b")
    ours, theirs = Fence(connected(), HERE), Fence(connected(), THERE)
    ours.hold(first, [])

    theirs.hold(second, [first.file_name])

    with pytest.raises(Superseded, match="term 2"):
        ours.hold(first, [])
    with pytest.raises(Superseded):  # not even by taking terms of its own meanwhile
        ours.hold(lease_of(5, "a5"), [first.file_name])


def test_a_stranger_may_not_write_to_a_mirror_that_is_another_runs(connected: Place) -> None:
    Fence(connected(), HERE).hold(lease_of(1, "a"), [])
    with pytest.raises(Superseded):
        Fence(connected(), THERE).hold(lease_of(1, "b"), [])


def test_another_lease_of_the_own_term_is_never_overlooked(tmp_path: Path) -> None:
    """As a machine leaves it that did not list them again after it had put its own."""
    for claim in "abcdefgh":  # whichever comes first in the list
        store = connect(str(tmp_path / claim), {})
        own, other = lease_of(1, claim), lease_of(1, "x")
        ours = Fence(store, HERE)
        ours.hold(own, [])
        store.put(f"leases/{other.file_name}", other.raw)

        with pytest.raises(Superseded, match="term 1"):
            ours.hold(own, [])


class Meanwhile:
    """A store in which something happens right before a put."""

    def __init__(self, store: Store, key: str, act: Callable[[], object]) -> None:
        self._store, self._key, self._act = store, key, act
        self.url = store.url

    def put(self, key: str, data: bytes, *, create: bool = False) -> None:
        if key.startswith(self._key):
            self._key = "-"
            self._act()
        self._store.put(key, data, create=create)

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)


@pytest.mark.parametrize("moment", ["terms/0", "leases/"])
def test_two_that_take_a_term_at_once_do_not_both_go_on(connected: Place, moment: str) -> None:
    won: list[str] = []

    def other() -> None:
        Fence(connected(), THERE).hold(lease_of(1, "b"), [])
        won.append("b")

    store = Meanwhile(connected(), moment, lambda: _try(other))
    ours = Fence(store, HERE)  # type: ignore[arg-type]
    if _try(lambda: ours.hold(lease_of(1, "a"), [])):
        won.append("a")

    # With conditions the first to claim the term wins, else the first whose lease is there.
    assert won == ["b" if ours.enforced == (moment == "terms/0") else "a"]
    assert 1 == len(connected().list("leases/"))


def test_who_died_between_claim_and_lease_takes_the_term_after_all(moto_place: Place) -> None:
    own, other = lease_of(1, "a"), lease_of(1, "b")
    dying = Fence(Meanwhile(moto_place(), "leases/", lambda: 1 // 0), HERE)  # type: ignore[arg-type]
    with pytest.raises(ZeroDivisionError):
        dying.hold(own, [])

    with pytest.raises(Superseded, match="term 1"):
        Fence(moto_place(), THERE).hold(other, [])
    assert Fence(moto_place(), HERE).hold(own, [])


def _try(act: Callable[[], object]) -> bool:
    try:
        act()
    except Superseded:
        return False
    return True


def test_a_sign_of_life_is_judged_by_the_stores_clock(connected: Place) -> None:
    fence = Fence(connected(), HERE)
    own = lease_of(1, "a")
    fence.hold(own, [])
    assert alive(connected()) is None

    fence.beat(own)

    found = alive(connected())
    assert found is not None
    assert HERE == found.owner
    assert -2 <= found.age_s < 30
    with pytest.raises(HeldElsewhere, match="in use by a"):
        refuse_if_alive(connected(), THERE)
    refuse_if_alive(connected(), HERE)

    fence.rest(own)
    refuse_if_alive(connected(), THERE)


def test_the_sign_of_life_that_counts_is_the_newest_terms_and_only_its_owner_takes_it_away(tmp_path: Path) -> None:
    store = connect(str(tmp_path / "mirror"), {})
    first, second = lease_of(1, "a"), lease_of(2, "b")
    ours, theirs = Fence(store, HERE), Fence(store, THERE)
    ours.hold(first, [])
    theirs.hold(second, [first.file_name])
    theirs.beat(second)
    ours.beat(first)

    ours.rest(first)

    found = alive(store)
    assert found is not None
    assert found.owner == THERE
    theirs.rest(second)
    assert alive(store) is None


def test_whoever_takes_a_mirror_shows_a_sign_of_life_at_once(ours: Machine, tmp_path: Path) -> None:
    store = connect(str(tmp_path / "mirror"), {})

    ours.keeper(store).hold()

    with pytest.raises(HeldElsewhere):
        refuse_if_alive(store, THERE)


def test_ninety_seconds_of_silence_free_it(tmp_path: Path) -> None:
    store = connect(str(tmp_path / "mirror"), {})
    fence, own = Fence(store, HERE), lease_of(1, "a")
    fence.hold(own, [])
    fence.beat(own)
    path = tmp_path / "mirror" / "leases" / "000001.alive"
    past_s = path.stat().st_mtime - 91
    os.utime(path, (past_s, past_s))

    refuse_if_alive(store, THERE)
    assert not Alive(HERE, 90.0).holds_against(THERE)
    assert Alive(HERE, 89.0).holds_against(THERE)


def test_what_the_old_machine_had_on_its_way_is_set_aside(moto_place: Place, ours: Machine, bare: Machine) -> None:
    """It checked the fence, was slow, and its manifest arrives after another machine has taken over."""
    keeper = ours.keeper(moto_place())
    first = ours.save(seed=1, sequence=1, step=10)
    keeper.push(first)
    folder = bare.folder()
    pull.choose(View(moto_place(), {}), folder, "newest")
    folder.leave()
    late = ours.save(seed=2, sequence=2, step=20)
    taken = bare.begin(2, base=Position(1, 1))
    other = bare.keeper(moto_place())
    other.hold()

    with pytest.raises(Superseded):
        keeper.push(late)
    moto_place().put(f"manifests/{late.path.name}", late.path.read_bytes())

    found = pull.checkpoints(View(moto_place(), {}))
    assert [(10, True), (20, False)] == [(info.step, info.live) for info in found]
    assert taken.term == 2


def test_word_to_stop_binds_whoever_goes_on_and_is_gone_once_that_one_rests(connected: Place) -> None:
    store, first, second = connected(), lease_of(1, "a"), lease_of(2, "a2")
    ours = Fence(store, HERE)
    ours.hold(first, [])
    assert not ours.has_word(first)

    tell_to_stop(store)
    ours.beat(first)

    assert ours.has_word(first)
    ours.hold(second, [first.file_name])  # another attempt of the same run
    assert ours.has_word(second) and is_told_to_stop(store)
    ours.rest(second)
    assert not is_told_to_stop(store)
    assert alive(store) is None


def test_word_for_the_one_that_has_the_run_is_not_taken_away_by_one_that_lost_it(connected: Place) -> None:
    store, first, second = connected(), lease_of(1, "a"), lease_of(2, "b")
    ours, theirs = Fence(store, HERE), Fence(store, THERE)
    ours.hold(first, [])
    theirs.hold(second, [first.file_name])
    theirs.beat(second)
    assert ours.has_word(first) and not theirs.has_word(second)
    tell_to_stop(store)

    ours.rest(first)

    assert is_told_to_stop(store)
    assert alive(store) is not None


def test_word_may_come_before_anybody_has_the_run_and_is_taken_back(connected: Place) -> None:
    store = connected()
    tell_to_stop(store)
    assert is_told_to_stop(store)
    Fence(store, HERE).hold(lease_of(1, "a"), [])

    revoke_stop(store)

    assert not is_told_to_stop(store)
