"""Packs that are mostly not needed are written anew, and every checkpoint stays what it was."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from holdfast.checkpoint import codecs, collect, load, pack, pins, survey
from holdfast.checkpoint.canonical import digest
from holdfast.checkpoint.commit import Part, commit, publish
from holdfast.checkpoint.folder import Folder
from holdfast.checkpoint.lineage import Position
from holdfast.checkpoint.manifest import Manifest
from holdfast.checkpoint.packer import Packer
from holdfast.checkpoint.repack import Repacked, repack
from holdfast.fsio import BLOCK
from holdfast.plan import Keep
from tests.slotparts import contents, new_slot, part_of, table_of
from tests.untrue import Untrue

ROOT = Path("/checkpoints")
SIZES = (4096, 40_000, 50_000, 60_000)


def line(count: int) -> list[Part]:
    """Saves of a model whose first chunk never changes and whose others always do."""
    frozen = part_of(seed=0, sizes=SIZES)
    parts = []
    for step in range(1, count + 1):
        part = part_of(seed=step, sizes=SIZES, sequence=step, step=step)
        start, size = part.table["chunks"][0]["offset"], SIZES[0]
        part.slot[start : start + size] = frozen.slot[start : start + size]
        parts.append(part)
    return parts


def saved(folder: Folder, parts: list[Part]) -> None:
    for part in parts:
        commit(folder, [part])
        collect.retain(folder, Keep(last=2))


def assert_intact(folder: Folder, parts: list[Part]) -> None:
    """Every checkpoint that is listed loads as it was saved."""
    slot = new_slot()
    for info in load.checkpoints(ROOT, folder.disk):
        load.fill(ROOT, info, 0, slot, whole=True, disk=folder.disk)
        part = parts[info.step - 1]
        assert contents(slot.view, slot.read_table()) == contents(part.slot, part.table)


def packs(folder: Folder) -> set[str]:
    """Those on the disk."""
    within = ROOT / "packs"
    return {name[:-4] for prefix in folder.disk.list(within) for name in folder.disk.list(within / prefix)}


def test_a_pack_kept_for_one_chunk_is_written_anew_with_that_chunk_alone(folder: Folder) -> None:
    parts = line(4)
    saved(folder, parts)
    before = packs(folder)
    (first,) = [info for info in load.checkpoints(ROOT, folder.disk) if info.step == 3]

    done = repack(folder, least_gain_bytes=100_000)

    dropped = before - packs(folder)
    assert done == Repacked(packs=1, copied_bytes=3 * BLOCK, freed_bytes=first.packs[0].size_bytes - 2 * BLOCK)
    assert len(dropped) == 1
    assert [info.rewritten for info in load.checkpoints(ROOT, folder.disk)] == [1, 1]
    assert_intact(folder, parts)
    assert repack(folder, least_gain_bytes=0) is None


def test_little_gain_is_not_worth_it(folder: Folder) -> None:
    saved(folder, line(4))

    assert repack(folder) is None


def test_nothing_is_written_anew_while_a_manifest_cannot_be_read(folder: Folder) -> None:
    saved(folder, line(4))
    folder.disk.create(ROOT / "manifests" / f"000001-00000002-{'0' * 64}.json").append([b"{}"])

    assert repack(folder, least_gain_bytes=0) is None


def test_the_next_save_relies_on_the_new_pack(folder: Folder) -> None:
    parts = line(5)
    saved(folder, parts[:4])
    repack(folder, least_gain_bytes=0)

    made = commit(folder, [parts[4]])

    assert made.written_bytes < sum(SIZES) + 5 * BLOCK
    assert_intact(folder, parts)


def test_who_reads_meanwhile_keeps_what_it_reads(folder: Folder) -> None:
    parts = line(4)
    saved(folder, parts)
    info = load.checkpoints(ROOT, folder.disk)[0]
    with load.reading(ROOT, info, folder.disk) as found:
        repack(folder, least_gain_bytes=0)
        assert {entry.name for entry in found.packs} <= packs(folder)
        assert len(list(survey.paths_at(ROOT, info.position, folder.disk))) == 2
        assert_intact(folder, parts)
    collect.retain(folder, Keep(last=2))

    assert len(list(survey.paths_at(ROOT, info.position, folder.disk))) == 1
    assert not {entry.name for entry in found.packs} <= packs(folder)
    assert load.verify(ROOT, info, folder.disk) == []


def test_while_the_new_manifest_lacks_a_pack_the_old_one_stays_and_is_loaded(folder: Folder) -> None:
    saved(folder, line(4))
    old = load.checkpoints(ROOT, folder.disk)[0]
    with load.reading(ROOT, old, folder.disk):
        repack(folder, least_gain_bytes=0)
    new = load.checkpoints(ROOT, folder.disk)[0]
    for entry in {*new.packs} - {*old.packs}:
        folder.disk.remove(pack.path(ROOT, entry.name))

    collect.retain(folder, Keep(last=2))

    assert len(list(survey.paths_at(ROOT, old.position, folder.disk))) == 2
    chosen = load.choose(ROOT, disk=folder.disk).info
    assert chosen is not None
    assert chosen.path == old.path


def test_pins_hold_across_it(folder: Folder) -> None:
    parts = line(6)
    saved(folder, parts[:3])
    collect.pin(folder, Position(1, 2), "dear", 1.0)
    saved(folder, parts[3:])
    repack(folder, least_gain_bytes=0)
    saved(folder, parts[5:])

    assert [(info.step, info.pinned) for info in load.checkpoints(ROOT, folder.disk)] == [
        (2, True), (5, False), (6, False),
    ]  # fmt: skip
    assert pins.read(ROOT, Position(1, 2), folder.disk) == pins.Pin("dear", 1.0)
    assert_intact(folder, parts)


def test_a_damaged_pack_is_not_copied(folder: Folder) -> None:
    saved(folder, line(4))
    fresh = Folder(ROOT, folder.disk)
    worn = load.checkpoints(ROOT, folder.disk)[0].packs[0]
    target = pack.path(ROOT, worn.name)
    raw = bytearray(worn.size_bytes)
    folder.disk.open(target).read(0, [memoryview(raw)])
    raw[BLOCK + 1] ^= 1
    folder.disk.remove(target)
    folder.disk.create(target).append([bytes(raw)])

    with pytest.raises(load.Damaged, match="damaged chunk at offset 0"):
        repack(fresh, least_gain_bytes=0)
    assert worn.name in packs(folder)
    assert worn.name in fresh.known.damaged


def test_what_the_medium_keeps_otherwise_takes_no_place() -> None:
    disk = Untrue()
    folder = Folder(ROOT, disk)
    folder.open()
    saved(folder, line(4))
    disk.kind, disk.at = ".hfp", BLOCK

    with pytest.raises(load.Damaged, match="damaged chunk"):
        repack(folder, least_gain_bytes=0)

    assert [info.rewritten for info in load.checkpoints(ROOT, disk)] == [0, 0]
    assert_intact(folder, line(4))


def test_one_go_copies_no_more_than_it_may(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(folder, line(4))
    monkeypatch.setattr("holdfast.checkpoint.repack.MOST_COPIED_BYTES", 2 * BLOCK - 1)

    assert repack(folder, least_gain_bytes=0) is None


def test_compressed_chunks_are_copied_as_they_are(folder: Folder) -> None:
    raws = [random.Random(n).randbytes(100) * 300 for n in range(4)]
    places = []
    with Packer(folder) as packer:
        for raw in raws:
            codec, stored = codecs.encode(raw, 1)
            places.append(
                packer.add(pack.padded(stored), len(stored), chunk_id=digest(raw), codec=codec, raw_bytes=len(raw))
            )
        entries = packer.finish()
    table, _ = table_of(sizes=(30_000,), sequence=1, step=1)
    (chunk,) = table.pop("chunks")
    stored_at = {**chunk, "id": digest(raws[2]), "pack": places[2].pack, "offset": places[2].offset}
    ranks = ({"table": table, "chunks": [stored_at]},)
    publish(folder, Manifest(position=Position(1, 1), parent=None, base=None, packs=tuple(entries), ranks=ranks))

    done = repack(folder, least_gain_bytes=0)
    (info,) = load.checkpoints(ROOT, folder.disk)
    slot = new_slot()
    load.fill(ROOT, info, 0, slot, whole=True, disk=folder.disk)

    assert done is not None
    assert done.copied_bytes == 3 * BLOCK
    assert contents(slot.view, slot.read_table()) == [raws[2]]
