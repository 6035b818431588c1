"""Power fails at every single operation: afterwards there is the old checkpoint or the new one, bit for bit."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from holdfast.checkpoint import collect, lease, load, pins
from holdfast.checkpoint.commit import Part, commit
from holdfast.checkpoint.folder import Folder
from holdfast.checkpoint.lease import Lease
from holdfast.checkpoint.lineage import Position
from holdfast.checkpoint.repack import repack
from holdfast.plan import Keep
from holdfast.testing.crashdisk import CrashDisk, PowerCut
from tests.slotparts import contents, new_slot, part_of

ROOT = Path("/run/checkpoints")
SEEDS = range(4)
SLOT = new_slot()
OLD = part_of(seed=1, sequence=1, step=10)
NEW = part_of(seed=2, sequence=2, step=20)


def opened(disk: CrashDisk) -> Folder:
    folder = Folder(ROOT, disk)
    folder.open()
    return folder


def save(disk: CrashDisk, *parts: Part) -> None:
    folder = opened(disk)
    for part in parts:
        commit(folder, [part])
        collect.retain(folder, Keep(last=2))


def loaded(disk: CrashDisk) -> tuple[int, list[bytes]]:
    """Step and bytes of what a resume would continue from."""

    def into_slot(info: load.CheckpointInfo) -> list[str]:
        load.fill(ROOT, info, 0, SLOT, whole=True, disk=disk)
        return []

    chosen = load.choose(ROOT, attempt=into_slot, disk=disk)
    assert chosen.info is not None
    table = SLOT.read_table()
    assert table["step"] == chosen.info.step
    return chosen.info.step, contents(SLOT.view, table)


def bytes_of(part: Part) -> tuple[int, list[bytes]]:
    return part.table["step"], contents(part.slot, part.table)


def every_cut(begin: Callable[[], CrashDisk], act: Callable[[CrashDisk], object]) -> Iterator[CrashDisk]:
    """The disk after a reboot, for each operation of `act` at which the power failed and each way it may come back."""
    whole = begin()
    before = len(whole.operations)
    act(whole)
    count = len(whole.operations) - before
    assert count > 10
    for operation in range(count):
        disk = begin()
        disk.stop_at = len(disk.operations) + operation
        with pytest.raises(PowerCut):
            act(disk)
        yield disk.reboot()
        yield disk.reboot(keep_all=True)
        for seed in SEEDS:
            yield disk.reboot(random.Random(f"{operation} {seed}"))
    yield from (whole.reboot(random.Random(f"after {seed}")) for seed in range(20))


def with_old() -> CrashDisk:
    disk = CrashDisk()
    save(disk, OLD)
    return disk


def test_a_save_leaves_the_old_or_the_new() -> None:
    seen = set()
    for disk in every_cut(with_old, lambda disk: save(disk, NEW)):
        found = loaded(disk)
        assert found in (bytes_of(OLD), bytes_of(NEW))
        seen.add(found[0])
    assert seen == {10, 20}


def test_what_was_acknowledged_is_durable() -> None:
    disk = with_old()
    commit(opened(disk), [NEW])

    assert loaded(disk.reboot()) == bytes_of(NEW)


def test_saving_again_after_any_cut_works() -> None:
    for disk in every_cut(with_old, lambda disk: save(disk, NEW)):
        save(disk, NEW)
        assert loaded(disk.reboot()) == bytes_of(NEW)


def killed_at_every_operation() -> Iterator[CrashDisk]:
    """Disks on which a save went as far as each operation; the machine remembers, the medium does not yet."""
    for operation in itertools.count():
        disk = with_old()
        disk.stop_at = len(disk.operations) + operation
        try:
            save(disk, NEW)
        except PowerCut:
            disk.stop_at = None  # only the process died
            yield disk
        else:
            return


def test_a_save_repeated_by_the_next_process_is_durable_although_it_found_most_of_it_done() -> None:
    for disk in killed_at_every_operation():
        commit(opened(disk), [NEW])
        assert loaded(disk.reboot()) == bytes_of(NEW)


def test_what_a_resume_continued_from_survives_a_later_power_cut() -> None:
    for disk in killed_at_every_operation():
        opened(disk)
        assert loaded(disk) == loaded(disk.reboot())


def test_the_very_first_save_leaves_nothing_or_all_of_it() -> None:
    for disk in every_cut(CrashDisk, lambda disk: save(disk, NEW)):
        if load.choose(ROOT, disk=disk).info is not None:
            assert loaded(disk) == bytes_of(NEW)


def with_three() -> CrashDisk:
    disk = CrashDisk()
    folder = opened(disk)
    for sequence in (1, 2, 3):
        commit(folder, [part_of(seed=sequence, sequence=sequence, step=sequence)])
    return disk


def test_retention_never_costs_the_newest_and_never_leaves_half_of_one() -> None:
    for disk in every_cut(with_three, lambda disk: collect.retain(opened(disk), Keep(last=2)) and None):
        assert loaded(disk) == bytes_of(part_of(seed=3, sequence=3, step=3))
        for info in load.checkpoints(ROOT, disk):
            assert load.verify(ROOT, info, disk) == []


LINE = [part_of(seed=step, sizes=(4096, 9000, 20_000), sequence=step, step=step) for step in range(5)]
for _part in LINE:  # the first chunk never changes
    _part.slot[4096:8192] = LINE[0].slot[4096:8192]


def with_worn_packs() -> CrashDisk:
    """Two checkpoints whose frozen chunk lies in a pack that holds nothing else of theirs."""
    disk = CrashDisk()
    folder = opened(disk)
    for part in LINE[1:4]:
        commit(folder, [part])
        collect.retain(folder, Keep(last=2))
    return disk


def assert_all_intact(disk: CrashDisk, steps: set[int]) -> None:
    """These checkpoints are there, and whatever is listed is what was saved."""
    infos = load.checkpoints(ROOT, disk)
    assert steps <= {info.step for info in infos}
    for info in infos:
        load.fill(ROOT, info, 0, SLOT, whole=True, disk=disk)
        assert (info.step, contents(SLOT.view, SLOT.read_table())) == bytes_of(LINE[info.step])


def test_repacking_keeps_every_checkpoint_and_the_next_start_cleans_up() -> None:
    rewritten = set()
    for disk in every_cut(with_worn_packs, lambda disk: repack(opened(disk), least_gain_bytes=0)):
        assert_all_intact(disk, {2, 3})
        rewritten.add(tuple(info.rewritten for info in load.checkpoints(ROOT, disk)))
        folder = opened(disk)
        repack(folder, least_gain_bytes=0)
        collect.retain(folder, Keep(last=2))
        assert_all_intact(disk.reboot(), {2, 3})
        assert disk.list(ROOT / "tmp") == []
        assert len(disk.list(ROOT / "manifests")) == 2
        needed = {entry.name for info in load.checkpoints(ROOT, disk) for entry in info.packs}
        assert {name for prefix in disk.list(ROOT / "packs") for name in disk.list(ROOT / "packs" / prefix)} == {
            f"{name}.hfp" for name in needed
        }
    assert {(0, 0), (1, 1)} <= rewritten


def test_a_save_that_shares_chunks_leaves_the_old_or_the_new() -> None:
    def act(disk: CrashDisk) -> None:
        folder = opened(disk)
        commit(folder, [LINE[4]])
        collect.retain(folder, Keep(last=2))

    seen = set()
    for disk in every_cut(with_worn_packs, act):
        assert_all_intact(disk, {3})
        seen.add(loaded(disk)[0])
    assert seen == {3, 4}


def test_a_pin_is_there_or_not_and_what_it_protects_stays() -> None:
    def act(disk: CrashDisk) -> None:
        folder = opened(disk)
        collect.pin(folder, Position(1, 1), "dear", 1.0)
        collect.retain(folder, Keep(last=2))

    for disk in every_cut(with_three, act):
        pinned = Position(1, 1) in pins.pinned(ROOT, disk)
        infos = load.checkpoints(ROOT, disk)
        assert not pinned or infos[0].step == 1
        assert all(load.verify(ROOT, info, disk) == [] for info in infos)


def test_pruning_and_removing_never_leave_half_of_one() -> None:
    def act(disk: CrashDisk) -> None:
        folder = opened(disk)
        commit(folder, [part_of(seed=4, sequence=4, step=4)])
        collect.remove(folder, Position(1, 2))
        collect.prune(folder, Keep(), than_s=1e12)

    seen = set()
    for disk in every_cut(with_three, act):
        infos = load.checkpoints(ROOT, disk)
        seen.add(tuple(info.step for info in infos))
        assert all(load.verify(ROOT, info, disk) == [] for info in infos)
        assert loaded(disk)[0] in (3, 4)
    assert {(1, 2, 3), (1, 2, 3, 4), (1, 3, 4), (3, 4)} <= seen


def test_a_lease_is_there_or_not() -> None:
    going_back = Lease(term=2, claim="a", attempt=2, base=Position(1, 1), owner={}, time_s=1.0)
    seen = set()
    for disk in every_cut(with_three, lambda disk: lease.write(opened(disk), going_back)):
        seen.add(loaded(disk)[0])
    assert seen == {1, 3}


@pytest.mark.parametrize("capacity", [30_000, 45_000, 70_000, 100_000])
def test_a_full_disk_costs_the_save_and_nothing_else(capacity: int) -> None:
    disk = with_old()
    disk.capacity_bytes = disk.used_bytes() + capacity - 30_000
    folder = opened(disk)
    big = part_of(seed=2, sequence=2, step=20, sizes=(70_000, 20_000))

    with pytest.raises(OSError, match="No space left"):
        commit(folder, [big])
    collect.sweep(folder)
    used = disk.used_bytes()

    assert used <= with_old().used_bytes()
    assert loaded(disk) == bytes_of(OLD)
    disk.capacity_bytes = None
    save(disk, big)
    assert loaded(disk.reboot()) == bytes_of(big)
