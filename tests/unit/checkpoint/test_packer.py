"""The packer on its own, and several writers in one folder."""

from __future__ import annotations

import select
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast.checkpoint import codecs, collect, pack
from holdfast.checkpoint.canonical import digest
from holdfast.checkpoint.folder import Folder, FolderInUse
from holdfast.checkpoint.known import read_back
from holdfast.checkpoint.manifest import PackEntry
from holdfast.checkpoint.packer import WRITERS, Packer, TooSlow
from holdfast.testing.crashdisk import CrashDisk

ROOT = Path("/checkpoints")


def raw_at(folder: Folder, name: str, offset: int) -> bytes:
    """The chunk of the record at `offset`."""
    file = folder.disk.open(pack.path(folder.root, name))
    record = next(one for one in pack.read_layout(file, name).records if one.offset == offset)
    sink = pack.padded(bytes(record.raw_bytes))
    pack.read_record(file, record, sink, "pack")
    return bytes(sink[: record.raw_bytes])


def test_each_chunk_is_at_its_place_and_equal_ones_share_it(folder: Folder) -> None:
    chunks = [b"a" * 5000, b"b", b"a" * 5000, b""]
    with Packer(folder) as packer:
        places = [packer.add(pack.padded(raw), len(raw)) for raw in chunks]
        entries = packer.finish()

    assert [raw_at(folder, entries[place.pack].name, place.offset) for place in places] == chunks
    assert places[0] == places[2]
    assert packer.written == entries
    assert packer.written_bytes == entries[0].size_bytes


def test_compressed_chunks_are_put_as_they_come(folder: Folder) -> None:
    raw = bytes(range(250)) * 40
    codec, stored = codecs.encode(raw, 4)
    with Packer(folder) as packer:
        place = packer.add(pack.padded(stored), len(stored), chunk_id=digest(raw), codec=codec, raw_bytes=len(raw))
        entries = packer.finish()
    read_back(ROOT, folder.disk, entries[0])

    assert codec == 4
    assert raw_at(folder, entries[0].name, place.offset) == raw


def test_after_its_time_no_pack_is_begun(folder: Folder) -> None:
    with Packer(folder, until_s=0.0) as packer:
        packer.add(pack.padded(b"a"), 1)
        with pytest.raises(TooSlow, match=r"checkpoint\.timeout"):
            packer.finish()

    assert folder.disk.list(ROOT / "packs") == []


def test_what_earlier_packs_met_is_told_before_many_more_wait(folder: Folder) -> None:
    payload = pack.padded(bytes(pack.MAX_CHUNK_BYTES))
    with Packer(folder, until_s=0.0) as packer, pytest.raises(TooSlow):
        for number in range(WRITERS + 2):
            packer.add(payload, len(payload), chunk_id=f"{number:064x}")


def test_a_pack_that_found_no_room_is_written_once_there_is(folder: Folder) -> None:
    disk = folder.disk
    assert isinstance(disk, CrashDisk)
    disk.capacity_bytes = disk.used_bytes()
    for _ in range(2):
        with Packer(folder) as packer, pytest.raises(OSError, match="No space left"):
            packer.add(pack.padded(b"a"), 1)
            packer.finish()
    disk.capacity_bytes = None

    with Packer(folder) as packer:
        packer.add(pack.padded(b"a"), 1)
        (entry,) = packer.finish()

    read_back(ROOT, disk, entry)


def test_packs_of_a_guest_stay_until_it_leaves(folder: Folder) -> None:
    guest = Folder(ROOT, folder.disk)
    guest.join()
    with Packer(guest) as packer:
        packer.add(pack.padded(b"a"), 1)
        (entry,) = packer.finish()

    collect.sweep(folder)
    read_back(ROOT, folder.disk, entry)
    guest.leave()
    collect.sweep(folder)

    assert folder.disk.list(pack.path(ROOT, entry.name).parent) == []
    assert folder.disk.list(ROOT / "tmp") == []


def test_a_guest_that_comes_while_the_owner_sweeps_loses_nothing(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest, real = Folder(ROOT, folder.disk), folder.disk.list
    entries: list[PackEntry] = []

    def listed(within: Path) -> list[str]:
        found = real(within)
        if within == ROOT / "tmp" and not entries:  # the owner has seen no guest
            guest.join()
            with Packer(guest) as packer:
                packer.add(pack.padded(b"a"), 1)
                entries.extend(packer.finish())
        return found

    monkeypatch.setattr(folder.disk, "list", listed)
    collect.sweep(folder)

    read_back(ROOT, folder.disk, entries[0])


GUEST = """
import sys; from pathlib import Path
from holdfast.checkpoint import pack
from holdfast.checkpoint.folder import Folder
from holdfast.checkpoint.packer import Packer
guest = Folder(Path(sys.argv[1]))
guest.join()
with Packer(guest) as packer:
    for index in range(40):
        raw = bytes([index, index % 7]) * (1 << 20)
        packer.add(pack.padded(raw), len(raw))
    print(*(entry.name for entry in packer.finish()), flush=True)
sys.stdin.read()
"""


def test_processes_write_the_same_packs_into_one_folder_beside_its_owner(tmp_path: Path) -> None:
    owner = Folder(tmp_path / "checkpoints")
    owner.own()
    owner.open()
    argv = [sys.executable, "-c", GUEST, str(owner.root)]
    guests = [subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    writing = [guest.stdout for guest in guests]
    while writing:
        collect.sweep(owner)
        writing = [pipe for pipe in writing if not select.select([pipe], [], [], 0)[0]]
    said = {guest.stdout.readline() for guest in guests}  # type: ignore[union-attr]
    collect.sweep(owner)
    found = {path.stem for path in (owner.root / "packs").rglob("*.hfp")}
    guests[0].kill()
    for guest in guests:
        guest.communicate()
    left = list((owner.root / "tmp").iterdir())
    collect.sweep(owner)

    assert len(said) == 1
    assert found == set(said.pop().split())
    assert len(left) == 3
    assert list((owner.root / "tmp").iterdir()) == list((owner.root / "packs").rglob("*.hfp")) == []


def test_a_folder_has_one_owner(tmp_path: Path) -> None:
    first, second = Folder(tmp_path), Folder(tmp_path)
    first.own()

    with pytest.raises(FolderInUse, match="another run uses"):
        second.own()
    first.leave()
    second.own()
    second.leave()
