"""The newest intact checkpoint, wherever it lies: on the disk, else on the mirror."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from holdfast.checkpoint import collect, load, pack
from holdfast.checkpoint.room import Room
from holdfast.checkpoint.slots import Slot, SlotSet
from holdfast.checkpoint.survey import CheckpointInfo
from holdfast.errors import StoreRefused
from holdfast.node.archive import Archive
from holdfast.node.eventlog import EventLog
from holdfast.node.mirroring import Mirroring
from holdfast.node.mishaps import Mishaps
from holdfast.node.restoring import Restoring
from holdfast.plan import CheckpointPlan, Keep, MirrorPlan, Plan
from holdfast.runs import RunDir
from holdfast.stores import connect
from tests.mirrors import Machine, state_of
from tests.slotparts import contents

STEPS = (10, 20, 30)


@dataclass
class Run:
    """Three checkpoints, all of them on a mirror, and what an attempt would be given."""

    root: Path

    def __post_init__(self) -> None:
        self.machine, self.url = Machine(self.root / "checkpoints"), str(self.root / "mirror")
        self.machine.begin(1)
        self.infos = [self.machine.save(seed=step, sequence=step // 10, step=step) for step in STEPS]
        folder = self.machine.folder()
        collect.retain(folder, Keep(last=3))  # as after every commit; it notes which is the newest
        folder.leave()
        self.bells = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]
        self.memory = [os.memfd_create("slot") for _ in range(3)]

    def send(self, *infos: CheckpointInfo) -> None:
        keeper = self.machine.keeper(connect(self.url, {}))
        for info in infos:
            keeper.push(info)

    def restore(self, want: Any = "newest") -> tuple[dict[str, Any], list[bytes]]:
        """The answer, and the bytes in the slot."""
        run, log = RunDir(self.root / "digits"), EventLog(self.root / "archiver.jsonl")
        checkpoint = CheckpointPlan(dir=str(self.machine.root), mirror=MirrorPlan(url=self.url))
        plan = Plan(run="digits", name="digits", dir=str(run.root), argv=("true",), cwd="/", checkpoint=checkpoint)
        archive = Archive(checkpoint, log, Room(self.root / "slots.lock"), "digits")
        archive.add_slots(SlotSet.of(0, [os.dup(one) for one in (*self.bells, *self.memory)]))
        request = {"rank": 0, "world": 1, "attempt": 2, "claim": "b", "want": want}
        answer = Restoring(archive, log, Mirroring(run, plan, log, Mishaps(log))).restore(request, 0.0)
        held = self.held(answer["slot"]) if answer["ok"] and answer["slot"] is not None else []
        collect.retain(archive.folder, Keep(last=3))
        archive.folder.leave()
        return answer, held

    def held(self, index: int) -> list[bytes]:
        slot = Slot(self.memory[index])
        slot.refresh()
        found = contents(slot.view, slot.read_table())
        slot.close()
        return found

    def fetched(self) -> list[int]:
        lines = map(json.loads, (self.root / "archiver.jsonl").read_text().splitlines())
        return [line["step"] for line in lines if line["event"] == "fetched"]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    (tmp_path / "digits").mkdir()
    made = Run(tmp_path)
    yield made
    for descriptor in (*made.bells, *made.memory):
        os.close(descriptor)


def flip(run: Run, info: CheckpointInfo) -> None:
    """One bit of what it has stored."""
    path = pack.path(run.machine.root, info.packs[0].name)
    raw = bytearray(path.read_bytes())
    raw[4096 + 17] ^= 4
    path.write_bytes(raw)


def garble(run: Run, info: CheckpointInfo) -> None:
    info.path.write_bytes(b"{}")


def lose(run: Run, info: CheckpointInfo) -> None:
    info.path.unlink()


@pytest.mark.parametrize("harm", [flip, garble, lose])
@pytest.mark.parametrize("want", ["newest", {"step": 30}])
def test_a_damaged_newest_one_comes_from_the_mirror_and_stays(run: Run, harm: Any, want: Any) -> None:
    expected = state_of(run.machine.root)
    run.send(*run.infos)
    harm(run, run.infos[2])

    answer, held = run.restore(want)

    assert (answer["step"], answer["tier"], held) == (30, "mirror", expected[1])
    assert len(answer["fell_back"]) <= 1
    assert run.fetched() == [30]
    again, held = run.restore(want)  # retention took the damaged one, not the other
    assert (again["step"], again["tier"], held) == (30, "disk", expected[1])


def test_what_is_intact_here_is_not_fetched(run: Run) -> None:
    run.send(*run.infos)
    assert (run.restore()[0]["tier"], run.fetched()) == ("disk", [])


def test_an_older_one_here_comes_before_an_older_one_there(run: Run) -> None:
    run.send(*run.infos[:2])
    flip(run, run.infos[2])

    answer, _ = run.restore()

    assert (answer["step"], answer["tier"], run.fetched()) == (20, "disk", [])
    assert "sequence 3 was never sent" in answer["fell_back"][1]


def test_damaged_here_and_there_the_next_one_is_tried_in_both(run: Run) -> None:
    run.send(*run.infos)
    for info in run.infos[1:]:
        flip(run, info)
    there = load.checkpoints(Path(run.url))[2]
    path = pack.path(Path(run.url), there.packs[-1].name)
    path.write_bytes(bytes(path.stat().st_size))

    answer, _ = run.restore()

    assert (answer["step"], answer["tier"], run.fetched()) == (20, "mirror", [20])


def test_a_mirror_that_is_away_is_told_once_and_an_older_one_here_taken(run: Run) -> None:
    run.send(*run.infos)
    for info in run.infos[1:]:
        flip(run, info)
    shutil.rmtree(run.url)

    answer, _ = run.restore()

    assert (answer["step"], answer["tier"]) == (10, "disk")
    (said,) = [sentence for sentence in answer["fell_back"] if "was not had" in sentence]
    assert "sequence 3 was not had: there is no mirror at" in said


def test_a_start_from_nothing_asks_no_mirror(run: Run) -> None:
    shutil.rmtree(run.machine.root)  # as on a new disk
    run.url = str(run.root / "not" / "mounted")

    asked, _ = run.restore("newest")
    assert (asked["ok"], asked["exit_code"]) == (False, StoreRefused.exit_code)
    assert run.restore("nothing")[0]["ok"]


def test_a_folder_that_was_emptied_is_no_first_start(run: Run) -> None:
    """A disk that is not mounted, and its mount point is there."""
    EventLog(run.root / "archiver.jsonl").write("committed", step=30, term=1)
    shutil.rmtree(run.machine.root)

    answer, _ = run.restore()

    assert (answer["ok"], answer["exit_code"]) == (False, 12)
    assert answer["error"] == f"step 30 was committed to {run.machine.root}, where no checkpoint is any more"
    assert "mounted" in answer["hint"]
    assert not any((run.machine.root / "leases").glob("*"))


def test_an_attempt_that_died_before_it_committed_is_followed_by_a_start_from_nothing(run: Run) -> None:
    EventLog(run.root / "archiver.jsonl").write("save_failed", step=3)
    shutil.rmtree(run.machine.root)

    answer, _ = run.restore()

    assert (answer["ok"], answer["step"], answer["slot"]) == (True, 0, None)
