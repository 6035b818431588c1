"""A run with a mirror: its machine dies and another one ends it bit for bit; the store goes away and comes back."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast import process
from holdfast.checkpoint import load
from holdfast.errors import LeaseHeld, NoValidCheckpoint, RunFileError, StoreRefused, UsageError
from holdfast.mirror import fence, pull
from holdfast.mirror.view import ROOT, View
from holdfast.runs import RunDir
from holdfast.stores import connect
from tests import jsonlines
from tests.e2e.box import Box
from tests.labs import faultproxy
from tests.labs.nfs import nfs_mount
from tests.labs.servers import BUCKET, Server, free_port
from tests.waiting import until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

TINY = Path(__file__).parent / "scripts" / "tiny.py"


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Box]:
    """A machine that has nothing."""
    (tmp_path / "other").mkdir()
    made = Box(tmp_path / "other")
    yield made
    made.close()
    shutil.rmtree(made.short, ignore_errors=True)


def begin(box: Box, mirror: str, *options: str, **env: str) -> RunDir:
    shutil.copy(TINY, box.work / "train.py")
    text = f"name: digits\nrun: exec python train.py\ncheckpoint: {{every: [5 steps], mirror: '{mirror}'}}\n"
    box.write("holdfast.yaml", text)
    return box.start(*options, **env)


def mirrored(run: RunDir, step: int) -> bool:
    return logged(run, "mirrored", step)


def logged(run: RunDir, event: str, step: int) -> bool:
    """Whether the archiver has told such an event of that step or a later one."""
    return any(one["step"] >= step for one in jsonlines.events(run.archiver_log, event))


def final(run: RunDir) -> str:
    return (run.root / "final.txt").read_text()


def test_a_dead_machines_run_ends_on_another_bit_for_bit(box: Box, other: Box, expected: str, tmp_path: Path) -> None:
    nas = tmp_path / "nas"
    nas.mkdir()
    run = begin(box, f"{nas}/${{run}}", STEP_S="0.2", SLOW_FROM="20")
    until(lambda: mirrored(run, 10), 60, what=lambda: box.tail(run))
    box.close()
    shutil.rmtree(run.root)

    held = other.holdfast("resume", f"{nas}/digits", "-d")
    assert LeaseHeld.exit_code == held.returncode, held.stderr
    assert "in use by" in held.stderr
    assert not (other.home / "runs" / "digits").exists()
    signs = list((nas / "digits" / "leases").glob("*.alive"))
    for sign in signs:
        os.utime(sign, (sign.stat().st_mtime - 100, sign.stat().st_mtime - 100))
    done = other.holdfast("resume", f"{nas}/digits", "-d")

    assert 0 == done.returncode, done.stderr
    there = RunDir(other.home / "runs" / "digits")
    assert "succeeded" == other.wait_for(there, "succeeded", "failed")["state"], other.tail(there)
    assert expected == final(there)
    first = json.loads((there.records / "rank-00000.jsonl").read_text().splitlines()[0])
    assert 10 <= first["step"]


def test_on_nfs_a_sender_that_is_killed_again_and_again_leaves_whole_checkpoints(
    box: Box, other: Box, expected: str, tmp_path: Path
) -> None:
    with nfs_mount(tmp_path / "nfs") as nfs, contextlib.closing(box), contextlib.closing(other):
        url = f"file://{nfs.path}/digits"
        run = begin(box, url, STEP_S="0.2", SLOW_FROM="30")
        for step in (5, 10, 15, 20, 25):
            until(lambda: logged(run, "committed", step), 60, what=lambda: box.tail(run))  # noqa: B023 - used at once
            box.kill(run, "archiver")  # which has begun to send it
        until(lambda: mirrored(run, 25), 60, what=lambda: box.tail(run))
        box.close()
        shutil.rmtree(run.root)
        for sign in (nfs.path / "digits" / "leases").glob("*.alive"):
            os.utime(sign, (sign.stat().st_mtime - 100, sign.stat().st_mtime - 100))

        done = other.holdfast("resume", url, "-d")

        assert 0 == done.returncode, done.stderr
        there = RunDir(other.home / "runs" / "digits")
        assert "succeeded" == other.wait_for(there, "succeeded", "failed")["state"], other.tail(there)
        assert expected == final(there)
        assert restored(there) >= 25
        store = View(connect(url, {}), {})
        found = load.checkpoints(ROOT, store)
        assert len(found) >= 2
        assert [said for info in found for said in load.verify(ROOT, info, store)] == []


def test_over_s3_with_its_credentials_as_secrets(box: Box, other: Box, rclone: Server, expected: str) -> None:
    url = f"s3://{BUCKET}/{uuid.uuid4()}"
    environ = rclone.environ(home=box.root)
    options = [option for name in environ if name != "HOME" for option in ("--secret", name)]
    run = begin(box, url, *options, STEP_S="0.2", SLOW_FROM="15", **environ)
    until(lambda: mirrored(run, 5), 60, what=lambda: box.tail(run))
    assert 0 == box.holdfast("stop", run.id).returncode
    box.wait_for(run, "stopped")
    until(lambda: box.process(run, "shim") is None, 60, what="the end of the mirror")
    recorded = b"".join(path.read_bytes() for path in run.root.rglob("*") if path.is_file())
    assert rclone.secret.encode() not in recorded

    done = other.holdfast("resume", url, "-d", *options, **environ)

    assert 0 == done.returncode, done.stderr
    there = RunDir(other.home / "runs" / "digits")
    assert "succeeded" == other.wait_for(there, "succeeded", "failed")["state"], other.tail(there)
    assert expected == final(there)
    back = box.holdfast("ckpt", "push", run.id, **environ)
    assert LeaseHeld.exit_code == back.returncode
    assert "another machine" in back.stderr


def test_a_program_without_the_library_stops_at_the_word_that_lies_on_its_pools_mirror(
    box: Box, tmp_path: Path
) -> None:
    (tmp_path / "nas").mkdir()
    store = connect(str(tmp_path / "nas"), {})
    box.write(
        "holdfast.yaml",
        f"name: plain\nrun: exec sleep 600\nresources: {{failover: 10m}}\ncheckpoint: {{mirror: '{tmp_path}/nas'}}\n",
    )
    run = box.start()

    fence.tell_to_stop(store)
    looks = until(lambda: box.process(run, "archiver"))
    process.send_signal(looks, signal.SIGKILL)  # the next one looks at once

    assert "stopped" == box.wait_for(run, "stopped", "failed")["state"], box.tail(run)
    until(lambda: box.process(run, "shim") is None, 60, what="the end of the mirror")
    assert not fence.is_told_to_stop(store)


def restored(run: RunDir) -> int:
    """The step that its first attempt began from, 0 before that is known."""
    return next((int(one["step"]) for one in jsonlines.events(run.records / "rank-00000.jsonl", "restored")), 0)


def test_a_step_and_the_best_of_a_bucket_are_where_another_machine_begins(
    box: Box, other: Box, moto: Server, expected: str
) -> None:
    url = f"s3://{BUCKET}/{uuid.uuid4()}"
    environ = moto.environ(home=box.root)
    keep = "keep: {last: 20, best: {metric: val_loss, mode: min}}"
    shutil.copy(TINY, box.work / "train.py")
    box.write(
        "holdfast.yaml", f"run: exec python train.py\ncheckpoint: {{every: [5 steps], mirror: '{url}', {keep}}}\n"
    )
    run = box.start("--name", "digits", STEP_S="0.02", **environ)
    assert "succeeded" == box.wait_for(run, "succeeded", "failed")["state"], box.tail(run)
    until(lambda: box.process(run, "shim") is None, 60, what="the end of the mirror")
    store = connect(url, environ)
    measured = {one.metrics.get("val_loss"): one.step for one in reversed(pull.checkpoints(View(store, {})))}
    lowest = measured[0.25]  # the oldest that says so: of step 20, or a later one where the machine was slow

    missing = other.holdfast("resume", f"{url}@7", "-d", **environ)
    best = other.holdfast("resume", f"{url}@best", "-d", STEP_S="0", **environ)

    assert (UsageError.exit_code, 0) == (missing.returncode, best.returncode), missing.stderr + best.stderr
    first, second = (RunDir(other.home / "runs" / name) for name in ("digits", "digits-2"))
    assert "succeeded" == other.wait_for(first, "succeeded", "failed")["state"], other.tail(first)
    assert (lowest, expected) == (restored(first), final(first))
    until(lambda: other.process(first, "shim") is None, 60, what="the end of the mirror")
    fence.tell_to_stop(store)
    assert 0 == other.holdfast("resume", f"{url}@{lowest}", "-d", **environ).returncode
    assert not fence.is_told_to_stop(store), "whoever resumes it wants it to go on"
    assert lowest == until(lambda: restored(second), 60)


def test_an_outage_touches_nothing_and_is_caught_up(box: Box, moto: Server, expected: str) -> None:
    url = f"s3://{BUCKET}/{uuid.uuid4()}"
    with faultproxy.between(moto.port) as proxy:
        run = begin(box, url, STEP_S="0.2", **moto.environ(port=proxy.port, home=box.root))
        until(lambda: mirrored(run, 5), 60, what=lambda: box.tail(run))
        proxy.down = True
        box.wait_step(run, 20)
        proxy.down = False
        assert "succeeded" == box.wait_for(run, "succeeded", "failed")["state"], box.tail(run)
        until(lambda: box.process(run, "shim") is None, 60, what="the end of the mirror")
    assert expected == final(run)
    assert mirrored(run, 40)
    assert not box.status(run)["mirror"]["behind"]
    assert "disk+mirror" == json.loads(box.holdfast("ckpt", "ls", run.id, "--json").stdout)[-1]["tier"]


def test_a_lost_folder_is_filled_from_the_mirror(box: Box, expected: str, tmp_path: Path) -> None:
    (tmp_path / "nas").mkdir()
    run = begin(box, f"{tmp_path}/nas/digits", STEP_S="0.1", SLOW_FROM="20")
    until(lambda: mirrored(run, 5), 60, what=lambda: box.tail(run))
    assert 0 == box.holdfast("stop", run.id).returncode
    box.wait_for(run, "stopped")
    assert [] == json.loads(box.holdfast("ckpt", "sync", run.id, "--json").stdout)["sent"][1:]
    pulled = box.holdfast("ckpt", "pull", run.id, "--json")
    assert 0 == pulled.returncode, pulled.stderr
    until(lambda: box.process(run, "shim") is None, 60, what="the end of the mirror")
    shutil.rmtree(run.checkpoints)

    assert 0 == box.holdfast("resume", run.id, "-d").returncode

    assert "succeeded" == box.wait_for(run, "succeeded", "failed")["state"], box.tail(run)
    assert expected == final(run)
    assert '"fetched"' in run.archiver_log.read_text()


def test_what_cannot_be_resumed_leaves_nothing_and_says_why(box: Box, tmp_path: Path, moto: Server) -> None:
    environ = {**moto.environ(home=tmp_path), "AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}"}
    away = box.holdfast("resume", f"s3://{BUCKET}/x", **environ)
    empty = box.holdfast("resume", f"s3://{BUCKET}/{uuid.uuid4()}", **moto.environ(home=tmp_path))
    wrong = box.holdfast("resume", "s4://x")

    assert StoreRefused.exit_code == away.returncode
    assert "nothing listens" in away.stderr
    assert NoValidCheckpoint.exit_code == empty.returncode
    assert 2 == wrong.returncode
    assert not list(box.home.glob("runs/*"))


def test_a_store_that_is_away_is_a_warning_and_a_wrong_url_an_error(box: Box, tmp_path: Path) -> None:
    shutil.copy(TINY, box.work / "train.py")
    box.write("holdfast.yaml", "name: digits\nrun: exec python train.py\ncheckpoint: {mirror: s4://bucket/x}\n")
    wrong = box.holdfast("run", "-d")
    box.write("holdfast.yaml", f"name: digits\nrun: exec python train.py\ncheckpoint: {{mirror: {tmp_path}/no/x}}\n")
    away = box.holdfast("run", "-d", STEP_S="0")

    assert RunFileError.exit_code == wrong.returncode
    assert "did you mean s3://" in wrong.stderr
    assert 0 == away.returncode
    run = RunDir(box.home / "runs" / "digits")
    assert "succeeded" == box.wait_for(run, "succeeded", "failed")["state"]
    until(lambda: "mirror-unreachable" in run.archiver_log.read_text(), 60, what="the finding")


@pytest.mark.soak
def test_a_run_that_ends_without_its_mirror_says_so(box: Box, tmp_path: Path) -> None:
    run = begin(box, f"{tmp_path}/no/digits", STEP_S="0")
    done = box.holdfast("wait", run.id)
    assert 0 == done.returncode
    assert box.process(run, "shim") is None  # `wait` stayed until the mirror was given up
    assert "mirror-behind" in run.archiver_log.read_text()
