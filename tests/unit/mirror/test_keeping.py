"""Retention, the index, the rate, and what goes along."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from holdfast.checkpoint import canonical
from holdfast.checkpoint.lineage import Position
from holdfast.errors import NoValidCheckpoint, StoreRefused
from holdfast.fsio import Bytes
from holdfast.mirror import index, origin, throttle
from holdfast.mirror.fence import Superseded
from holdfast.mirror.keeper import Keeper
from holdfast.mirror.push import UPLOADS
from holdfast.mirror.throttle import Bucket, Throttle
from holdfast.mirror.view import pack_key
from holdfast.node.mirroring import is_due, outstanding, policy
from holdfast.plan import Best, Keep, MirrorPlan
from holdfast.runs import RunDir
from holdfast.stores import connect
from holdfast.stores.file import DirectoryStore
from tests.mirrors import Machine, Place, state_of


def packs(keeper: Keeper) -> set[str]:
    return set(keeper.store.list("packs/"))


def test_manifests_go_at_once_and_packs_a_day_later(moto_place: Place, ours: Machine) -> None:
    keeper = ours.keeper(moto_place())
    for sequence in (1, 2, 3, 4):
        keeper.push(ours.save(seed=sequence, sequence=sequence, step=10 * sequence))
    every = packs(keeper)

    removed = keeper.retire(policy(Keep(last=2)))
    assert [10, 20] == [info.step for info in removed]
    assert [30, 40] == [info.step for info in keeper.there()]
    assert every == packs(keeper)

    keeper.retire(policy(Keep(last=2)), grace_s=0.0)
    assert packs(keeper) < every
    assert [30, 40] == [info.step for info in keeper.there()]


def test_what_is_pinned_here_stays_there(moto_place: Place, ours: Machine) -> None:
    keeper = ours.keeper(moto_place())
    for sequence in (1, 2, 3, 4):
        keeper.push(ours.save(seed=sequence, sequence=sequence, step=10 * sequence))

    keeper.retire(policy(Keep(last=2), {Position(1, 1)}))

    assert [10, 30, 40] == [info.step for info in keeper.there()]


def test_a_pack_goes_a_day_after_it_was_needed_last(ours: Machine, tmp_path: Path) -> None:
    store = connect(str(tmp_path / "mirror"), {})
    keeper = ours.keeper(store)
    for sequence in (1, 2, 3):
        keeper.push(ours.save(seed=sequence, sequence=sequence, step=10 * sequence))
    every = packs(keeper)
    keeper.retire(policy(Keep(last=2)))
    ((idle, since_s),) = canonical.decode_checked(store.get("unneeded.json"), "it")["packs"].items()

    for age_s, left in ((86_300.0, every), (86_401.0, every - {idle})):
        store.put("unneeded.json", canonical.encode_checked({"packs": {idle: since_s - age_s}}))
        keeper.retire(policy(Keep(last=2)))
        assert packs(keeper) == left


def test_what_lacks_packs_there_does_not_count_as_one_that_is_kept(ours: Machine, tmp_path: Path) -> None:
    store = connect(str(tmp_path / "mirror"), {})
    keeper = ours.keeper(store)
    made = [keeper.push(ours.save(seed=n, sequence=n, step=10 * n)).manifest for n in (1, 2, 3, 4)]
    for one in made[2:]:
        store.delete(pack_key(one.packs[0].name))

    keeper.retire(policy(Keep(last=2)), grace_s=0.0)

    assert [10, 20] == [info.step for info in keeper.there()]


def test_a_pack_that_is_needed_again_stays(moto_place: Place, ours: Machine) -> None:
    keeper = ours.keeper(moto_place())
    for sequence, seed in ((1, 9), (2, 2), (3, 3)):
        keeper.push(ours.save(seed=seed, sequence=sequence, step=10 * sequence))
    keeper.retire(policy(Keep(last=2)))
    keeper.push(ours.save(seed=9, sequence=4, step=40))

    keeper.retire(policy(Keep(last=2)), grace_s=0.0)

    assert [30, 40] == [info.step for info in keeper.there()]


def test_no_pack_goes_while_a_manifest_is_damaged(moto_place: Place, ours: Machine) -> None:
    keeper = ours.keeper(moto_place())
    for sequence in (1, 2, 3):
        keeper.push(ours.save(seed=sequence, sequence=sequence, step=10 * sequence))
    newest = keeper.there()[-1].path.name
    keeper.store.put(f"manifests/{newest}", b"{}")
    before = packs(keeper)
    other = ours.keeper(moto_place())

    other.retire(policy(Keep(last=1)), grace_s=0.0)

    assert before == packs(other)


def test_who_was_superseded_sends_and_removes_nothing(ours: Machine, tmp_path: Path) -> None:
    store = connect(str(tmp_path / "mirror"), {})
    keeper = ours.keeper(store)
    for sequence in (1, 2, 3):
        keeper.push(ours.save(seed=sequence, sequence=sequence, step=10 * sequence))
    late = ours.save(seed=4, sequence=4, step=40)
    store.put(f"leases/000002-{'0' * 64}.json", b"of another machine")
    before = store.list("packs/"), store.list("manifests/"), store.list("index/")

    for act in (lambda: keeper.push(late), lambda: keeper.retire(policy(Keep(last=2)), grace_s=0.0), keeper.mend_index):
        with pytest.raises(Superseded):
            act()

    assert before == (store.list("packs/"), store.list("manifests/"), store.list("index/"))


def test_who_is_superseded_while_it_sends_adds_no_checkpoint(ours: Machine, tmp_path: Path) -> None:
    store = connect(str(tmp_path / "mirror"), {})
    info = ours.save(seed=1, sequence=1, step=10)

    with pytest.raises(Superseded):
        ours.keeper(store).push(info, lambda *_: store.put(f"leases/000002-{'0' * 64}.json", b"of another machine"))

    assert {} == store.list("manifests/")


class TakesNoPacks(DirectoryStore):
    """As if it were full."""

    def put(self, key: str, data: Bytes, *, create: bool = False) -> None:
        if key.startswith("packs/"):
            raise StoreRefused("full")
        super().put(key, data, create=create)


def test_an_upload_that_fails_is_told_before_everything_is_read(
    ours: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throttle, "BURST_S", 0.0)  # each chunk is a pack of its own
    info = ours.save(seed=1, sequence=1, step=10, sizes=(600_000,) * 12)
    keeper = Keeper(ours.root, TakesNoPacks(str(tmp_path / "mirror"), tmp_path / "mirror"), bytes_per_s=1e12)
    begun: list[int] = []

    with pytest.raises(StoreRefused, match="full"):
        keeper.push(info, lambda done, _: begun.append(done))

    assert len(begun) <= UPLOADS + 2


def test_a_lease_that_it_held_is_known_although_the_folder_has_it_no_more(ours: Machine, tmp_path: Path) -> None:
    keeper = ours.keeper(connect(str(tmp_path / "mirror"), {}))
    held = keeper.hold()
    (ours.root / "leases" / held.file_name).unlink()
    ours.begin(2, base=None)

    assert keeper.hold().term == 2


def test_a_checkpoint_that_lacks_a_pack_there_is_not_there(ours: Machine, tmp_path: Path) -> None:
    store = connect(str(tmp_path / "mirror"), {})
    keeper = ours.keeper(store)
    first, second = (keeper.push(ours.save(seed=n, sequence=n, step=10 * n)).manifest for n in (1, 2))
    store.delete(pack_key(first.packs[0].name))
    store.put(pack_key(second.packs[0].name), b"cut")

    assert keeper.there() == []


def test_a_folder_gets_chunks_as_they_are(ours: Machine, tmp_path: Path) -> None:
    info = ours.save(seed=1, sequence=1, step=10, sizes=(400_000,), flat=True)

    assert ours.keeper(connect(str(tmp_path / "mirror"), {})).push(info).sent_bytes > 400_000


def test_the_index_names_job_epoch_and_step_and_is_made_anew(moto_place: Place, ours: Machine) -> None:
    keeper = ours.keeper(moto_place())
    keeper.push(ours.save(seed=1, sequence=1, step=10))
    keeper.mend_index()
    key = "index/digits/epoch-00002/step-000000010.1-1.json"
    whole = keeper.store.get(key)
    assert 10 == json.loads(whole)["step"]

    keeper.store.put(key, b"x" * len(whole))
    keeper.store.put("index/digits/epoch-00009/step-000000099.1-9.json", b"{}")

    assert 2 == keeper.mend_index(doubt=True)
    assert whole == keeper.store.get(key)
    assert [key] == list(keeper.store.list("index/"))
    assert key == index.key_of(keeper.there()[0])
    keeper.store.put(key, b"cut")
    assert 1 == keeper.mend_index()
    assert whole == keeper.store.get(key)


def test_the_bucket_holds_the_rate_and_saves_up_two_seconds() -> None:
    bucket = Bucket(100.0)
    assert 5.0 == bucket.take(500, 0.0)
    assert 5.0 == bucket.take(100, 1.0)
    assert 0.0 == bucket.take(200, 1000.0)
    assert 1.0 == bucket.take(100, 1000.0)


def test_a_rate_makes_packs_small(moto_place: Place, ours: Machine) -> None:
    assert Throttle(None).piece_bytes is None
    assert 1 << 20 == Throttle(1000.0).piece_bytes
    info = ours.save(seed=1, sequence=1, step=10, sizes=(700_000,) * 2)
    assert 1 == ours.keeper(moto_place()).push(info).packs
    newest = ours.save(seed=2, sequence=2, step=20, sizes=(700_000,) * 2)
    began_s = time.monotonic()
    assert 2 == Keeper(ours.root, moto_place(), bytes_per_s=5e5).push(newest).packs
    assert time.monotonic() - began_s > 1_400_000 / 5e5


def run_with_code(root: Path) -> RunDir:
    run = RunDir(root)
    (run.code / "sub").mkdir(parents=True)
    (run.code / "train.py").write_text("print('hello')\n")
    (run.code / "sub" / "data.txt").write_text("1")
    (run.root / "plan.json").write_text('{"run": "digits"}')
    (run.root / "holdfast.yaml").write_text("run: python train.py\n")
    (run.root / "code.json").write_text('{"snapshot": true}')
    return run


def test_run_file_and_code_go_along_and_come_back(connected: Place, tmp_path: Path) -> None:
    run = run_with_code(tmp_path / "run")
    assert origin.send(run, connected()) is None
    before = connected().list("run/")
    assert origin.send(run, connected()) is None

    found = origin.Origin(connected())
    (tmp_path / "out").mkdir()
    found.unpack(tmp_path / "out")

    assert before == connected().list("run/")
    assert "digits" == found.plan["run"]
    assert "1" == (tmp_path / "out" / "sub" / "data.txt").read_text()


def test_a_run_file_of_the_same_length_is_sent_anew(tmp_path: Path) -> None:
    run, store = run_with_code(tmp_path / "run"), connect(str(tmp_path / "mirror"), {})
    origin.send(run, store)
    (run.root / "plan.json").write_text('{"run": "others"}')

    origin.send(run, store)

    assert "others" == origin.Origin(store).plan["run"]


def test_code_that_was_tampered_with_is_refused(moto_place: Place, tmp_path: Path) -> None:
    origin.send(run_with_code(tmp_path / "run"), moto_place())
    store = moto_place()
    key = next(key for key in store.list("run/") if key.endswith(".tar"))
    store.put(key, store.get(key).replace(b"hello", b"hallo"))
    with pytest.raises(StoreRefused, match="damaged"):
        origin.Origin(store).unpack(tmp_path)


def test_a_mirror_without_a_run_is_told(moto_place: Place) -> None:
    with pytest.raises(NoValidCheckpoint, match="holds no run"):
        origin.Origin(moto_place())


def test_logs_go_in_parts_that_never_change(moto_place: Place, tmp_path: Path) -> None:
    run = run_with_code(tmp_path / "run")
    run.output.write_bytes(b"first\n")
    origin.send_logs(run, moto_place(), {})
    run.output.write_bytes(b"first\nsecond\n")
    origin.send_logs(run, moto_place(), {})  # by another archiver, which knows nothing

    parts = moto_place().list("logs/output.log/")
    assert ["logs/output.log/000000000000000", "logs/output.log/000000000000006"] == list(parts)
    assert b"first\nsecond\n" == b"".join(moto_place().get(key) for key in parts)


def test_cadence_and_retention_say_what_is_sent(ours: Machine) -> None:
    infos = []
    for sequence, loss in enumerate((5.0, 1.0, 4.0, 3.0, 6.0), start=1):
        infos.append(
            ours.save(
                seed=sequence, sequence=sequence, step=10 * sequence, time_s=60.0 * sequence, metrics={"loss": loss}
            )
        )
    each, rare = MirrorPlan(url="x"), MirrorPlan(url="x", every_s=100.0)
    first, second, newest = infos[0], infos[3], infos[4]
    keep = Keep(last=3, best=Best(metric="loss"))

    def sent(mirror: MirrorPlan, there: set[int], *, last: bool = False) -> list[int]:
        held = {infos[index].position for index in there}
        return [info.step for info in outstanding(infos, held, mirror, keep, last=last)]

    assert [50, 20] == sent(each, set())
    assert [50, 20] == sent(each, {3})
    assert [20] == sent(rare, {3})
    assert [50] == sent(rare, {3, 1}, last=True)
    assert [] == sent(rare, {3, 1})
    final = [*infos[:4], replace(newest, final=True)]
    assert final[4] in outstanding(final, {infos[3].position}, rare, keep, last=False)
    assert is_due(rare, newest, first)
    assert not is_due(rare, newest, second)
    assert is_due(rare, replace(newest, time_s=second.time_s - 3500.0), second), "its clock is an hour behind"
    assert is_due(each, newest, second, 60.0)
    assert not is_due(each, newest, second, 61.0)
    assert not is_due(each, second, newest, 0.0)
    assert is_due(MirrorPlan(url="x", every_steps=10), newest, second)
    assert not is_due(MirrorPlan(url="x", every_epochs=1), newest, second)
    assert state_of(ours.root)[0] == 50
