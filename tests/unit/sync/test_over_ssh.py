"""`holdfast sync` through a real sshd."""

from __future__ import annotations

import getpass
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.labs import sshd as lab
from tests.labs.links import own_links
from tests.unit.sync.ends import held, tree
from tests.waiting import until

pytestmark = pytest.mark.e2e


@dataclass(frozen=True, slots=True)
class Node:
    """Where the user who runs the tests is let in again, with a home of its own for what holdfast knows there."""

    server: lab.Sshd
    python: Path


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    home = tmp_path_factory.mktemp("node")
    python = home / "python"
    python.write_text(f'#!/bin/sh\nHOLDFAST_HOME={home}/known exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    with lab.sshd(tmp_path_factory.mktemp("sshd"), getpass.getuser(), home) as server:
        yield Node(server, python)


@pytest.fixture(autouse=True)
def links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: Node) -> Iterator[None]:
    monkeypatch.setenv("HOLDFAST_SSH_CONFIG", str(node.server.config))
    with own_links(tmp_path / "home", monkeypatch):
        yield


def command(node: Node, *words: str) -> list[str]:
    return [sys.executable, "-m", "holdfast", "sync", "--python", str(node.python), *words]


def sync(node: Node, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(node, *words), capture_output=True, text=True, timeout=60, check=False)


def test_there_and_back(tmp_path: Path, node: Node) -> None:
    source, there = tree(tmp_path / "s", a="one", pkg__b="two"), tmp_path / "there"

    first = sync(node, str(source), f"node:{there}")
    again = sync(node, str(source), f"node:{there}", "--json")
    (there / "result").write_text("made there")
    (there / "a").write_text("changed there")
    (source / "a").write_text("changed here")
    conflict = sync(node, str(source), f"node:{there}")
    back = sync(node, f"node:{there}", str(tmp_path / "back"))

    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout.startswith("2 files brought (6 B) in ")
    assert json.loads(again.stdout)["moved_bytes"] == 0
    assert conflict.returncode == 1
    assert conflict.stderr.splitlines()[0] == "kept a: it was changed there"
    assert (back.returncode, held(tmp_path / "back")) == (0, held(there))


def test_a_cut_connection_is_made_again(tmp_path: Path, node: Node) -> None:
    source, there = tree(tmp_path / "s", **{f"large{n}": os.urandom(24 << 20) for n in range(4)}), tmp_path / "there"
    with subprocess.Popen(command(node, str(source), f"node:{there}"), stderr=subprocess.PIPE) as running:
        for count in (1, 3):
            until(lambda count=count: len(list(there.glob("large*"))) >= count)  # type: ignore[misc]
            found = subprocess.run(["pgrep", "-P", str(node.server.pid)], capture_output=True, text=True, check=True)
            for pid in found.stdout.split():
                os.kill(int(pid), signal.SIGKILL)
        _, said = running.communicate(timeout=60)

    assert running.returncode == 0, said
    assert said.count(b"trying again") == 2
    assert held(there) == held(source)


def test_watching_brings_each_change(tmp_path: Path, node: Node) -> None:
    source, there = tree(tmp_path / "s", a="one"), tmp_path / "there"
    words = command(node, str(source), f"node:{there}", "--watch", "--delete")
    with subprocess.Popen(words, stdout=subprocess.DEVNULL) as running:
        until((there / "a").exists)
        (source / "a").write_text("two")
        until(lambda: (there / "a").read_text() == "two")
        (source / "a").rename(source / "b")
        until(lambda: held(there) == held(source))
        running.send_signal(signal.SIGINT)

        assert running.wait(20) == 130


def test_wrong_calls_get_a_sentence(tmp_path: Path, node: Node) -> None:
    def said(*words: str) -> tuple[int, str]:
        done = sync(node, *words)
        return done.returncode, done.stderr.splitlines()[0]

    source = str(tree(tmp_path / "s", a="a"))
    assert said(source, str(tmp_path)) == (2, f"error: {source} and {tmp_path} are both here")
    assert said(source, "node:") == (2, "error: 'node:' names no folder of a host")
    assert said(f"{source}/a", "node:x") == (2, f"error: {source}/a is not a folder")
    assert said(f"node:{tmp_path}/nowhere", source) == (2, f"error: {tmp_path}/nowhere is not a folder")
    code, sentence = said(source, "node:x", "--python", "/nothing")
    assert (code, "node: holdfast did not start there" in sentence, "/nothing" in sentence) == (10, True, True)
