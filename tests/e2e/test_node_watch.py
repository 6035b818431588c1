"""What the supervisor sees of training: hangs, saves and stops by the page, news by the records. The library is a
script that writes the same page and records."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from holdfast import process
from holdfast.events import (
    AttemptEnded,
    CallbackFailed,
    CheckpointCommitted,
    FindingCleared,
    FindingRaised,
    HangDetected,
    Restored,
    StacksCaptured,
)
from holdfast.node import client
from holdfast.plan import LogsPlan, WatchdogPlan
from holdfast.runs import RunDir
from tests import noderuns, rundirs
from tests.noderuns import python
from tests.waiting import until

pytestmark = pytest.mark.e2e

TRAIN = """
import faulthandler, json, os, pathlib, signal, sys, time
from holdfast import heartbeat, process
from holdfast.heartbeat import Handlers, Outcome, Phase

runtime, attempt = pathlib.Path(os.environ["HOLDFAST_RUNTIME_DIR"]), int(os.environ["HOLDFAST_ATTEMPT"])
run = pathlib.Path(os.environ["HOLDFAST_RUN_DIR"])
me = process.identity(os.getpid())
page = heartbeat.Page(heartbeat.page_path(runtime, 0))
faulthandler.register(signal.SIGUSR2, all_threads=True)

def note(**record):
    with (run / "records" / "rank-00000.jsonl").open("a") as file:
        file.write(json.dumps({"t": time.time(), "attempt": attempt, **record}) + "\\n")

def beat(**words):
    page.set(**words, beat_ns=time.monotonic_ns())

def begin():
    page.begin(pid=me.pid, start_ticks=me.start_ticks, rank=0, world=1, attempt=attempt)
    beat(phase=Phase.RUNNING, handlers=Handlers.STACKS, steps_total=1000)
    note(event="restored", step=0, term=attempt)
    print("up", flush=True)

def step(n):
    time.sleep(0.05)
    beat(step=n)
    note(step=n, epoch=0, loss=1 / n)
    if 0 < page.get("stop_at_step") <= n:
        beat(outcome=Outcome.STOPPED)
        sys.exit(75)
    if page.get("save_number") > page.get("save_handled") and page.get("save_at_step") <= n:
        page.set(save_handled=page.get("save_number"))
        note(event="saved", step=n)

def hang_here():
    while True:
        signal.pause()
"""


def begin(base: Path, body: str, **plan: Any) -> RunDir:
    return noderuns.begin(base, python(TRAIN + "begin()\n" + body), **plan)


FOREVER = "n = 0\nwhile True:\n    n += 1\n    step(n)\n"
SOON = WatchdogPlan(progress_s=2.0)  # longer than a machine with much to do lets a step wait
HANGS_ONCE = "for n in range(1, 4): step(n)\nif attempt == 1: hang_here()\n"


def test_a_hang_is_seen_its_stacks_are_kept_and_it_is_restarted(home: Path) -> None:
    run = begin(home, HANGS_ONCE, watchdog=SOON)

    assert noderuns.ended(run, 40.0).state == "succeeded"

    (hang,) = noderuns.of(run, HangDetected)
    assert (hang.attempt, hang.step) == (1, 3)
    (stacks,) = noderuns.of(run, StacksCaptured)
    text = (run.root / stacks.path).read_text()
    assert "in hang_here" in text
    assert "state S" in text
    assert noderuns.of(run, AttemptEnded)[0].exit_class == "hang"
    assert "hang" in [finding.id for finding in noderuns.of(run, FindingCleared)]


def test_a_stopped_process_is_a_hang_too(home: Path) -> None:
    run = begin(home, "n = 0\nwhile attempt == 1:\n    n += 1\n    step(n)\n", watchdog=SOON)
    until(lambda: client.status(run)["step"] >= 3)

    os.kill(noderuns.role(run, "trainer").pid, signal.SIGSTOP)

    assert noderuns.ended(run, 40.0).state == "succeeded"
    assert "state T" in (run.stacks / "attempt-0001.txt").read_text()


def test_notify_leaves_a_hang_alone_and_takes_the_finding_back(home: Path) -> None:
    run = begin(home, FOREVER, watchdog=WatchdogPlan(progress_s=0.6, action="notify"))
    until(lambda: client.status(run)["step"] >= 3)
    trainer = noderuns.role(run, "trainer")

    process.send_signal(trainer, signal.SIGSTOP)
    until(lambda: "hang" in [finding["id"] for finding in client.status(run)["findings"]])
    process.send_signal(trainer, signal.SIGCONT)

    until(lambda: "hang" not in [finding["id"] for finding in client.status(run)["findings"]])
    assert noderuns.role(run, "trainer") == trainer


def test_a_supervisor_that_was_stopped_sees_no_hang(home: Path) -> None:
    run = begin(home, FOREVER, watchdog=WatchdogPlan(progress_s=2.0))
    until(lambda: client.status(run)["step"] >= 3)
    both = [noderuns.role(run, "supervisor"), noderuns.role(run, "trainer")]

    for who in both:
        process.send_signal(who, signal.SIGSTOP)
    slept_s = time.monotonic() + 4.0
    until(lambda: time.monotonic() > slept_s)
    for who in both:
        process.send_signal(who, signal.SIGCONT)
    reached = client.status(run)["step"]
    until(lambda: client.status(run)["step"] >= reached + 10)

    assert noderuns.of(run, HangDetected) == []


def test_stop_agrees_on_the_next_step_and_leaves_with_75(home: Path) -> None:
    run = begin(home, FOREVER)
    until(lambda: client.status(run)["step"] >= 3)

    client.call(run, "POST", "/stop")

    result = noderuns.ended(run)
    assert (result.state, result.exit_code) == ("stopped", 75)
    assert noderuns.of(run, AttemptEnded)[0].exit_class == "stopped"


def test_save_reaches_the_page(home: Path) -> None:
    run = begin(home, FOREVER)
    until(lambda: client.status(run)["step"] >= 1)

    assert client.call(run, "POST", "/save", {"reason": "because"})["number"] == 1

    until(lambda: '"saved"' in (run.records / "rank-00000.jsonl").read_text())


def test_status_tells_step_loss_speed_and_what_is_left(home: Path) -> None:
    run = begin(home, FOREVER, logs=LogsPlan(heartbeat_s=0.5))
    until(lambda: client.status(run)["step"] >= 12)

    told = client.status(run)

    assert told["state"] == "running"
    assert told["steps_total"] == 1000
    assert 0 < told["metrics"]["loss"] <= 1
    assert 1 < told["speed_steps_per_s"] < 100
    assert told["eta_s"] > 1
    assert told["attempts"][0]["attempt"] == 1
    until(lambda: b"steps/s" in run.output.read_bytes())
    line = next(line for line in run.output.read_text().splitlines() if "steps/s" in line)
    assert line.startswith("[holdfast ")
    assert "of 1000" in line
    assert "GB free" in line


def test_what_library_and_archiver_write_is_journaled_once(home: Path) -> None:
    body = 'note(event="callback_failed", callback="before_save", message="no")\n' + FOREVER
    run = begin(home, body)
    write(run, event="committed", step=2, term=1, sequence=1, size_bytes=9, reason="every 2 steps", seconds=0.1)
    write(run, event="save_failed", step=4, reason="every 2 steps", message="[Errno 28] No space left on device")
    until(lambda: "disk-full" in [finding["id"] for finding in noderuns.answers(run)["findings"]])
    old = noderuns.role(run, "supervisor")
    until(noderuns.kill(old))
    noderuns.replaced(run, "supervisor", old)
    write(run, event="committed", step=6, term=1, sequence=2, size_bytes=9, reason="every 2 steps", seconds=0.1)

    until(lambda: "disk-full" in [finding.id for finding in noderuns.of(run, FindingCleared)])

    assert [event.step for event in noderuns.of(run, CheckpointCommitted)] == [2, 6]
    assert len(noderuns.of(run, Restored)) == 1
    assert len(noderuns.of(run, CallbackFailed)) == 1
    full = [finding for finding in noderuns.of(run, FindingRaised) if finding.id == "disk-full"]
    assert len(full) == 1
    assert noderuns.answers(run)["checkpoint"]["step"] == 6


def write(run: RunDir, **line: Any) -> None:
    """As the archiver writes."""
    with run.archiver_log.open("a") as file:
        file.write(json.dumps({"t": time.time(), **line}) + "\n")


def test_without_a_supervisor_status_comes_from_files(home: Path) -> None:
    run = begin(home, "for n in range(1, 4): step(n)\n")
    noderuns.ended(run)

    told = client.status(run)

    assert (told["state"], told["exit_code"], told["step"]) == ("succeeded", 0, 3)
    assert rundirs.state(run).library
