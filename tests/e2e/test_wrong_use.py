"""What people get wrong, and programs that are not what we hoped for: a clear message, or it simply works."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from holdfast.runs import RunDir
from tests.children import ended
from tests.e2e.box import Box
from tests.needs import need
from tests.waiting import until

pytestmark = pytest.mark.e2e


def _said(done: object) -> str:
    return f"{done.stdout}{done.stderr}"  # type: ignore[attr-defined]


def test_a_wrong_run_file_names_the_line_and_leaves_nothing_behind(box: Box) -> None:
    box.write("holdfast.yaml", "nmae: digits\nrun: echo hi\nrestart: {max_restarts: many}\n")

    done = box.holdfast("run", "-d")

    assert done.returncode == 3
    assert "did you mean 'name'" in _said(done)
    assert "max_restarts" in _said(done)
    assert not (box.root / "home" / "runs").exists() or not list((box.root / "home" / "runs").iterdir())


def test_no_run_file_says_what_to_do(box: Box) -> None:
    done = box.holdfast("run")

    assert done.returncode != 0
    assert "holdfast.yaml" in _said(done)
    assert "Traceback" not in _said(done)


def test_a_missing_program_is_told_before_anything_starts(box: Box) -> None:
    done = box.holdfast("run", "-d", "--", "no-such-program-here")

    assert done.returncode == 2
    assert "no-such-program-here" in _said(done)


def test_an_unwritable_home_is_one_sentence(box: Box) -> None:
    (box.root / "home").write_text("a file where the folder should be")

    done = box.holdfast("run", "-d", "--", "true")

    assert done.returncode != 0
    assert "Traceback" not in _said(done)
    assert str(box.root / "home") in _said(done)


@pytest.mark.parametrize(
    ("argv", "code"),
    [(("true",), 0), (("sh", "-c", "echo hello; exit 0"), 0)],
    ids=["true", "shell"],
)
def test_a_program_that_is_not_python_runs(box: Box, argv: tuple[str, ...], code: int) -> None:
    done = box.holdfast("run", "--", *argv)

    assert code == done.returncode, _said(done)


def test_a_failing_program_stops_with_its_reason(box: Box) -> None:
    box.write("holdfast.yaml", "run: 'echo boom >&2; exit 7'\nrestart: {max_restarts: 2, backoff: {initial: 100ms}}\n")

    done = box.holdfast("run", "--name", "fails")

    assert done.returncode not in (0, 1)
    assert "7" in box.holdfast("explain", "fails").stdout


def test_a_script_that_never_calls_holdfast_gets_its_variables_and_a_restart(box: Box) -> None:
    box.write(
        "plain.py",
        "import os, pathlib, signal\n"
        "mark = pathlib.Path(os.environ['HOLDFAST_RUN_DIR'], 'mark')\n"
        "assert 'HOLDFAST_CKPT_DIR' in os.environ and 'HOLDFAST_RESUME' in os.environ\n"
        "if not mark.exists():\n    mark.write_text('x')\n    os.kill(os.getpid(), signal.SIGKILL)\nprint('second')\n",
    )

    done = box.holdfast("run", "--name", "plain", "--", "python", "plain.py")

    assert done.returncode == 0, _said(done)
    assert "second" in _said(done)
    assert box.status(box_run(box, "plain"))["attempt"] == 2


def test_a_gigabyte_of_output_stays_within_its_bound(box: Box) -> None:
    box.write(
        "loud.py",
        "import sys\n"
        "block = (b'x' * 99 + b'\\n') * 10000\n"
        "for _ in range(1000):\n"
        "    sys.stdout.buffer.write(block)\n"
        "print('the end')\n",
    )
    box.write("holdfast.yaml", "name: loud\nrun: python loud.py\nlogs: {keep: 32MiB}\n")

    done = box.holdfast("run", "-d", timeout_s=60)
    assert done.returncode == 0, _said(done)
    assert box.holdfast("wait", "loud", timeout_s=120).returncode == 0

    output = box_run(box, "loud").output.stat()
    assert output.st_size > 1_000_000_000
    assert output.st_blocks * 512 < 100 << 20
    assert "the end" in box.holdfast("logs", "loud", "--tail", "3").stdout


def test_stop_ends_a_program_that_ignores_sigterm(box: Box) -> None:
    box.write(
        "deaf.py",
        "import signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('up', flush=True)\n"
        "time.sleep(600)\n",
    )
    box.write("holdfast.yaml", "name: deaf\nrun: python deaf.py\nstop_grace_period: 1s\n")
    run = box.start()
    until(lambda: run.output.exists() and b"up" in run.output.read_bytes(), what=lambda: box.tail(run))
    began = time.monotonic()

    assert box.holdfast("stop", "deaf").returncode == 0

    assert box.wait_for(run, "stopped")["state"] == "stopped"
    assert time.monotonic() - began < 30


def test_daemonised_children_do_not_outlive_their_attempt(box: Box) -> None:
    box.write(
        "daemon.py",
        "import os, sys, time, pathlib\n"
        "told = pathlib.Path(os.environ['HOLDFAST_RUN_DIR'], 'daemon')\n"
        "if os.fork() == 0:\n    os.setsid()\n"
        "    if os.fork() == 0:\n"
        "        told.write_text(f'{os.getpid()}\\n')\n"
        "        time.sleep(600)\n    os._exit(0)\n"
        "while not told.exists() or '\\n' not in told.read_text():\n    time.sleep(0.01)\n",
    )
    run = box.start("--name", "parent", "--", "python", "daemon.py")
    box.wait_for(run, "succeeded", "failed")

    pid = int((run.root / "daemon").read_text())
    until(lambda: not Path(f"/proc/{pid}").exists(), what=f"daemon {pid} gone")


def test_deleting_a_live_run_ends_its_processes(box: Box) -> None:
    run = box.start("--name", "gone", "--", "sleep", "600")
    until(lambda: box.process(run, "trainer"))

    until(lambda: shutil.rmtree(run.root, ignore_errors=True) or not run.root.exists())  # they write meanwhile

    until(lambda: not box.marked(), 30, what=lambda: f"nothing left of it, found {box.marked()}")


def test_a_full_home_is_one_sentence(box: Box, tmp_path: Path) -> None:
    need(os.geteuid() == 0, "needs root to mount a small tmpfs")
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], check=True)
    try:
        (small / "hog").write_bytes(b"x" * 60_000)

        done = box.holdfast("run", "-d", "--", "true", HOLDFAST_HOME=str(small))

        assert done.returncode == 1
        assert "No space left on device" in _said(done)
        assert "bug" not in _said(done)
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


ALONE = (
    "import sys, time, torch, holdfast\n"
    "with holdfast.Run(model=torch.nn.Linear(2, 1), dir='alone') as run:\n"
    "    for _ in range(3):\n"
    "        run.tick()\n"
    "    run.save(reason='asked')\n"
    "    print('up', flush=True)\n"
    "    sys.stdin.read()\n"
)


def test_a_script_by_itself_has_a_status_and_says_who_may_end_it(box: Box) -> None:
    box.write("alone.py", ALONE)
    begun = subprocess.Popen(
        ["python", "alone.py"], cwd=box.work, env=box.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with ended(begun) as script:
        assert script.stdin is not None
        assert script.stdout is not None
        assert script.stdout.readline() == b"up\n"

        live = json.loads(box.holdfast("status", "./alone", "--json").stdout)
        stopped = box.holdfast("stop", "./alone")
        script.stdin.close()
        script.wait(60)
    over = json.loads(box.holdfast("status", "./alone", "--json").stdout)

    assert (live["state"], live["step"], live["pid"]) == ("running", 3, script.pid)
    assert stopped.returncode == 2
    assert f"kill {script.pid}" in stopped.stderr
    assert (over["state"], over["checkpoint"]["step"]) == ("succeeded", 3)


def box_run(box: Box, name: str) -> RunDir:
    """The run directory called `name`."""
    return RunDir(box.root / "home" / "runs" / name)
