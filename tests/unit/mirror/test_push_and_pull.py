"""What is sent is what comes back, from every store; what is there is not sent again."""

from __future__ import annotations

import itertools
import random
import shutil
import uuid
from pathlib import Path

import pytest

from holdfast.checkpoint import load, survey
from holdfast.checkpoint.codecs import NONE
from holdfast.checkpoint.folder import Folder, make_folders
from holdfast.checkpoint.lineage import Position
from holdfast.checkpoint.pack import read_layout
from holdfast.errors import NoValidCheckpoint, StoreRefused, UsageError
from holdfast.mirror import catalog, pull
from holdfast.mirror.catalog import find, read_whole
from holdfast.mirror.view import ROOT, Stored, View, pack_key
from holdfast.stores import Store, connect
from holdfast.stores.file import DirectoryStore
from holdfast.testing.crashdisk import CrashDisk, PowerCut
from tests.labs import faultproxy
from tests.labs.servers import BUCKET, Server
from tests.mirrors import QUICK, Machine, Place, state_of


def bring(store: Store, machine: Machine, want: load.Want = "newest") -> load.Chosen:
    folder = machine.folder()
    try:
        return pull.choose(View(store, {}), folder, want)
    finally:
        folder.leave()


def test_a_machine_with_nothing_gets_the_same_bits(connected: Place, ours: Machine, bare: Machine) -> None:
    ours.save(seed=1, sequence=1, step=10)
    newest = ours.save(seed=2, sequence=2, step=20)

    pushed = ours.keeper(connected()).push(newest)
    chosen = bring(connected(), bare)

    assert pushed.packs >= 1
    assert chosen.info is not None
    assert 20 == chosen.info.step
    assert state_of(ours.root) == state_of(bare.root)


def test_what_is_there_is_not_sent_again(connected: Place, ours: Machine) -> None:
    first = ours.save(seed=1, sequence=1, step=10)
    again = ours.save(seed=1, sequence=2, step=20)
    keeper = ours.keeper(connected())

    sent = [keeper.push(info).sent_bytes for info in (first, first, again)]

    assert sent[0] > 0
    assert [0, 0] == sent[1:]
    assert [10, 20] == [info.step for info in keeper.there()]
    first.path.unlink()
    assert 0 == keeper.push(first).packs, "nobody looks here for what is there"


def test_packs_that_nobody_names_are_used_once_they_were_read(connected: Place, ours: Machine) -> None:
    """As a push leaves them that was killed before its manifest."""
    info = ours.save(seed=1, sequence=1, step=10)
    keeper = ours.keeper(connected())
    made = keeper.push(info)
    keeper.store.delete(f"manifests/{made.manifest.file_name}")

    again = ours.keeper(connected()).push(info)

    assert 0 == again.sent_bytes
    assert made.manifest == again.manifest


def test_a_damaged_pack_that_nobody_names_is_not_relied_on(connected: Place, ours: Machine, bare: Machine) -> None:
    info = ours.save(seed=1, sequence=1, step=10)
    keeper = ours.keeper(connected())
    made = keeper.push(info)
    keeper.store.delete(f"manifests/{made.manifest.file_name}")
    key = next(iter(keeper.store.list("packs/")))
    raw = bytearray(keeper.store.get(key))
    raw[5000] ^= 1
    keeper.store.put(key, raw)

    again = ours.keeper(connected()).push(info)
    bring(connected(), bare)

    assert again.sent_bytes > 0
    assert state_of(ours.root) == state_of(bare.root)


def test_a_pack_that_is_named_and_gone_is_not_relied_on(ours: Machine, tmp_path: Path) -> None:
    store = connect(str(tmp_path / "mirror"), {})
    keeper = ours.keeper(store)
    made = keeper.push(ours.save(seed=1, sequence=1, step=10))
    store.delete(pack_key(made.manifest.packs[0].name))

    again = keeper.push(ours.save(seed=1, sequence=2, step=20))

    assert again.sent_bytes > 0
    assert [10, 20] == [info.step for info in keeper.there()]


def test_what_compresses_is_sent_compressed_and_read_back(ours: Machine, bare: Machine, moto_place: Place) -> None:
    info = ours.save(seed=1, sequence=1, step=10, sizes=(400_000, 5000), flat=True)

    pushed = ours.keeper(moto_place()).push(info)
    bring(moto_place(), bare)

    view = View(moto_place(), {})
    codecs = set()
    for entry in pushed.manifest.packs:
        codecs |= {record.codec for record in read_layout(Stored(read_whole(view, entry)), entry.name).records}
    assert codecs - {NONE}
    assert pushed.sent_bytes < 200_000
    assert state_of(ours.root) == state_of(bare.root)


def test_a_damaged_newest_one_on_the_mirror_is_passed_over(connected: Place, ours: Machine, bare: Machine) -> None:
    keeper = ours.keeper(connected())
    keeper.push(ours.save(seed=1, sequence=1, step=10))
    before = state_of(ours.root)
    made = keeper.push(ours.save(seed=2, sequence=2, step=20))
    key = f"packs/{made.manifest.packs[0].name[:2]}/{made.manifest.packs[0].name}.hfp"
    raw = bytearray(keeper.store.get(key))
    raw[random.Random(1).randrange(len(raw))] ^= 4
    keeper.store.put(key, raw)

    chosen = bring(connected(), bare)

    assert 1 == len(chosen.fell_back)
    assert before == state_of(bare.root)


def test_a_mirror_with_nothing_valid_is_told(ours: Machine, bare: Machine, moto_place: Place) -> None:
    store = moto_place()
    keeper = ours.keeper(store)
    made = keeper.push(ours.save(seed=1, sequence=1, step=10))
    store.delete(f"packs/{made.manifest.packs[0].name[:2]}/{made.manifest.packs[0].name}.hfp")
    with pytest.raises(NoValidCheckpoint):
        bring(store, bare)
    assert find(View(store, {}), made.manifest.position) is None


def test_a_pull_that_was_cut_off_goes_on(ours: Machine, bare: Machine, moto_place: Place) -> None:
    made = ours.keeper(moto_place()).push(ours.save(seed=1, sequence=1, step=10))
    bring(moto_place(), bare)
    (bare.root / "manifests" / made.manifest.file_name).unlink()
    packs = [path.stat().st_ino for path in bare.root.glob("packs/*/*")]

    bring(moto_place(), bare)

    assert packs == [path.stat().st_ino for path in bare.root.glob("packs/*/*")]
    assert state_of(ours.root) == state_of(bare.root)


def test_a_pack_that_is_damaged_here_is_fetched_again(ours: Machine, bare: Machine, tmp_path: Path) -> None:
    store = connect(str(tmp_path / "mirror"), {})
    made = ours.keeper(store).push(ours.save(seed=1, sequence=1, step=10))
    bring(store, bare)
    (bare.root / "manifests" / made.manifest.file_name).unlink()
    (path,) = bare.root.glob("packs/*/*")
    path.write_bytes(bytes(path.stat().st_size))

    bring(store, bare)

    assert state_of(ours.root) == state_of(bare.root)


def test_what_is_brought_in_the_place_of_a_damaged_one_comes_before_it(ours: Machine, tmp_path: Path) -> None:
    store = DirectoryStore("test://mirror", tmp_path / "mirror")  # no folder, so chunks are compressed: other packs
    ours.keeper(store).push(ours.save(seed=1, sequence=1, step=10, flat=True))
    folder = ours.folder()

    brought = pull.replace(View(store, {}), Position(1, 1), folder)

    folder.leave()
    assert brought is not None
    assert brought.rewritten == 1
    assert [brought.path] == [info.path for info in load.checkpoints(ours.root)]


def test_power_fails_at_every_operation_of_a_pull(ours: Machine, tmp_path: Path) -> None:
    """What is there then is whole, and its line is known: nobody goes on in a term that is taken."""
    store = connect(str(tmp_path / "mirror"), {})
    ours.keeper(store).push(ours.save(seed=1, sequence=1, step=10))
    ours.begin(2, base=Position(1, 1))
    ours.keeper(store).hold()
    root, seen = tmp_path / "disk", set()
    root.mkdir()  # in memory, but its room is looked at
    for operation in itertools.count():
        disk = CrashDisk()
        folder = Folder(root, disk)
        make_folders(disk, root)
        folder.open()
        disk.stop_at = len(disk.operations) + operation
        try:
            pull.choose(View(store, {}), folder, "newest")
        except PowerCut:
            cut = True
        else:
            cut = False
        for after in (disk.reboot(), disk.reboot(keep_all=True), disk.reboot(random.Random(operation))):
            found = survey.take(root, after)
            seen.add(len(found.checkpoints))
            assert all(load.verify(root, info, after) == [] for info in found.checkpoints)
            assert not found.checkpoints or found.newest_term == 2
        if not cut:
            break
    assert {0, 1} == seen
    assert operation > 15


def test_a_disk_that_is_too_small_is_told_before_anything_is_fetched(
    ours: Machine, bare: Machine, moto_place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours.keeper(moto_place()).push(ours.save(seed=1, sequence=1, step=10))
    monkeypatch.setattr(pull, "_SPARE_RATIO", 1e12)
    with pytest.raises(StoreRefused, match=r"needs \d+ bytes"):
        bring(moto_place(), bare)
    assert not list(bare.root.glob("packs/*/*"))


def test_a_wanted_step_is_brought_and_no_other(connected: Place, ours: Machine, bare: Machine) -> None:
    keeper = ours.keeper(connected())
    for sequence in (1, 2, 3):
        keeper.push(ours.save(seed=sequence, sequence=sequence, step=10 * sequence))

    bring(connected(), bare, {"step": 20})

    assert [20] == [info.step for info in load.checkpoints(bare.root)]
    with pytest.raises(UsageError, match="has no checkpoint of step 7") as caught:
        pull.must_hold(View(connected(), {}), {"step": 7})
    assert "it has steps 10, 20, 30" == caught.value.hint


def test_the_mirror_itself_verifies_like_a_folder(connected: Place, ours: Machine) -> None:
    keeper = ours.keeper(connected())
    keeper.push(ours.save(seed=1, sequence=1, step=10))
    view = keeper.view()
    found = load.checkpoints(ROOT, view)
    assert [[]] == [load.verify(ROOT, info, view) for info in found]
    shutil.rmtree(ours.root)
    assert [10] == [info.step for info in found]


def test_a_server_that_sends_no_parts_sends_each_pack_once(
    rclone: Server, ours: Machine, bare: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "RANGE_BYTES", 100_000)
    read: list[str] = []
    with faultproxy.between(rclone.port) as proxy:
        store = connect(f"s3://{BUCKET}/{uuid.uuid4()}", rclone.environ(port=proxy.port, home=tmp_path), QUICK)
        made = ours.keeper(store).push(ours.save(seed=1, sequence=1, step=10, sizes=(300_000,) * 3))
        store.get_range("format.json", 0, 1)  # how it is found out
        proxy.fault = lambda method, path, number: read.append(path) if method == "GET" and "/packs/" in path else None

        assert [] == load.verify(ROOT, load.checkpoints(ROOT, View(store, {}))[0], View(store, {}))
        verified = len(read)
        bring(store, bare)

    assert not store.parts
    assert (verified, len(read)) == (len(made.manifest.packs), 2 * len(made.manifest.packs))
    assert state_of(ours.root) == state_of(bare.root)


def test_every_kind_of_fault_in_turn_changes_no_bit(
    server: Server, ours: Machine, bare: Machine, tmp_path: Path
) -> None:
    chance = random.Random(5)
    with faultproxy.between(server.port) as proxy:
        proxy.fault = lambda method, path, number: chance.choice(faultproxy.FAULTS) if number % 3 == 0 else None
        environ = server.environ(port=proxy.port, home=tmp_path)
        url = f"s3://{BUCKET}/{uuid.uuid4()}"
        keeper = ours.keeper(connect(url, environ, QUICK))
        for sequence in (1, 2, 3):
            keeper.push(ours.save(seed=sequence, sequence=sequence, step=10 * sequence, sizes=(300_000,) * 3))

        bring(connect(url, environ, QUICK), bare)

        assert proxy.count("GET") > 30
    assert state_of(ours.root) == state_of(bare.root)
    assert [10, 20, 30] == [info.step for info in ours.keeper(connect(url, server.environ(home=tmp_path))).there()]
