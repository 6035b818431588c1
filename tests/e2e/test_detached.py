"""The terminal, the session and the login may go: the run does not notice."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
from pathlib import Path

import pytest

from holdfast.process import alive
from holdfast.runs import RunDir
from tests.e2e.box import ROLES, Box
from tests.needs import need_program
from tests.waiting import until

pytestmark = pytest.mark.e2e

COUNT = """
import itertools, os, pathlib, time
enough = pathlib.Path(os.environ["HOLDFAST_RUN_DIR"], "enough")
for i in itertools.count():
    print("line", i, flush=True)
    if enough.exists():
        break
    time.sleep(0.02)
"""


def _sessions(pids: list[int]) -> set[int]:
    return {os.getsid(pid) for pid in pids}


def more(box: Box, run: RunDir) -> None:
    """Wait until it has printed ten lines more."""
    lines = run.output.read_bytes().count(b"\n") if run.output.exists() else 0
    until(
        lambda: run.output.exists() and run.output.read_bytes().count(b"\n") >= lines + 10, what=lambda: box.tail(run)
    )


def test_sighup_to_every_process_of_its_sessions_changes_nothing(box: Box) -> None:
    box.write("count.py", COUNT)
    run = box.start("--", "python", "count.py")
    more(box, run)
    before = {role: until(lambda role=role: box.process(run, role), what=role) for role in ROLES}

    for pid in box.marked():
        with contextlib.suppress(ProcessLookupError):  # one that ours had called for a moment
            os.kill(pid, signal.SIGHUP)
    more(box, run)

    assert {role: alive(found) for role, found in before.items()} == dict.fromkeys(ROLES, True)
    assert box.status(run)["attempt"] == 1


def test_closing_the_terminal_leaves_the_run_alone(box: Box) -> None:
    box.write("count.py", COUNT)
    leader, follower = pty.openpty()
    shell = subprocess.Popen(
        box.argv("run", "--name", "closed", "--", "python", "count.py"),
        cwd=box.work,
        env={**box.env, "TERM": "xterm"},
        stdin=follower,
        stdout=follower,
        stderr=follower,
        start_new_session=True,
    )
    os.close(follower)
    run = RunDir(box.home / "runs" / "closed")
    more(box, run)

    os.close(leader)  # the terminal is gone: the kernel sends SIGHUP to its session
    shell.wait(timeout=60)
    more(box, run)
    (run.root / "enough").touch()

    assert box.holdfast("wait", "closed").returncode == 0


def test_ours_share_no_session_with_the_starter(box: Box) -> None:
    box.write("count.py", COUNT)
    run = box.start("--", "python", "count.py")
    until(lambda: box.process(run, "trainer"))

    pids = [found.pid for role in ROLES if (found := box.process(run, role))]

    assert os.getsid(0) not in _sessions(pids)


@pytest.mark.parametrize("multiplexer", ["tmux", "screen"])
def test_attach_works_inside_a_multiplexer(box: Box, multiplexer: str, tmp_path: Path) -> None:
    program = need_program(multiplexer)
    box.write("count.py", COUNT)
    run = box.start("--", "python", "count.py")
    more(box, run)
    seen = tmp_path / "seen.txt"
    attach = " ".join([*box.argv("attach", run.id)])
    if multiplexer == "tmux":
        socket = str(box.short / "tmux")
        start = [program, "-S", socket, "new-session", "-d", "-x", "100", "-y", "30", f"cd {box.work} && {attach}"]
        look = [program, "-S", socket, "capture-pane", "-p"]
        stop = [program, "-S", socket, "kill-server"]
    else:
        log = str(seen)
        start = [program, "-L", "-Logfile", log, "-dmS", f"hf{os.getpid()}", "sh", "-c", f"cd {box.work} && {attach}"]
        look = ["cat", log]
        stop = [program, "-S", f"hf{os.getpid()}", "-X", "quit"]
    env = {**box.env, "TERM": "xterm", "SCREENDIR": _private(box.short / "screen")}
    subprocess.run(start, env=env, check=True, timeout=20)

    def shown() -> str:
        return subprocess.run(look, env=env, capture_output=True, text=True, timeout=20, check=False).stdout

    try:
        until(lambda: "line" in shown(), what=f"output in {multiplexer}")
    finally:
        subprocess.run(stop, env=env, check=False, timeout=20)
    more(box, run)
    (run.root / "enough").touch()
    box.wait_for(run, "succeeded")


def _private(folder: Path) -> str:
    folder.mkdir(mode=0o700)
    return str(folder)
