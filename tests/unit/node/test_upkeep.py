"""What the archiver does with a folder besides saving, in this process."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from holdfast.checkpoint import load, pack
from holdfast.checkpoint.commit import commit
from holdfast.checkpoint.room import Room
from holdfast.checkpoint.slots import Result, Slot, SlotSet, State
from holdfast.node.archive import Archive
from holdfast.node.eventlog import EventLog
from holdfast.node.upkeep import Upkeep
from holdfast.plan import Best, CheckpointPlan, Keep
from tests.slotparts import part_of, seal


@pytest.fixture
def log(tmp_path: Path) -> EventLog:
    return EventLog(tmp_path / "archiver.jsonl")


def said(tmp_path: Path, name: str) -> list[dict[str, Any]]:
    path = tmp_path / "archiver.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line for line in map(json.loads, lines) if line["event"] == name]


def plan(tmp_path: Path, **fields: Any) -> CheckpointPlan:
    return CheckpointPlan(dir=str(tmp_path / "checkpoints"), **fields)


@pytest.fixture
def archive(tmp_path: Path, log: EventLog) -> Iterator[Archive]:
    """One with three checkpoints a day apart."""
    made = Archive(plan(tmp_path), log, Room(tmp_path / "slots.lock"), "digits")
    made.open()
    for n in (1, 2, 3):
        commit(made.folder, [part_of(seed=n, sequence=n, step=n, time_s=time.time() - 86400.0 * (3 - n))])
    yield made
    made.folder.leave()


def test_pins_removals_and_prunes_are_answered_and_written_down(
    tmp_path: Path, archive: Archive, log: EventLog
) -> None:
    upkeep = Upkeep(archive, log)
    at = {"term": 1, "sequence": 1}

    assert upkeep.asked({"op": "pin", **at, "reason": "dear"}) == {"ok": True}
    refused = upkeep.asked({"op": "remove", **at})
    assert (refused["ok"], refused["exit_code"]) == (False, 2)
    assert "is pinned" in refused["error"]
    assert upkeep.asked({"op": "prune", "than_s": time.time(), "dry_run": True}) == {"ok": True, "removed": []}
    assert upkeep.asked({"op": "unpin", **at}) == {"ok": True}
    gone = [{**at, "step": 1}]
    assert upkeep.asked({"op": "prune", "than_s": time.time(), "dry_run": True}) == {"ok": True, "removed": gone}
    assert said(tmp_path, "retained") == []
    assert upkeep.asked({"op": "prune", "than_s": time.time()}) == {"ok": True, "removed": gone}
    assert [line["removed"] for line in said(tmp_path, "retained")] == [gone]


@pytest.mark.parametrize(
    ("request_", "problem"),
    [
        ({"op": "pin", "term": 1, "sequence": 9}, "no checkpoint of term 1, sequence 9"),
        ({"op": "pin", "term": "x", "sequence": 9}, "needs term and sequence"),
        ({"op": "remove"}, "needs term and sequence"),
        ({"op": "unpin", "term": 1, "sequence": 1}, "is not pinned"),
        ({"op": "prune", "than_s": True}, "needs than_s, a number"),
    ],
)
def test_what_cannot_be_done_is_said(archive: Archive, log: EventLog, request_: dict[str, Any], problem: str) -> None:
    answer = Upkeep(archive, log).asked(request_)

    assert (answer["ok"], answer["exit_code"]) == (False, 2)
    assert problem in answer["error"]


def flip(archive: Archive, info: load.CheckpointInfo) -> str:
    """One bit of a checkpoint's pack on the disk; the pack's name."""
    name = info.packs[0].name
    with pack.path(archive.folder.root, name).open("r+b") as file:
        file.seek(4096 + 17)
        byte = file.read(1)[0]
        file.seek(4096 + 17)
        file.write(bytes([byte ^ 4]))
    return name


def test_idle_it_finds_damage_says_so_once_and_the_next_save_heals_it(
    tmp_path: Path, log: EventLog, archive: Archive
) -> None:
    flip(archive, load.checkpoints(archive.folder.root)[2])
    archive.folder.leave()
    fresh = Archive(plan(tmp_path), log, Room(tmp_path / "slots.lock"), "digits")  # one that has read nothing yet
    upkeep = Upkeep(fresh, log)
    for _ in range(10):
        upkeep.idle()

    (warning,) = said(tmp_path, "warning")
    assert warning["id"] == "damage-found"
    assert "damaged chunk at offset 0: a part of the checkpoints of step 3 cannot be restored" in warning["message"]
    commit(fresh.folder, [part_of(seed=3, sequence=4, step=4)])
    assert [load.verify(fresh.folder.root, info) for info in load.checkpoints(fresh.folder.root)[2:]] == [[], []]
    fresh.folder.leave()


def test_idle_it_finds_a_damaged_manifest(tmp_path: Path, archive: Archive, log: EventLog) -> None:
    upkeep = Upkeep(archive, log)
    archive.begin()
    path = load.checkpoints(archive.folder.root)[1].path
    path.write_bytes(path.read_bytes().replace(b'"step":2', b'"step":9'))
    for _ in range(10):
        upkeep.idle()

    (warning,) = said(tmp_path, "warning")
    assert "does not match the hash in its name" in warning["message"]


def test_damage_does_not_count_as_a_checkpoint_to_fall_back_to(tmp_path: Path, archive: Archive, log: EventLog) -> None:
    for info in load.checkpoints(archive.folder.root)[1:]:
        flip(archive, info)
    archive.folder.leave()
    fresh = Archive(plan(tmp_path, keep=Keep(last=2)), log, Room(tmp_path / "slots.lock"), "digits")
    upkeep = Upkeep(fresh, log)
    for _ in range(10):
        upkeep.idle()
    assert upkeep.asked({"op": "retain"})["removed"] == [{"term": 1, "sequence": 2, "step": 2}]

    assert [info.step for info in load.checkpoints(fresh.folder.root)] == [1, 3]
    fresh.folder.leave()


@pytest.fixture
def slots(archive: Archive) -> Iterator[list[Slot]]:
    """What a rank holds, and the archive too."""
    fds = [os.eventfd(0), os.eventfd(0), *(os.memfd_create("slot") for _ in range(3))]
    given = SlotSet.of(0, [os.dup(one) for one in fds])
    mine = [Slot(fd) for fd in fds[2:]]
    archive.add_slots(given)
    yield mine
    for slot in mine:
        slot.close()
    for fd in fds:
        os.close(fd)


def test_a_save_past_its_time_is_given_up_and_the_slot_returned(
    tmp_path: Path, log: EventLog, slots: list[Slot], archive: Archive
) -> None:
    archive.plan = plan(tmp_path, timeout_s=-1.0)
    seal(slots[0], seed=9, sequence=4, step=4)

    archive.scan()

    assert (slots[0].get("result"), slots[0].state) == (Result.FAILED, State.HELD)
    assert "took longer than checkpoint.timeout" in said(tmp_path, "save_failed")[0]["message"]
    assert [info.step for info in load.checkpoints(archive.folder.root)] == [1, 2, 3]
    assert list((archive.folder.root / "tmp").iterdir()) == []


def test_a_save_applies_retention_and_says_so(tmp_path: Path, slots: list[Slot], archive: Archive) -> None:
    archive.plan = plan(tmp_path, keep=Keep(last=2))
    seal(slots[0], seed=9, sequence=4, step=4)

    archive.scan()

    assert [info.step for info in load.checkpoints(archive.folder.root)] == [3, 4]
    assert [[one["step"] for one in line["removed"]] for line in said(tmp_path, "retained")] == [[1, 2]]


def test_a_checkpoint_carries_its_name(tmp_path: Path, slots: list[Slot], archive: Archive) -> None:
    archive.plan = plan(tmp_path, name="{project}-{step:04d}-{metric:.2f}", keep=Keep(best=Best(metric="loss")))
    seal(slots[0], seed=9, sequence=4, step=4, metrics={"loss": 0.125})

    archive.scan()

    assert load.checkpoints(archive.folder.root)[-1].name == "digits-0004-0.12"
    assert said(tmp_path, "committed")[0]["name"] == "digits-0004-0.12"
