"""Places that are hard to write to: told, and training goes on."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from holdfast.checkpoint.canonical import NewerFormat, encode_checked
from holdfast.runs import RunDir
from tests.cgroups import limited
from tests.e2e.box import TRAINS, Box
from tests.jsonlines import events
from tests.labs.clock import clock
from tests.labs.disks import loop_ext4, throttled
from tests.labs.mounts import apart
from tests.needs import need
from tests.waiting import until

pytestmark = pytest.mark.e2e

SCRIPTS = Path(__file__).parent / "scripts"
STATE_MB, SLOW = 16, 5_000_000
GIB = 1 << 30


def prepare(box: Box, script: str, checkpoint: str) -> None:
    """The training and its run file in the working folder."""
    shutil.copy(SCRIPTS / script, box.work / "train.py")
    box.write("holdfast.yaml", f"name: hard\nrun: exec python train.py\ncheckpoint: {{{checkpoint}}}\n")


def committed(run: RunDir) -> int:
    return len(events(run.archiver_log, "committed"))


def told(box: Box, run: RunDir, name: str, within_s: float = 60) -> str:
    """What the finding of that id says, once it is there."""

    def said() -> str | None:
        found = {finding["id"]: str(finding["message"]) for finding in box.status(run)["findings"]}
        return found.get(name)

    return str(until(said, within_s, every_s=0.2, what=lambda: f"{name}\n{box.tail(run)}"))


def goes_on(box: Box, run: RunDir, steps: int = 10) -> None:
    """Training does that many steps more, in the same attempt."""
    before = box.status(run)
    after = box.wait_step(run, before["step"] + steps)
    assert after["state"] in TRAINS, box.tail(run)
    assert after["attempt"] == before["attempt"], box.tail(run)


def ends_whole(box: Box, run: RunDir, *, attempts: int = 1, within_s: float = 60) -> None:
    """Told that it is enough, the run succeeds if its state is right, and every checkpoint is intact."""
    (run.root / "enough").touch()
    found = box.wait_for(run, "succeeded", "failed", within_s=within_s)
    assert (found["state"], found["attempt"]) == ("succeeded", attempts), box.tail(run)
    verified = box.holdfast("ckpt", "verify", run.id, timeout_s=within_s)
    assert verified.returncode == 0, verified.stdout + verified.stderr


def test_a_disk_of_5_mb_a_second_costs_saves_and_no_step(box: Box, tmp_path: Path) -> None:
    with (
        loop_ext4(tmp_path, 256 << 20) as (disk, device),
        throttled(device, write_bytes_per_s=SLOW) as members,
        contextlib.closing(box),
    ):
        prepare(box, "heavy.py", f"dir: {disk}/ckpt, every: [1 steps]")
        run = box.start(STATE_MB=str(STATE_MB), STEPS="100000")
        archiver = until(lambda: box.process(run, "archiver"), what=lambda: box.tail(run))
        for task in Path(f"/proc/{archiver.pid}/task").iterdir():
            (members.parent / "tasks").write_text(task.name)
        skipped = run.records / "rank-00000.jsonl"
        until(lambda: committed(run) >= 2 and events(skipped, "save_skipped"), 60, what=lambda: box.tail(run))
        assert committed(run) < box.status(run)["step"] / 4

        ends_whole(box, run, within_s=90)

        slowest = max(float(str(one["write_seconds"])) for one in events(run.archiver_log, "committed"))
        assert slowest > STATE_MB * (1 << 20) / SLOW / 2, "the disk was not slow"


def test_a_disk_that_becomes_read_only_costs_saves_and_no_step(box: Box, tmp_path: Path) -> None:
    with loop_ext4(tmp_path, 64 << 20) as (disk, _), contextlib.closing(box):

        def remounted(how: str) -> bool:  # refused while a file is open for writing: between two saves it goes
            return subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], capture_output=True).returncode == 0

        prepare(box, "heavy.py", f"dir: {disk}/ckpt, every: [20 steps]")
        run = box.start(STATE_MB="1", STEPS="100000")
        until(lambda: committed(run), 60, what=lambda: box.tail(run))
        until(lambda: remounted("ro"), what="read-only")

        assert "Read-only file system" in told(box, run, "save-failed")
        goes_on(box, run)
        assert remounted("rw")
        before = committed(run)
        until(lambda: committed(run) > before, 60, what=lambda: box.tail(run))

        ends_whole(box, run)
        assert "save-failed" not in {finding["id"] for finding in box.status(run)["findings"]}


def test_a_clock_set_back_by_a_day_changes_nothing(box: Box, tmp_path: Path) -> None:
    wall = clock(tmp_path)
    prepare(box, "heavy.py", "every: [4 steps, 500ms], memory: off")
    run = box.start(STATE_MB="1", STEPS="100000", **wall.env)
    until(lambda: committed(run) >= 2, 60, what=lambda: box.tail(run))

    wall.set(-86_400)
    before = committed(run)
    goes_on(box, run, 20)
    until(lambda: committed(run) > before, 60, what=lambda: box.tail(run))
    at, before = max(int(str(one["step"])) for one in events(run.archiver_log, "committed")), committed(run)
    box.kill(run, "trainer")
    until(lambda: committed(run) > before + 2, 60, what=lambda: box.tail(run))

    ends_whole(box, run, attempts=2)
    times = [float(str(one["t"])) for one in events(run.archiver_log, "committed")]
    assert min(later - earlier for earlier, later in itertools.pairwise(times)) < -80_000
    restored = events(run.records / "rank-00000.jsonl", "restored")[-1]
    assert int(str(restored["step"])) >= at, "the newest, not the one of the latest time"


def test_a_folder_of_a_newer_version_is_left_alone(box: Box, tmp_path: Path) -> None:
    prepare(box, "heavy.py", f"dir: {tmp_path}/ckpt, every: [3 steps]")
    run = box.start(STATE_MB="1", STEPS="100000")
    until(lambda: committed(run), 60, what=lambda: box.tail(run))
    newer = encode_checked({"format": "holdfast", "version": 2})
    (tmp_path / "ckpt" / "format.json").write_bytes(newer)
    box.kill(run, "archiver")  # the next one looks at the folder anew

    assert "version 2" in told(box, run, "save-failed")
    goes_on(box, run)
    assert (tmp_path / "ckpt" / "format.json").read_bytes() == newer
    box.kill(run, "trainer", signal.SIGINT)
    refused = box.holdfast("ckpt", "verify", run.id)
    assert refused.returncode == NewerFormat.exit_code
    assert "version 2" in refused.stderr


def test_a_dev_shm_of_64_mb_is_too_small_for_the_copies_and_told(box: Box) -> None:
    need(os.geteuid() == 0, "needs root to mount over /dev/shm")
    prepare(box, "big_state.py", "every: [4 steps], memory: 1 step, memory_dir: /dev/shm")
    small = 'mount -t tmpfs -o size=64m,mode=1777 tmpfs /dev/shm && exec "$@"'
    started = subprocess.run(
        [*apart(), "sh", "-c", small, "sh", *box.argv("run", "-d", "--json")],
        cwd=box.work, env={**box.env, "STEPS": "100000"}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert started.returncode == 0, started.stderr
    run = RunDir(Path(json.loads(started.stdout)["dir"]))

    assert "/dev/shm" in told(box, run, "memory-dir-unusable")
    box.kill(run, "trainer")

    ends_whole(box, run, attempts=2)


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_a_hundred_thousand_tensors(box: Box) -> None:
    prepare(box, "sized.py", "every: [2 steps], memory: 1 step")
    run = box.start(COUNT="100000", ELEMENTS="64", STEPS="20", STEP_S="0.5")
    until(lambda: committed(run), 300, what=lambda: box.tail(run))

    box.kill(run, "trainer")

    ends_whole(box, run, attempts=2, within_s=300)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_one_tensor_of_8_gb_with_memory_for_one_copy_of_it(box: Box) -> None:
    lines = Path("/proc/meminfo").read_text().splitlines()
    free_kib = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    need(free_kib << 10 > 18 * GIB, f"needs 18 GiB of free memory, and {free_kib >> 20} are left")
    prepare(box, "sized.py", "every: [10 steps], memory: 10 steps, keep: {last: 1}")
    box.write("holdfast.yaml", (box.work / "holdfast.yaml").read_text() + "watchdog: {progress: 15m}\n")
    with limited(18 * GIB) as group, contextlib.closing(box):
        started = subprocess.run(
            group.argv(box.argv("run", "-d", "--json")),
            cwd=box.work, env={**box.env, "COUNT": "1", "ELEMENTS": "2000000000", "STEPS": "60", "STEP_S": "2"},
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert started.returncode == 0, started.stderr
        run = RunDir(Path(json.loads(started.stdout)["dir"]))
        assert "there is memory for 1 of 3 copies" in told(box, run, "memory-tier-reduced", 300)
        until(lambda: committed(run), 600, what=lambda: box.tail(run))
        box.kill(run, "trainer")

        ends_whole(box, run, attempts=2, within_s=900)
        assert group.oom_kills() == 0
