"""A run on a machine that has no Python at all, from the laptop's command line to its end."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.labs import pythons
from tests.labs import sshd as lab
from tests.labs.links import own_links
from tests.labs.pythons import Shelf
from tests.needs import need, need_program

pytestmark = pytest.mark.e2e
SCRIPT = "readlink /proc/$PPID/exe\nwhile [ ! -e stop ]; do sleep 0.05; done\necho done\n"


@pytest.fixture
def there(tmp_path: Path, fetched: Path, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The home of a person on that machine; ours is the laptop."""
    need(os.geteuid() == 0, "needs root to hide the Pythons there")
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "train.sh").write_text(SCRIPT)
    for name, value in shelf.environ().items():
        monkeypatch.setenv(name, value)
    with lab.person() as (user, home), pythons.bare(tmp_path / "sshd", user, home) as server:
        monkeypatch.setenv("HOLDFAST_SSH_CONFIG", str(server.config))
        with own_links(tmp_path / "home", monkeypatch, fetched):
            yield home


def holdfast(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "holdfast", *words], cwd=folder, capture_output=True, text=True,
        stdin=subprocess.DEVNULL, timeout=110, check=False,
    )  # fmt: skip


def at_a_terminal(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """All that is seen there."""
    argv = [need_program("script"), "-qec", shlex.join([sys.executable, "-m", "holdfast", *words]), "/dev/null"]
    environ = {**os.environ, "TERM": "xterm"}
    return subprocess.run(
        argv,
        cwd=folder,
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


def test_a_run_begins_goes_on_and_ends_in_a_python_of_its_own(there: Path, tmp_path: Path) -> None:
    project = tmp_path / "project"

    made = at_a_terminal(project, "run", "--on", "node", "-d", "--name", "bare", "--", "sh", "train.sh")
    assert made.returncode == 0, made.stdout
    (told,) = (line for line in made.stdout.splitlines() if "has no Python" in line)
    (place,) = (there / ".holdfast" / "bundles").glob("python-*")
    refused = holdfast(project, "run", "--on", "node", "-d", "--", "python3", "train.py")
    (there / ".holdfast" / "runs" / "bare" / "code" / "stop").touch()
    ended = holdfast(project, "wait", "bare")
    output = holdfast(project, "logs", "bare").stdout.splitlines()

    assert "holdfast → node" in made.stdout
    assert told.startswith("node has no Python 3.10 or newer: it gets one of its own (CPython 3.")
    assert ended.returncode == 0, ended.stderr
    assert output[0].startswith(f"{place}/bin/python3")
    assert output[-1] == "done"
    assert refused.returncode != 0
    assert "there is no program 'python3' on PATH" in refused.stderr
    assert "a training runs in a Python of yours: name it in environment.python" in refused.stderr
