"""Restores from memory: which copy, told to whom, and when the disk is taken instead."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from holdfast.checkpoint import load, manifest, pack, survey
from holdfast.checkpoint.lease import Memory as Named
from holdfast.checkpoint.room import Room
from holdfast.checkpoint.slots import Result, Slot, SlotSet, State
from holdfast.errors import NoValidCheckpoint
from holdfast.fsio import BLOCK
from holdfast.node.archive import Archive
from holdfast.node.eventlog import EventLog
from holdfast.node.restoring import Restoring
from holdfast.plan import CheckpointPlan, Memory
from tests.slotparts import contents, fill_random, seal, table_of


@dataclass
class Node:
    """Archivers one after the other, and the slots that outlive them."""

    root: Path
    sets: list[SlotSet]
    memory: Memory = Memory(auto=False, steps=1)  # noqa: RUF009 - frozen

    def __post_init__(self) -> None:
        self.slots = [[Slot(descriptor) for descriptor in one.slots] for one in self.sets]
        self.archives: list[Archive] = []
        self.begin()

    def begin(self) -> None:
        """Another archiver, as after a death."""
        if self.archives:
            self.archives[-1].folder.leave()
        log = EventLog(self.root / "archiver.jsonl")
        plan = CheckpointPlan(dir=str(self.root / "checkpoints"), memory=self.memory)
        self.archive = Archive(plan, log, Room(self.root / "slots.lock"), "digits")
        self.archives.append(self.archive)
        self.restoring = Restoring(self.archive, log)
        for one in self.sets:
            self.archive.add_slots(SlotSet.of(one.rank, [os.dup(descriptor) for descriptor in one.fds()]))

    def restore(self, claim: str, *, rank: int = 0, **fields: Any) -> dict[str, Any]:
        request = {"rank": rank, "world": len(self.sets), "attempt": 1, "claim": claim, "want": "newest", **fields}
        return self.restoring.restore(request, 0.0)

    def hold(self, index: int, *, rank: int = 0, **fields: Any) -> Slot:
        """What a rank does to keep a copy for itself."""
        slot = self.slots[rank][index]
        seal(slot, rank=rank, world=len(self.sets), **fields)
        slot.set(tries=0, state=State.HELD)
        return slot

    def save(self, index: int, **fields: Any) -> Slot:
        """What a rank does to save to disk, and the archiver with it."""
        slot = self.slots[0][index]
        seal(slot, **fields)
        self.archive.scan()
        return slot

    def leases(self) -> list[Named | None]:
        found = survey.take(self.root / "checkpoints")
        return [found.lease.memory if found.lease else None]


@pytest.fixture
def node_of(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    made: list[Node] = []

    def make(ranks: int = 1, **fields: Any) -> Node:
        bells = [[os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)] for _ in range(ranks)]
        sets = [SlotSet.of(r, [*bells[r], *(os.memfd_create("slot") for _ in range(3))]) for r in range(ranks)]
        made.append(Node(tmp_path, sets, **fields))
        return made[-1]

    yield make
    for node in made:
        for slot in (slot for slots in node.slots for slot in slots):
            slot.close()
        for one in node.sets:
            for descriptor in one.fds():
                os.close(descriptor)


def test_the_newest_copy_is_named_and_stays_where_it_is(node_of: Callable[..., Node]) -> None:
    node = node_of()
    assert node.restore("a")["slot"] is None
    node.save(0, sequence=1, step=5)
    node.hold(1, sequence=2, step=6)
    slot = node.hold(2, sequence=3, step=7, seed=3)
    before = bytes(slot.view)

    answer = node.restore("b")

    told = {name: answer[name] for name in ("ok", "term", "next_sequence", "slot", "step", "tier", "fell_back")}
    assert told == {
        "ok": True, "term": 2, "next_sequence": 4, "slot": 2, "step": 7, "tier": "memory", "fell_back": [],
    }  # fmt: skip
    assert (slot.state, bytes(slot.view)) == (State.HELD, before)
    assert node.leases() == [Named(term=1, sequence=3, save_id="1-7")]
    found = survey.take(node.root / "checkpoints")
    assert found.lease is not None
    assert found.lease.base == found.checkpoints[-1].position


def test_a_save_that_ended_leaves_its_copy_in_memory(node_of: Callable[..., Node]) -> None:
    node = node_of()
    node.restore("a")

    assert node.save(0, sequence=1, step=5).state is State.HELD
    assert node.restore("b")["tier"] == "memory", "equally new: no disk is read"
    shutil.rmtree(node.root / "checkpoints" / "packs")
    (node.root / "checkpoints" / "packs").touch()
    failed = node.save(1, term=2, sequence=2, step=6, seed=6)

    assert (failed.get("result"), failed.state) == (Result.FAILED, State.HELD)
    assert node.restore("c")["step"] == 6, "nowhere but in memory"


def test_with_the_tier_off_a_slot_is_free_again_and_the_disk_is_read(node_of: Callable[..., Node]) -> None:
    node = node_of(memory=Memory(auto=False))
    node.restore("a")

    assert node.save(0, sequence=1, step=5).state is State.FREE
    assert node.restore("b")["tier"] == "disk"


def test_the_same_claim_gets_the_same_copy_from_the_next_archiver_too(node_of: Callable[..., Node]) -> None:
    node = node_of()
    node.restore("a")
    node.hold(0, sequence=1, step=7)
    first = node.restore("b")
    node.hold(1, term=2, sequence=2, step=8)

    node.begin()

    assert node.restore("b") == first == node.restore("b")
    assert node.restore("c")["step"] == 8


def test_a_copy_that_is_gone_starts_another_attempt_not_another_state(node_of: Callable[..., Node]) -> None:
    node = node_of()
    node.restore("a")
    slot = node.hold(0, sequence=1, step=7)
    node.restore("b")
    slot.set(state=State.FREE)

    refused = node.restore("b")

    assert (refused["ok"], refused["exit_code"]) == (False, 1)
    assert "no longer holds" in refused["error"]
    assert node.restore("c")["slot"] is None


def test_an_attempt_that_saved_nothing_hands_its_copy_to_the_next(node_of: Callable[..., Node]) -> None:
    node = node_of()
    node.restore("a")
    node.hold(0, sequence=1, step=7)
    node.hold(1, sequence=2, step=6)  # no rank does that: only numbers count

    answers = [node.restore(claim) for claim in "bcd"]

    assert [(answer["term"], answer["step"], answer["tier"]) for answer in answers] == [
        (2, 6, "memory"), (3, 6, "memory"), (4, 6, "memory"),
    ]  # fmt: skip
    node.slots[0][1].set(state=State.WRITING)
    assert node.restore("e")["slot"] is None, "the older copy is of a line that was left"


def test_a_copy_that_two_attempts_died_on_is_passed_over(node_of: Callable[..., Node]) -> None:
    node = node_of()
    node.restore("a")
    node.save(0, sequence=1, step=5, seed=1)
    bad = node.hold(1, sequence=2, step=6)
    bad.set(tries=1)
    assert node.restore("b")["tier"] == "memory"
    bad.set(tries=2)

    answer = node.restore("c")

    assert (answer["tier"], answer["step"]) == ("disk", 5)
    assert answer["fell_back"] == [
        "the copy in memory of step 6 (term 1) was passed over: 2 attempts that began from it did not complete a step"
    ]
    assert node.restore("d")["tier"] == "disk", "the copy of a line that was left does not come back"


@pytest.mark.parametrize(
    "harm", [{"state": State.WRITING}, {"table_offset": 1 << 40}, {"sequence": 9}, {"used_bytes": 0}]
)
def test_a_torn_or_forged_copy_is_none(node_of: Callable[..., Node], harm: dict[str, int]) -> None:
    node = node_of()
    node.restore("a")
    node.hold(0, sequence=1, step=5)
    torn = node.hold(1, sequence=2, step=6)
    torn.set(**harm)

    answer = node.restore("b")

    assert (answer["tier"], answer["step"]) == ("memory", 6 if "used_bytes" in harm else 5)


def test_chunks_that_lie_outside_the_slot_are_refused(node_of: Callable[..., Node]) -> None:
    node = node_of()
    node.restore("a")
    slot = node.hold(0, sequence=1, step=5)
    table, end = table_of(sequence=1, step=5)
    table["chunks"][0]["offset"] = len(slot.view)
    slot.write_table(table, end)

    assert node.restore("b")["slot"] is None


@pytest.mark.parametrize("want", ["nothing", {"step": 5}, {"term": 1, "sequence": 1}])
def test_another_wish_than_the_newest_never_takes_memory(node_of: Callable[..., Node], want: Any) -> None:
    node = node_of()
    node.restore("a")
    node.save(0, sequence=1, step=5)
    node.hold(1, sequence=2, step=6)

    assert (node.restore("b", want=want)["tier"], node.leases()) == ("disk", [None])
    assert node.restore("c")["tier"] == "disk"


def test_a_newer_checkpoint_on_disk_comes_first(node_of: Callable[..., Node]) -> None:
    node = node_of()
    node.restore("a")
    node.hold(1, sequence=1, step=4)
    node.save(0, sequence=2, step=5).set(state=State.FREE)

    assert (node.restore("b")["tier"], node.restore("b")["step"]) == ("disk", 5)


def test_all_ranks_get_the_newest_copy_that_all_of_them_hold(node_of: Callable[..., Node]) -> None:
    node = node_of(ranks=2)
    [node.restore("a", rank=rank) for rank in (0, 1)]
    for rank, steps in enumerate([(7, 8, 6), (6, 5, 7)]):
        for index, step in enumerate(steps):
            node.hold(index, rank=rank, sequence=step + 10 * rank, step=step, seed=step + rank)

    answers = [node.restore("b", rank=rank) for rank in (1, 0)]

    assert [(answer["step"], answer["slot"], answer["next_sequence"]) for answer in answers] == [(7, 2, 18), (7, 0, 8)]
    assert [answer["term"] for answer in answers] == [2, 2]


def test_a_rank_without_a_part_sends_all_to_the_disk(node_of: Callable[..., Node]) -> None:
    node = node_of(ranks=2)
    [node.restore("a", rank=rank) for rank in (0, 1)]
    node.hold(0, rank=0, sequence=1, step=7)
    node.hold(0, rank=1, sequence=1, step=6)

    assert [node.restore("b", rank=rank)["slot"] for rank in (0, 1)] == [None, None]


def test_a_restore_from_disk_takes_the_memory_of_old_copies(node_of: Callable[..., Node]) -> None:
    node = node_of()
    node.restore("a")
    node.save(0, sequence=1, step=5, seed=5)
    for index in (1, 2):
        node.hold(index, sequence=1 + index, step=5 + index)

    answer = node.restore("b", want={"step": 5})

    slot = node.slots[0][answer["slot"]]
    table, end = table_of()
    slot.refresh()
    expected = Slot(os.memfd_create("expected"))
    expected.reserve(end)
    fill_random(expected.view, table, 5)
    assert slot.state is State.RESTORED
    assert contents(slot.view, slot.read_table()) == contents(expected.view, table)
    assert load.verify(node.root / "checkpoints", load.checkpoints(node.root / "checkpoints")[0]) == []


def harm(node: Node, step: int, *, rank: int) -> None:
    """One bit of what that rank has in the checkpoint of that step."""
    root = node.root / "checkpoints"
    (info,) = [info for info in load.checkpoints(root) if info.step == step]
    found = manifest.parse(info.path.name, info.path.read_bytes())
    chunk = found.ranks[rank]["chunks"][0]
    path = pack.path(root, found.packs[chunk["pack"]].name)
    raw = bytearray(path.read_bytes())
    raw[chunk["offset"] + BLOCK] ^= 1
    path.write_bytes(raw)


def test_no_rank_takes_a_checkpoint_that_another_could_not(node_of: Callable[..., Node]) -> None:
    node = node_of(ranks=2, memory=Memory(auto=False))
    [node.restore("a", rank=rank) for rank in (0, 1)]
    for step in (5, 6):
        for rank in (0, 1):
            seal(node.slots[rank][0], rank=rank, world=2, seed=10 * step + rank, sequence=step, step=step)
        node.archive.scan()
    harm(node, 6, rank=1)

    answers = [node.restore("b", rank=rank) for rank in (0, 1)]

    assert [answer["step"] for answer in answers] == [5, 5]
    assert ["damaged chunk" in answer["fell_back"][0] for answer in answers] == [True, True]


def test_a_restore_that_finds_nothing_intact_leaves_its_slot_to_the_rank(node_of: Callable[..., Node]) -> None:
    node = node_of(memory=Memory(auto=False))
    node.restore("a")
    node.save(0, sequence=1, step=5)
    harm(node, 5, rank=0)

    assert node.restore("b")["exit_code"] == NoValidCheckpoint.exit_code
    assert [slot.state for slot in node.slots[0]] == [State.FREE] * 3


def test_sequences_go_on_after_what_the_term_has_committed(node_of: Callable[..., Node]) -> None:
    node = node_of()
    assert node.restore("a")["next_sequence"] == 1
    node.save(0, sequence=1, step=5)

    assert node.restore("a")["next_sequence"] == 2


def test_saves_that_wait_are_committed_oldest_first(node_of: Callable[..., Node]) -> None:
    node = node_of()
    node.restore("a")
    for index, sequence in enumerate((2, 1)):
        seal(node.slots[0][index], seed=sequence, sequence=sequence, step=10 * sequence)

    assert node.archive.scan() == 0

    assert [slot.get("result") for slot in node.slots[0][:2]] == [Result.COMMITTED] * 2
    assert [info.step for info in load.checkpoints(node.root / "checkpoints")] == [10, 20]


def test_what_lacks_a_rank_is_given_up_once_a_later_save_is_complete(node_of: Callable[..., Node]) -> None:
    node = node_of(ranks=2)
    [node.restore("a", rank=rank) for rank in (0, 1)]
    for rank, index, step in ((0, 0, 5), (0, 1, 6), (1, 0, 6)):
        seal(node.slots[rank][index], rank=rank, world=2, sequence=step, step=step)

    assert node.archive.scan() == 0

    assert node.slots[0][0].read_message() == "a later save was complete first"
    assert [info.step for info in load.checkpoints(node.root / "checkpoints")] == [6]


def test_a_slot_says_how_long_its_save_took_and_nothing_when_it_failed(node_of: Callable[..., Node]) -> None:
    node = node_of()
    node.restore("a")
    assert node.save(0, sequence=1, step=5).get("archived_ns") > 0

    failed = node.save(0, sequence=2, step=6, epoch=-1)

    assert (failed.get("result"), failed.get("archived_ns")) == (Result.FAILED, 0)


def test_a_table_of_another_rank_fails_and_is_bound_to_nothing(node_of: Callable[..., Node]) -> None:
    node = node_of(ranks=2)
    [node.restore("a", rank=rank) for rank in (0, 1)]
    for slots in node.slots:
        seal(slots[0], rank=1, world=2, sequence=1, step=5)

    assert node.archive.scan() == 1

    assert node.slots[0][0].get("result") == Result.FAILED
    assert node.slots[0][0].read_message() == "the slot of rank 0 holds a table of rank 1 of 2"
    assert node.slots[1][0].state is State.SEALED


def test_a_set_that_another_has_replaced_is_let_go_once_it_is_saved(node_of: Callable[..., Node]) -> None:
    node = node_of()
    node.restore("a")
    seal(node.slots[0][0], sequence=1, step=5)
    bells = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]
    node.archive.add_slots(SlotSet.of(0, [*bells, *(os.memfd_create("slot") for _ in range(3))]))
    before = [one.memory for one in node.archive.slots.every()]

    node.archive.scan()

    assert [one.memory for one in node.archive.slots.every()] == before[1:]
    assert node.slots[0][0].get("result") == Result.COMMITTED


def test_what_was_taken_is_written_down(node_of: Callable[..., Node]) -> None:
    node = node_of()
    node.restore("a")
    node.hold(0, sequence=1, step=7)
    node.restore("b")

    lines = [json.loads(line) for line in (node.root / "archiver.jsonl").read_text().splitlines()]
    assert [line["memory"] for line in lines] == [None, {"term": 1, "sequence": 1, "save_id": "1-7"}]


def test_what_the_dead_had_sealed_is_saved_before_the_next_attempt_begins(node_of: Callable[..., Node]) -> None:
    node = node_of()
    node.restore("a")
    seal(node.slots[0][0], sequence=1, step=5)

    assert node.restore("b")["step"] == 5
    assert node.slots[0][0].get("result") == Result.COMMITTED


def test_a_save_that_lacks_a_rank_ends_with_its_attempt_and_not_before(node_of: Callable[..., Node]) -> None:
    node = node_of(ranks=2)
    node.restore("a")
    slot = node.slots[0][0]
    seal(slot, rank=0, world=2, sequence=1, step=5)
    node.restore("a", rank=1)
    assert slot.state is State.SEALED

    node.restore("b", rank=1)

    assert (slot.get("result"), slot.read_message()) == (Result.FAILED, "the attempt that began this save is over")


def test_saves_of_two_moments_of_one_step_are_never_bound_together(node_of: Callable[..., Node]) -> None:
    node = node_of(ranks=2)
    [node.restore("a", rank=rank) for rank in (0, 1)]
    seal(node.slots[0][0], rank=0, world=2, sequence=1, step=5)
    seal(node.slots[1][0], rank=1, world=2, sequence=1, step=5, save_id="1-5-1")

    assert node.archive.scan() == 1
    assert node.slots[0][0].get("result") == Result.FAILED, "rank 1 has gone on without it"
    seal(node.slots[0][1], rank=0, world=2, sequence=2, step=5, save_id="1-5-1")
    assert node.archive.scan() == 0
    assert [info.save_id for info in load.checkpoints(node.root / "checkpoints")] == ["1-5-1"]
