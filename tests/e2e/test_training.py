"""A real training run: killed, stopped, resumed, started over from an earlier step: never a bit of difference."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from holdfast.runs import RunDir
from tests.e2e.box import Box
from tests.needs import need
from tests.waiting import until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

TINY = Path(__file__).parent / "scripts" / "tiny.py"


def _begin(box: Box, name: str, every: str = "5 steps", **env: str) -> RunDir:
    shutil.copy(TINY, box.work / "train.py")
    box.write("holdfast.yaml", f"name: {name}\nrun: exec python train.py\ncheckpoint: {{every: [{every}]}}\n")
    return box.start(**env)


def _digest(run: RunDir) -> str:
    return (run.root / "final.txt").read_text()


def _steps(run: RunDir) -> list[int]:
    lines = (run.records / "rank-00000.jsonl").read_text().splitlines()
    return [found["step"] for line in lines if "loss" in (found := json.loads(line))]


@pytest.mark.parametrize(("roles", "attempts"), [(("trainer",), 2), (("supervisor", "archiver", "shim"), 1)])
def test_killed_one_after_the_other_it_ends_bit_identical(
    box: Box, expected: str, roles: tuple[str, ...], attempts: int
) -> None:
    run = _begin(box, "hit", STEP_S="0.1", SLOW_FROM="30")

    for step, role in zip((12, 18, 24), roles, strict=False):
        box.wait_step(run, step)
        box.kill(run, role)
    (run.root / "enough").touch()

    found = box.wait_for(run, "succeeded", "failed")
    assert (found["state"], found["attempt"]) == ("succeeded", attempts), box.tail(run)
    assert expected == _digest(run)
    assert set(range(1, 41)) == set(_steps(run))


def test_stop_saves_and_resume_continues_where_it_stopped(box: Box, expected: str) -> None:
    run = _begin(box, "paused", every="1000 steps", STEP_S="0.05", SLOW_FROM="25")
    at = box.wait_step(run, 7)["step"]

    assert box.holdfast("stop", "paused").returncode == 0
    box.wait_for(run, "stopped")
    stopped = json.loads(box.holdfast("status", "paused", "--json").stdout)
    assert 75 == stopped["exit_code"] == box.holdfast("wait", "paused").returncode
    assert stopped["checkpoint"]["step"] == stopped["step"] >= at

    assert box.holdfast("resume", "paused", "-d").returncode == 0
    box.wait_for(run, "succeeded")
    assert expected == _digest(run)
    assert list(range(1, 41)) == _steps(run), "no step twice, none lost"


def test_a_machine_going_down_saves_and_marks_as_to_be_continued(box: Box, expected: str) -> None:
    run = _begin(box, "spot", every="1000 steps", STEP_S="0.05", SLOW_FROM="15")
    box.wait_step(run, 7)

    box.kill(run, "shim", signal.SIGTERM)

    found = box.wait_for(run, "stopped")
    assert found["to_be_continued"]
    assert found["checkpoint"]["step"] == found["step"]
    assert box.holdfast("resume", "--all", "-d").returncode == 0
    box.wait_for(run, "succeeded")
    assert expected == _digest(run)


def test_sigterm_to_the_trainer_alone_saves_and_goes_on_without_losing_a_step(box: Box, expected: str) -> None:
    run = _begin(box, "nudged", every="1000 steps", STEP_S="0.05", SLOW_FROM="15")
    box.wait_step(run, 7)

    box.kill(run, "trainer", signal.SIGTERM)
    (run.root / "enough").touch()

    found = box.wait_for(run, "succeeded", "failed")
    assert (found["state"], found["attempt"]) == ("succeeded", 2), box.tail(run)
    assert expected == _digest(run)
    assert list(range(1, 41)) == _steps(run), "no step twice, none lost"


def test_resume_at_a_step_keeps_the_later_ones_aside_and_at_none_says_which_are(box: Box, expected: str) -> None:
    run = _begin(box, "back", every="10 steps", STEP_S="0")
    box.wait_for(run, "succeeded")
    shown = json.loads(box.holdfast("ckpt", "ls", "back", "--json").stdout)
    kept = sorted(entry["step"] for entry in shown if entry["live"])
    (run.root / "final.txt").unlink()

    missing = box.holdfast("resume", "back@7", "-d")
    assert missing.returncode != 0
    assert "40" in missing.stderr
    assert box.holdfast("resume", f"back@{kept[0]}", "-d").returncode == 0
    box.wait_for(run, "succeeded")

    assert expected == _digest(run)
    shown = json.loads(box.holdfast("ckpt", "ls", "back", "--all", "--json").stdout)
    assert set(kept[1:]) <= {entry["step"] for entry in shown if not entry["live"]}


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(box: Box, expected: str) -> None:
    run = _begin(box, "bitrot", STEP_S="0.1", SLOW_FROM="25")
    box.wait_step(run, 12)
    box.holdfast("stop", "bitrot")
    box.wait_for(run, "stopped")
    newest = sorted((run.checkpoints / "manifests").iterdir())[-1]
    raw = bytearray(newest.read_bytes())
    raw[len(raw) // 2] ^= 1
    newest.write_bytes(raw)

    box.holdfast("resume", "bitrot", "-d")
    found = box.wait_for(run, "succeeded")

    assert expected == _digest(run)
    told = newest.name[:28]  # term, sequence, and the hash as far as sentences give it
    findings = [finding["id"] for finding in found["findings"] if told in finding["message"]]
    assert findings == ["checkpoint-damaged"]
    assert told in run.output.read_text()


def test_a_full_disk_costs_nothing_but_the_save(box: Box, tmp_path: Path, expected: str) -> None:
    need(os.geteuid() == 0, "needs root to mount a small tmpfs")
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(small)], check=True)
    try:
        shutil.copy(TINY, box.work / "train.py")
        box.write(
            "holdfast.yaml",
            f"name: full\nrun: exec python train.py\ncheckpoint: {{dir: {small}/ckpt, every: [3 steps]}}\n",
        )
        run = box.start(STEP_S="0.1", SLOW_FROM="25")
        until(lambda: (box.status(run)["checkpoint"] or {}).get("step"), 60, what=lambda: box.tail(run))
        hog = small / "hog"
        with hog.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
            while stream.write(b"x" * 4096):
                pass

        def disk_full() -> bool:
            return "disk-full" in {finding["id"] for finding in box.status(run)["findings"]}

        until(disk_full, what=lambda: "the finding\n" + box.tail(run))
        hog.unlink()
        (run.root / "enough").touch()

        found = box.wait_for(run, "succeeded", "failed")
        assert found["state"] == "succeeded"
        assert "disk-full" not in {finding["id"] for finding in found["findings"]}
        assert expected == _digest(run)
        assert box.holdfast("ckpt", "verify", "full").returncode == 0
    finally:
        box.close()
        subprocess.run(["umount", "-l", str(small)], check=True)


def test_a_disk_full_of_everything_leaves_output_records_and_status_working(
    box: Box, tmp_path: Path, expected: str
) -> None:
    need(os.geteuid() == 0, "needs root to mount a small tmpfs")
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(small)], check=True)
    there = Box(tmp_path, home_dir=small / "home")
    try:
        run = _begin(there, "brimful", every="3 steps", STEP_S="0.2", SLOW_FROM="30")
        until(lambda: (there.status(run)["checkpoint"] or {}).get("step"), 60, what=lambda: there.tail(run))
        with (small / "hog").open("wb", buffering=0) as stream, contextlib.suppress(OSError):
            while stream.write(b"x" * 4096):
                pass

        def told() -> bool:
            return "disk-full" in {finding["id"] for finding in there.status(run)["findings"]}

        until(told, what=lambda: "the finding\n" + there.tail(run))
        at = there.status(run)["step"]
        there.wait_step(run, at + 5)
        (small / "hog").unlink()
        (run.root / "enough").touch()

        found = there.wait_for(run, "succeeded", "failed")
        assert (found["state"], found["attempt"]) == ("succeeded", 1), there.tail(run)
        assert expected == _digest(run)
        assert list(range(1, 41)) == _steps(run)
        assert run.output.stat().st_blocks * 512 < 1 << 20, "the reserve was given back"
    finally:
        there.close()
        subprocess.run(["umount", "-l", str(small)], check=True)


MLFLOW = """
import os, types
def active_run():
    made = os.environ.get("MLFLOW_RUN_ID") or f"made-{os.getpid()}"
    return types.SimpleNamespace(info=types.SimpleNamespace(run_id=made))
"""
TRACKED = """
import os, pathlib, signal, time, torch, mlflow, holdfast
with pathlib.Path(os.environ["HOLDFAST_RUN_DIR"], "ids").open("a") as file:
    print(mlflow.active_run().info.run_id, file=file)
run = holdfast.Run(model=torch.nn.Linear(2, 1))
run.begin()
run.on("committed", lambda occasion: run.resumed or os.kill(os.getpid(), signal.SIGKILL))
while run.step < 300 or not run.resumed:
    run.tick()
    if run.step == 3:
        run.save()
    time.sleep(0 if run.resumed else 0.02)
"""


def test_mlflow_history_goes_on_in_the_next_attempt(box: Box) -> None:
    box.write("mlflow.py", MLFLOW)
    box.write("train.py", TRACKED)
    run = box.start("--name", "tracked", "--", "python", "train.py")

    found = box.wait_for(run, "succeeded", "failed")

    ids = (run.root / "ids").read_text().split()
    assert (found["state"], found["attempt"], len(ids), len(set(ids))) == ("succeeded", 2, 2, 1), box.tail(run)
