"""Triggers on real runs: clocks among ranks, signals, metrics, and what `auto` makes of measured costs."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from holdfast import goodput
from holdfast.heartbeat import Beat, Page, page_path
from holdfast.plan import CheckpointPlan, Every, Plan
from holdfast.runs import RunDir
from holdfast.units import show_duration
from tests.e2e.box import Box
from tests.jsonlines import events
from tests.waiting import until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

SCRIPTS = Path(__file__).parent / "scripts"


def test_two_ranks_save_by_the_clock_and_by_a_signal_to_one_of_them_at_the_same_steps(box: Box) -> None:
    shutil.copy(SCRIPTS / "two_ranks.py", box.work / "train.py")
    command = "exec torchrun --standalone --nproc-per-node 2 train.py"
    box.write("holdfast.yaml", f"name: clock\nrun: {command}\ncheckpoint: {{every: 1500ms}}\n")
    run = box.start(STEP_S="0.1", SLOW_FROM="35")
    path = page_path(run.runtime, 1)

    def training() -> Beat | None:
        beat = Page(path).read() if path.exists() else None
        return beat if beat and beat.step else None

    beat = until(training, 60, what=lambda: f"a step\n{box.tail(run)}")
    os.kill(beat.pid, signal.SIGUSR1)  # long before the clock
    for reason in ("requested", "every 1.5 s"):
        until(lambda reason=reason: committed(run, reason), what=lambda reason=reason: f"{reason}\n{box.tail(run)}")
    (run.root / "enough").touch()

    found = box.wait_for(run, "succeeded", "failed")
    assert (found["state"], found["attempt"]) == ("succeeded", 1), box.tail(run)
    assert events(run.archiver_log, "save_failed") == []
    sealed = [[line["step"] for line in events(run.records / f"rank-0000{rank}.jsonl", "sealed")] for rank in (0, 1)]
    assert sealed[0] == sealed[1]


@pytest.fixture
def alone(tmp_path: Path) -> RunDir:
    """A run that two ranks of `train.py` in `tmp_path` start by themselves."""
    run = RunDir(tmp_path / "alone")
    run.root.mkdir()
    checkpoint = CheckpointPlan(dir=str(run.checkpoints), every=Every(auto=False, seconds=0.3))
    names = {"run": run.id, "name": run.id, "dir": str(run.root), "cwd": str(tmp_path)}
    run.plan.write_text(json.dumps(Plan(**names, argv=("python",), checkpoint=checkpoint, alone=True).to_json()))
    script = (SCRIPTS / "two_ranks.py").read_text().replace("loader=loader)", f"loader=loader, dir={str(run.root)!r})")
    (tmp_path / "train.py").write_text(script.replace('os.environ["HOLDFAST_RUN_DIR"]', repr(str(run.root))))
    return run


def committed(run: RunDir, reason: str) -> list[int]:
    """The steps of the checkpoints made for that reason."""
    return [line["step"] for line in events(run.archiver_log, "committed") if line["reason"] == reason]


def test_two_ranks_without_a_supervisor_agree_to_save_by_the_clock_and_to_stop(alone: RunDir, tmp_path: Path) -> None:
    with _torchrun(tmp_path, STEP_S="0.3") as stopped:
        until(lambda: committed(alone, "every 0.3 s"), 60, what="a save by the clock")
        stopped.terminate()
        stopped.wait(60)
    assert committed(alone, "stop")
    with _torchrun(tmp_path, STEP_S="0.02") as finished:
        assert finished.wait(100) == 0

    assert committed(alone, "final") == [40], "no rank had anything new after the loop"
    assert events(alone.archiver_log, "save_failed") == []
    restored = [line["step"] for line in events(alone.records / "rank-00001.jsonl", "restored")]
    assert restored == [0, committed(alone, "stop")[0]]


def test_what_one_of_two_ranks_changed_after_the_loop_is_saved_by_both(alone: RunDir, tmp_path: Path) -> None:
    with _torchrun(tmp_path, NEWS_OF_RANK="1") as finished:
        assert finished.wait(100) == 0

    assert committed(alone, "final") == [40, 40]
    assert events(alone.archiver_log, "save_failed") == []


@contextlib.contextmanager
def _torchrun(folder: Path, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    """train.py in `folder` under torchrun, ended at the end."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("HOLDFAST_")}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train.py"]
    with subprocess.Popen(
        command, cwd=folder, env={**environ, "OMP_NUM_THREADS": "1", **env}, stderr=subprocess.DEVNULL
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


def test_a_metric_that_always_improves_is_saved_as_often_as_the_overhead_allows(box: Box) -> None:
    shutil.copy(SCRIPTS / "improving.py", box.work / "train.py")
    saving = "every: 1000000 steps, max_overhead: 10%, keep: {best: {metric: loss, mode: min}}"
    box.write("holdfast.yaml", f"name: improving\nrun: exec python train.py\ncheckpoint: {{{saving}}}\n")
    run = box.start(TRAIN_S="6")
    box.wait_step(run, 5)
    page = Page(page_path(run.runtime, 0))  # our mapping outlives the file
    rank = run.records / "rank-00000.jsonl"

    def improvements() -> list[dict[str, Any]]:
        return [line for line in events(rank, "sealed") if line["reason"] == "loss improved"]

    until(lambda: len(improvements()) >= 2, what=lambda: f"what the budget allows after the first\n{box.tail(run)}")
    (run.root / "enough").touch()
    assert box.wait_for(run, "succeeded", "failed")["state"] == "succeeded", box.tail(run)

    took, improved = {line["step"]: line["seconds"] for line in events(rank, "sealed")}, improvements()
    beat = page.read()
    assert beat is not None
    assert beat.blocked_ns / 1e9 == pytest.approx(sum(took.values()), rel=0.01)
    wall_s = improved[-1]["t"] - events(rank, "restored")[0]["t"]
    blocked_s = sum(line["seconds"] for line in improved)
    assert blocked_s <= 0.10 * wall_s * 1.5 + 2 * max(took.values()), "the budget, and slack since saves vary"


def test_auto_chooses_by_what_it_measured_and_explain_shows_the_sum(box: Box) -> None:
    shutil.copy(SCRIPTS / "improving.py", box.work / "train.py")
    box.write("holdfast.yaml", "name: auto\nrun: exec python train.py\ncheckpoint: {memory: off}\n")
    run = box.start(TRAIN_S="0", DIES="1")
    until(lambda: committed(run, "auto"), 180, what=lambda: box.tail(run))
    (run.root / "enough").touch()
    assert box.wait_for(run, "succeeded", "failed")["state"] == "succeeded", box.tail(run)

    told = json.loads(box.holdfast("explain", "auto", "--json").stdout)
    (chosen,) = told["intervals"]
    sealed = [line["seconds"] for line in events(run.records / "rank-00000.jsonl", "sealed")]
    assert chosen["blocked_s"] == pytest.approx(sealed[-1])  # the resumed attempt made one save
    assert chosen["write_s"] > 0
    assert 0 < chosen["restart_s"] < 60
    assert chosen["failures"] == 1
    costs = chosen["blocked_s"], chosen["failure_s"], chosen["restart_s"]
    assert chosen["best_s"] == pytest.approx(goodput.best_s(*costs))
    assert chosen["seconds"] == max(10.0, chosen["best_s"], chosen["blocked_s"] / 0.03, chosen["write_s"])
    assert f"auto` saves every {show_duration(chosen['seconds'])}" in box.holdfast("explain", "auto").stdout
    assert box.status(run)["intervals"] == {"disk": chosen["seconds"]}
