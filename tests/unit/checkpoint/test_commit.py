"""Saves and what retention leaves of them, on a disk in memory."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from holdfast.checkpoint import collect, lease, load, manifest
from holdfast.checkpoint.canonical import Damaged, NewerFormat, encode_checked
from holdfast.checkpoint.commit import Part, Superseded, commit, publish
from holdfast.checkpoint.folder import Folder
from holdfast.checkpoint.lease import Lease
from holdfast.checkpoint.lineage import Position
from holdfast.checkpoint.manifest import PackEntry
from holdfast.checkpoint.pack import MAX_PACK_BYTES, path
from holdfast.fsio import BLOCK
from holdfast.plan import Best, Keep
from tests.slotparts import contents, new_slot, part_of
from tests.untrue import Untrue

ROOT = Path("/checkpoints")


def packs(folder: Folder) -> set[str]:
    return {name for prefix in folder.disk.list(ROOT / "packs") for name in folder.disk.list(ROOT / "packs" / prefix)}


def steps(folder: Folder) -> list[int]:
    return [info.step for info in load.checkpoints(ROOT, folder.disk)]


def test_equal_chunks_are_stored_once_and_come_back_in_every_place(folder: Folder) -> None:
    part = part_of(seed=1, sizes=(5000, 5000, 5000))
    second = part.table["chunks"][1]["offset"]
    part.slot[second : second + 8192] = part.slot[4096 : 4096 + 8192]

    made = commit(folder, [part])
    slot = new_slot()
    load.fill(ROOT, load.checkpoints(ROOT, folder.disk)[0], 0, slot, whole=True, disk=folder.disk)

    assert made.written_bytes == 2 * 3 * 4096 + 4096
    assert contents(slot.view, slot.read_table()) == contents(part.slot, part.table)


def test_an_identical_pack_is_not_written_twice(folder: Folder) -> None:
    first = commit(folder, [part_of(seed=1, sequence=1, step=1)])
    again = commit(folder, [part_of(seed=1, sequence=2, step=2)])

    assert (again.written_bytes, again.manifest.packs) == (0, first.manifest.packs)


def test_a_damaged_pack_of_that_name_is_written_anew(folder: Folder) -> None:
    first = commit(folder, [part_of(seed=1, sequence=1, step=1)])
    target = path(ROOT, first.manifest.packs[0].name)
    folder.disk.remove(target)
    folder.disk.create(target).append([b"x" * first.manifest.packs[0].size_bytes])

    again = Folder(ROOT, folder.disk)  # another archiver: this one trusts what it has read once
    again.open()
    commit(again, [part_of(seed=1, sequence=2, step=2)])

    assert [load.verify(ROOT, info, folder.disk) for info in load.checkpoints(ROOT, folder.disk)] == [[], []]


def test_a_damaged_manifest_of_that_name_is_written_anew(folder: Folder) -> None:
    made = commit(folder, [part_of(seed=1)])
    broken = ROOT / "manifests" / made.file_name
    folder.disk.remove(broken)
    folder.disk.create(broken).append([b"{}"])

    commit(folder, [part_of(seed=1)])

    assert [load.verify(ROOT, info, folder.disk) for info in load.checkpoints(ROOT, folder.disk)] == [[]]


@pytest.mark.parametrize(("kind", "at", "said"), [(".hfp", BLOCK, "damaged chunk"), (".json", 17, "reads back diff")])
def test_what_the_medium_keeps_otherwise_is_not_committed(kind: str, at: int, said: str) -> None:
    disk = Untrue()
    folder = Folder(ROOT, disk)
    folder.open()
    disk.kind, disk.at = kind, at

    with pytest.raises((Damaged, OSError), match=said):
        commit(folder, [part_of(seed=1)])

    assert load.checkpoints(ROOT, disk) == []


def test_a_manifest_that_nobody_could_read_is_not_published(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    made = commit(folder, [part_of(seed=1, sequence=1, step=1)]).manifest
    outside = PackEntry(made.packs[0].name, MAX_PACK_BYTES + 1)

    with pytest.raises(Damaged, match="impossible pack"):
        publish(folder, dataclasses.replace(made, packs=(outside,)))
    monkeypatch.setattr(manifest, "MAX_MANIFEST_BYTES", len(made.raw) - 1)
    with pytest.raises(Damaged, match="more than the"):
        commit(folder, [part_of(seed=1, sequence=2, step=2)])

    monkeypatch.undo()
    assert steps(folder) == [1]


def test_a_large_state_is_spread_over_packs_within_their_limit(folder: Folder) -> None:
    made = commit(folder, [part_of(seed=1, sizes=(20 << 20,) * 4)])

    assert [entry.size_bytes <= MAX_PACK_BYTES for entry in made.manifest.packs] == [True, True]
    assert load.verify(ROOT, load.checkpoints(ROOT, folder.disk)[0], folder.disk) == []


def test_a_state_without_tensors_is_a_checkpoint_too(folder: Folder) -> None:
    commit(folder, [part_of(sizes=(), state={"epoch": 3})])
    slot = new_slot()
    load.fill(ROOT, load.checkpoints(ROOT, folder.disk)[0], 0, slot, whole=True, disk=folder.disk)

    assert slot.read_table()["state"] == {"epoch": 3}


def test_padding_that_is_not_zero_never_reaches_a_pack(folder: Folder) -> None:
    dirty, clean = part_of(seed=1), part_of(seed=1)
    dirty.slot[4096 + 5000] = 7

    assert commit(folder, [dirty]).manifest.packs == commit(folder, [clean]).manifest.packs


def test_saving_the_same_again_is_the_same_commit(folder: Folder) -> None:
    assert commit(folder, [part_of(seed=1)]).file_name == commit(folder, [part_of(seed=1)]).file_name
    assert len(steps(folder)) == 1


def test_parts_of_different_saves_are_refused(folder: Folder) -> None:
    parts = [part_of(rank=0, world=2, step=1), part_of(rank=1, world=2, step=2)]

    for other in ({"step": 2}, {"term": 2}, {"save_id": "1-1-2"}):
        stranger = part_of(rank=1, world=2, **{"step": 1, "save_id": "1-1", **other})
        with pytest.raises(Damaged, match="rank 1 belongs to another save"):
            commit(folder, [parts[0], stranger])
    with pytest.raises(Damaged, match="rank 0 belongs to another save"):
        commit(folder, [Part(parts[1].table, parts[1].slot)])


def test_a_term_that_is_over_cannot_commit(folder: Folder) -> None:
    lease.write(folder, Lease(term=2, claim="b", attempt=2, base=None, owner={}, time_s=0.0))

    with pytest.raises(Superseded, match="term 1 is over"):
        commit(folder, [part_of(term=1)])
    assert steps(folder) == []


def test_retention_removes_packs_that_nobody_needs_and_keeps_shared_ones(folder: Folder) -> None:
    for sequence, seed in enumerate((1, 2, 1, 3, 1), 1):
        commit(folder, [part_of(seed=seed, sequence=sequence, step=sequence, metrics={"loss": 9 - seed})])
    assert len(packs(folder)) == 3

    removed = collect.retain(folder, Keep(last=2, best=Best(metric="loss", mode="min")))

    assert ([info.step for info in removed], steps(folder), len(packs(folder))) == ([1, 2, 3], [4, 5], 2)
    assert all(load.verify(ROOT, info, folder.disk) == [] for info in load.checkpoints(ROOT, folder.disk))


def test_retention_notes_which_is_the_newest_so_that_its_loss_is_told(folder: Folder) -> None:
    made = [commit(folder, [part_of(seed=sequence, sequence=sequence, step=sequence)]) for sequence in (1, 2, 3)]
    collect.retain(folder, Keep())
    folder.disk.remove(ROOT / "manifests" / made[-1].file_name)

    assert load.problems(ROOT, folder.disk) == [f"manifest {made[-1].file_name} is missing"]


def test_what_is_aside_is_left_alone(folder: Folder) -> None:
    for sequence in (1, 2, 3):
        commit(folder, [part_of(seed=sequence, sequence=sequence, step=sequence)])
    lease.write(folder, Lease(term=2, claim="b", attempt=2, base=Position(1, 1), owner={}, time_s=0.0))
    for sequence in (2, 3, 4):
        commit(folder, [part_of(seed=sequence + 10, term=2, sequence=sequence, step=sequence + 10)])
    collect.retain(folder, Keep(last=2))

    assert [(info.step, info.live) for info in load.checkpoints(ROOT, folder.disk)] == [
        (2, False), (3, False), (13, True), (14, True),
    ]  # fmt: skip


def test_a_damaged_manifest_keeps_packs_until_two_newer_ones_are_whole(folder: Folder) -> None:
    made = commit(folder, [part_of(seed=1, sequence=1, step=1)])
    broken = ROOT / "manifests" / made.file_name
    folder.disk.remove(broken)
    folder.disk.create(broken).append([b"{}"])
    commit(folder, [part_of(seed=2, sequence=2, step=2)])
    collect.retain(folder, Keep())
    assert len(packs(folder)) == 2

    commit(folder, [part_of(seed=3, sequence=3, step=3)])
    collect.retain(folder, Keep())

    assert (len(packs(folder)), steps(folder)) == (2, [2, 3])


def test_a_damaged_manifest_that_is_the_newest_keeps_its_packs(folder: Folder) -> None:
    for sequence in (1, 2, 3):
        made = commit(folder, [part_of(seed=sequence, sequence=sequence, step=sequence)])
    broken = ROOT / "manifests" / made.file_name
    folder.disk.remove(broken)
    folder.disk.create(broken).append([b"{}"])

    collect.retain(folder, Keep(last=1))

    assert made.file_name in folder.disk.list(ROOT / "manifests")
    assert len(packs(folder)) == 3


@pytest.mark.parametrize("left", [0, BLOCK])
def test_a_checkpoint_that_lacks_a_part_does_not_count(folder: Folder, left: int) -> None:
    for sequence in (1, 2, 3, 4):
        made = commit(folder, [part_of(seed=sequence, sequence=sequence, step=sequence)])
        if sequence > 2:
            target = path(ROOT, made.manifest.packs[0].name)
            folder.disk.remove(target)
            if left:
                folder.disk.create(target).append([bytes(left)])

    collect.retain(folder, Keep(last=1))

    assert steps(folder) == [1, 2, 4]


def test_leases_older_than_every_checkpoint_go(folder: Folder) -> None:
    def take(term: int) -> None:
        lease.write(folder, Lease(term=term, claim=str(term), attempt=term, base=None, owner={}, time_s=0.0))

    for term in (1, 2, 3):
        take(term)
    commit(folder, [part_of(term=3)])
    for term in (4, 5):
        take(term)
    collect.retain(folder, Keep())

    assert [lease.term_of(name) for name in folder.disk.list(ROOT / "leases")] == [3, 4, 5]


def test_a_folder_of_a_later_version_is_refused(folder: Folder) -> None:
    folder.put("format.json", encode_checked({"format": "holdfast", "version": 2}), replace=True)

    with pytest.raises(NewerFormat, match="version 2"):
        Folder(ROOT, folder.disk).open()


def test_a_step_asked_for_is_found_aside_and_live_comes_first(folder: Folder) -> None:
    for sequence in (1, 2):
        commit(folder, [part_of(seed=sequence, sequence=sequence, step=sequence)])
    lease.write(folder, Lease(term=2, claim="b", attempt=2, base=Position(1, 1), owner={}, time_s=0.0))

    aside = load.choose(ROOT, {"step": 2}, disk=folder.disk).info
    assert aside is not None
    assert aside.position == Position(1, 2)
    commit(folder, [part_of(seed=9, term=2, sequence=2, step=2)])
    live = load.choose(ROOT, {"step": 2}, disk=folder.disk).info
    assert live is not None
    assert live.position == Position(2, 2)
