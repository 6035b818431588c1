"""The archiver's side of a mirror: whatever is wrong with the mirror, the archiver lives."""

from __future__ import annotations

import json
import select
import time
from pathlib import Path
from typing import Any

import pytest

from holdfast.checkpoint import canonical, load, pins
from holdfast.checkpoint.folder import Folder
from holdfast.checkpoint.lineage import Position
from holdfast.errors import HoldfastError
from holdfast.goodput import Costs, Failures, interval
from holdfast.mirror import fence
from holdfast.mirror.fence import BEAT_S, HeldElsewhere
from holdfast.node.eventlog import EventLog
from holdfast.node.mirroring import RETRY_S, Mirroring
from holdfast.node.mishaps import Mishaps
from holdfast.plan import CheckpointPlan, Every, Keep, MirrorPlan, Plan
from holdfast.runs import RunDir
from holdfast.stores import connect
from tests.mirrors import Machine


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path / "checkpoints")
    made.begin(1)
    made.save(seed=1, sequence=1, step=10, time_s=1000.0)
    return made


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = RunDir(tmp_path / "digits")
    made.root.mkdir()
    return made


def mirroring_of(
    run: RunDir,
    machine: Machine,
    *,
    keep: Keep | None = None,
    timeout_s: float = 60.0,
    yields: bool = False,
    **mirror: Any,
) -> Mirroring:
    """What an archiver of this run has, with `every: auto`."""
    to = MirrorPlan(**{"url": str(run.root.parent / "mirror"), **mirror})
    checkpoint = CheckpointPlan(
        dir=str(machine.root), every=Every(auto=True), mirror=to, keep=keep or Keep(), timeout_s=timeout_s
    )
    plan = Plan(
        run="digits", name="digits", dir=str(run.root), argv=("true",), cwd="/", checkpoint=checkpoint, yields=yields
    )
    log = EventLog(run.archiver_log)
    return Mirroring(run, plan, log, Mishaps(log))


def settled(mirroring: Mirroring) -> None:
    """Wait for the round that is under way."""
    rounds, _ = mirroring.workers
    assert select.select([rounds.wake], [], [], 30)[0]
    rounds.collect()


def told(run: RunDir, event: str) -> list[dict[str, Any]]:
    lines = map(json.loads, run.archiver_log.read_text().splitlines())
    return [line for line in lines if line["event"] == event]


def test_a_mirror_that_a_later_version_has_written_is_told_and_left_alone(run: RunDir, machine: Machine) -> None:
    mirror = run.root.parent / "mirror"
    mirror.mkdir()
    (mirror / "format.json").write_bytes(canonical.encode_checked({"format": "holdfast", "version": 2}))
    mirroring = mirroring_of(run, machine)

    mirroring.tick(time.monotonic())
    settled(mirroring)

    (warning,) = told(run, "warning")
    assert warning["id"] == "mirror-unreachable"
    assert "version 2" in warning["message"]
    assert [path.name for path in mirror.iterdir()] == ["format.json"]


def test_auto_sends_at_the_interval_that_loses_least_and_the_last_one_always(run: RunDir, machine: Machine) -> None:
    mirroring = mirroring_of(run, machine)
    mirroring.tick(time.monotonic())
    settled(mirroring)
    (chosen,) = told(run, "interval")
    for sequence, time_s in ((2, 1000.0 + chosen["seconds"] / 2), (3, 1001.0 + chosen["seconds"])):
        machine.save(seed=sequence, sequence=sequence, step=10 * sequence, time_s=time_s)
        mirroring.wake()
        mirroring.tick(time.monotonic())
        settled(mirroring)
    assert [10, 30] == [line["step"] for line in told(run, "mirrored")]
    machine.save(seed=4, sequence=4, step=40, time_s=1002.0 + chosen["seconds"])

    over = list[None]()
    mirroring.finish(over.append)
    settled(mirroring)

    assert ([10, 30, 40], [None]) == ([line["step"] for line in told(run, "mirrored")], over)
    assert not list((run.root.parent / "mirror" / "leases").glob("*.alive")), "another machine need not wait"
    costs = Costs(**{name: chosen[name] for name in ("blocked_s", "write_s", "restart_s")})
    again = interval("mirror", costs, Failures(), memory=False, max_overhead_ratio=0.03)
    assert 0 < chosen["blocked_s"]
    assert again.to_json().items() <= chosen.items()


def test_a_cadence_of_its_own_leaves_auto_to_the_disk(run: RunDir, machine: Machine) -> None:
    mirroring = mirroring_of(run, machine, every_steps=10)
    mirroring.tick(time.monotonic())
    settled(mirroring)

    assert [10] == [line["step"] for line in told(run, "mirrored")]
    assert [] == told(run, "interval")


def one_round(mirroring: Mirroring, in_s: float = 0.0) -> None:
    mirroring.wake()
    mirroring.tick(time.monotonic() + in_s)
    settled(mirroring)


def test_one_that_is_away_is_told_once_tried_again_after_a_while_and_caught_up(run: RunDir, machine: Machine) -> None:
    first_s, _ = RETRY_S
    mirroring = mirroring_of(run, machine, url=str(run.root / "nas" / "mirror"))
    one_round(mirroring)
    mirroring.tick(time.monotonic())
    assert not mirroring.workers[0].outstanding, "not at once"
    mirroring.tick(time.monotonic() + first_s)  # though nothing was saved meanwhile
    settled(mirroring)
    (run.root / "nas").mkdir()
    mirroring.tick(time.monotonic() + 2 * first_s)
    settled(mirroring)

    assert ["mirror-unreachable"] == [line["id"] for line in told(run, "warning")]
    assert ["mirror-unreachable"] == [line["id"] for line in told(run, "cleared")]
    assert [10] == [line["step"] for line in told(run, "mirrored")]


def test_who_is_superseded_stays_so_until_the_next_archiver_asks(run: RunDir, machine: Machine) -> None:
    lease = run.root.parent / "mirror" / "leases" / f"000002-{'0' * 64}.json"
    lease.parent.mkdir(parents=True)
    lease.write_bytes(b"of another machine")
    mirroring = mirroring_of(run, machine)
    one_round(mirroring)
    assert ["mirror-superseded"] == [line["id"] for line in told(run, "warning")]

    mirroring.wake()
    mirroring.tick(time.monotonic() + 1000.0)
    assert not mirroring.workers[0].outstanding
    lease.unlink()
    one_round(mirroring_of(run, machine))

    assert [10] == [line["step"] for line in told(run, "mirrored")]


def test_a_run_of_a_pool_hears_that_it_is_to_stop_once_and_sends_what_it_has_all_the_same(
    run: RunDir, machine: Machine
) -> None:
    store = connect(str(run.root.parent / "mirror"), {})
    fence.tell_to_stop(store)
    alone, mirroring = mirroring_of(run, machine), mirroring_of(run, machine, yields=True)
    one_round(alone)
    assert [] == told(run, "warning")

    one_round(mirroring)
    mirroring.wake()
    one_round(mirroring)

    assert ["mirror-stop"] == [line["id"] for line in told(run, "warning")]
    assert [10] == [line["step"] for line in told(run, "mirrored")]
    mirroring.finish(lambda _: None)
    settled(mirroring)
    assert not fence.is_told_to_stop(store)


def test_a_run_of_a_pool_that_saves_rarely_hears_of_it_with_its_next_sign_of_life(
    run: RunDir, machine: Machine
) -> None:
    mirroring = mirroring_of(run, machine, yields=True)
    rounds, pulse = mirroring.workers
    one_round(mirroring)
    assert select.select([pulse.wake], [], [], 30)[0]  # the first sign of life
    pulse.collect()

    fence.tell_to_stop(connect(str(run.root.parent / "mirror"), {}))
    mirroring.tick(time.monotonic() + 2 * BEAT_S)
    assert not rounds.outstanding, "there is nothing to send"
    assert select.select([pulse.wake], [], [], 30)[0]
    pulse.collect()
    mirroring.tick(time.monotonic())
    settled(mirroring)

    assert ["mirror-stop"] == [line["id"] for line in told(run, "warning")]


def test_a_run_of_a_pool_that_saves_nothing_hears_of_it_too(run: RunDir, tmp_path: Path) -> None:
    store, nothing_saved = connect(str(run.root.parent / "mirror"), {}), Machine(tmp_path / "empty")
    fence.tell_to_stop(store)
    one_round(mirroring_of(run, nothing_saved))  # of no pool
    assert fence.is_told_to_stop(store)
    fence.revoke_stop(store)
    mirroring = mirroring_of(run, nothing_saved, yields=True)
    _, pulse = mirroring.workers
    one_round(mirroring)
    assert select.select([pulse.wake], [], [], 30)[0]
    pulse.collect()
    assert not run.archiver_log.exists()

    fence.tell_to_stop(store)
    mirroring.tick(time.monotonic() + 2 * BEAT_S)
    assert select.select([pulse.wake], [], [], 30)[0]
    pulse.collect()
    mirroring.tick(time.monotonic())
    settled(mirroring)

    assert ["mirror-stop"] == [line["id"] for line in told(run, "warning")]
    mirroring.finish(lambda _: None)
    settled(mirroring)
    assert not fence.is_told_to_stop(store), "nobody else is to take it for word of theirs"


def test_what_is_known_of_another_mirror_does_not_count(run: RunDir, machine: Machine) -> None:
    run.mirror.write_text(json.dumps({"url": "/elsewhere", "unreachable_since_s": 5.0, "enforced": True}))

    one_round(mirroring_of(run, machine))

    assert [] == told(run, "cleared")


def test_a_lease_that_was_held_is_known_to_the_next_archiver(run: RunDir, machine: Machine) -> None:
    one_round(mirroring_of(run, machine))
    for lease in (machine.root / "leases").iterdir():  # as retention does in time
        lease.unlink()
    machine.begin(2, base=Position(1, 1))
    machine.save(seed=2, term=2, sequence=2, step=20, time_s=1e9)

    one_round(mirroring_of(run, machine))

    assert [10, 20] == [line["step"] for line in told(run, "mirrored")]


def test_what_is_pinned_here_stays_there(run: RunDir, machine: Machine) -> None:
    for sequence in (2, 3):
        machine.save(seed=sequence, sequence=sequence, step=10 * sequence)
    pins.pin(Folder(machine.root), Position(1, 1), "dear", 1.0)
    mirroring = mirroring_of(run, machine, keep=Keep(last=2), every_steps=1)
    one_round(mirroring)
    for sequence in (4, 5):
        machine.save(seed=sequence, sequence=sequence, step=10 * sequence)
        one_round(mirroring)

    assert [10, 40, 50] == [info.step for info in load.checkpoints(run.root.parent / "mirror")]


@pytest.mark.parametrize(("timeout_s", "sent"), [(0.2, []), (60.0, [10, 20])])
def test_the_end_waits_no_longer_than_it_may_and_says_what_is_missing(
    run: RunDir, machine: Machine, timeout_s: float, sent: list[int]
) -> None:
    machine.save(seed=2, sequence=2, step=20, sizes=(700_000,) * 3)
    mirroring = mirroring_of(run, machine, timeout_s=timeout_s, bytes_per_s=2e6)

    mirroring.finish(lambda _: None)
    settled(mirroring)

    assert sent == [info.step for info in load.checkpoints(run.root.parent / "mirror")]
    assert ("mirror-behind" in {line["id"] for line in told(run, "warning")}) == (sent == [])


def test_nothing_is_brought_for_another_number_of_ranks_or_while_another_machine_writes(
    run: RunDir, machine: Machine, tmp_path: Path
) -> None:
    one_round(mirroring_of(run, machine))
    bare = Machine(tmp_path / "bare")
    mirroring, into = mirroring_of(run, bare), bare.folder()
    with pytest.raises(HeldElsewhere):
        mirroring.bring(into, "newest", 1)
    for sign in (run.root.parent / "mirror" / "leases").glob("*.alive"):
        sign.unlink()
    with pytest.raises(HoldfastError, match="of 1 ranks, this attempt has 2"):
        mirroring.bring(into, "newest", 2)
    assert list(bare.root.glob("packs/*/*")) == []

    assert mirroring.bring(into, "newest", 1)
    into.leave()
