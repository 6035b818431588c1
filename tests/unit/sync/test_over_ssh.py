"""`holdfast sync` through a real sshd, to a user without rights and with an empty home."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.children import ended
from tests.labs import gate
from tests.labs import sshd as lab
from tests.labs.links import own_links
from tests.unit.commands.terminal import Terminal
from tests.unit.sync.ends import held, tree
from tests.waiting import until

pytestmark = pytest.mark.e2e


@dataclass(frozen=True, slots=True)
class Node:
    """A machine where a user without rights is let in, into an empty home and a shell that talks."""

    server: lab.Sshd
    home: Path
    user: str


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with lab.person() as (user, home), lab.sshd(tmp_path_factory.mktemp("sshd"), user, home) as server:
        (home / ".bashrc").write_text("echo welcome; echo to the node >&2\n")
        yield Node(server, home, user)


@pytest.fixture(autouse=True)
def links(tmp_path: Path, fetched: Path, monkeypatch: pytest.MonkeyPatch, node: Node) -> Iterator[None]:
    monkeypatch.setenv("HOLDFAST_SSH_CONFIG", str(node.server.config))
    with own_links(tmp_path / "laptop", monkeypatch, fetched):
        yield


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "holdfast", "sync", *words]


def sync(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*words), capture_output=True, text=True, timeout=100, check=False)


def test_there_and_back(tmp_path: Path, node: Node) -> None:
    source, there = tree(tmp_path / "s", a="one", pkg__b="two"), node.home / "there"

    first = sync(str(source), f"node:{there.name}")
    again = sync(str(source), f"node:{there.name}", "--json")
    (there / "result").write_text("made there")
    (there / "a").write_text("changed there")
    (source / "a").write_text("changed here")
    conflict = sync(str(source), f"node:{there.name}")
    back = sync(f"node:{there.name}", str(tmp_path / "back"))

    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("2 files brought (6 B) in ")
    assert json.loads(again.stdout)["moved_bytes"] == 0
    assert conflict.returncode == 1
    assert conflict.stderr.splitlines()[0] == "kept a: it was changed there"
    assert (back.returncode, held(tmp_path / "back")) == (0, held(there))


def test_who_looks_sees_how_far_holdfast_and_the_folder_are(tmp_path: Path, node: Node) -> None:
    shutil.rmtree(node.home / ".holdfast", ignore_errors=True)
    source = tree(tmp_path / "s", large=os.urandom(12 << 20))

    asked = Terminal("ps", "--on", "node")
    assert asked.exit_code() == 0
    brought = Terminal("sync", str(source), "node:looked")
    assert brought.exit_code() == 0

    assert re.search(r"holdfast → node .*[0-9.]+/[0-9.]+ MB", asked.shown.decode())
    assert re.search(rf"{source} → node:looked .*[0-9.]+/12\.6 MB", brought.shown.decode())


def test_a_cut_connection_is_made_again(tmp_path: Path, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """No connection carries half of it, before two were cut."""
    source, there = tree(tmp_path / "s", **{f"large{n}": os.urandom(12 << 20) for n in range(8)}), node.home / "large"
    closed, config = tmp_path / "closed", tmp_path / "config"
    closed.touch()
    config.write_text(node.server.config.read_text() + gate.lines(44 << 20, closed))
    monkeypatch.setenv("HOLDFAST_SSH_CONFIG", str(config))
    with ended(subprocess.Popen(command(str(source), f"node:{there.name}"), stderr=subprocess.PIPE)) as running:
        for count in (1, 3):
            until(lambda count=count: len(list(there.glob("large*"))) >= count, within_s=60)  # type: ignore[misc]
            for pid in lab.children(node.server.pid):
                lab.kill_connection(pid)
        closed.unlink()
        _, said = running.communicate(timeout=60)

    assert running.returncode == 0, said
    assert said.count(b"trying again") == 2
    assert held(there) == held(source)


def test_watching_brings_each_change(tmp_path: Path, node: Node) -> None:
    source, there = tree(tmp_path / "s", a="one"), node.home / "watched"
    words = command(str(source), f"node:{there.name}", "--watch", "--delete")
    with ended(subprocess.Popen(words, stdout=subprocess.DEVNULL)) as running:
        until((there / "a").exists)
        (source / "a").write_text("two")
        until(lambda: (there / "a").read_text() == "two")
        (source / "a").rename(source / "b")
        until(lambda: sorted(path.name for path in there.iterdir()) == ["b"])
        running.send_signal(signal.SIGINT)

        assert running.wait(60) == 130
    assert held(there) == held(source)


def test_wrong_calls_get_a_sentence(tmp_path: Path, node: Node) -> None:
    def said(*words: str) -> tuple[int, str]:
        done = sync(*words)
        return done.returncode, done.stderr.splitlines()[0]

    source = str(tree(tmp_path / "s", a="a"))
    assert said(source, str(tmp_path)) == (2, f"error: {source} and {tmp_path} are both here")
    assert said(source, "node:") == (2, "error: 'node:' names no folder of a host")
    assert said(f"{source}/a", "node:x") == (2, f"error: {source}/a is not a folder")
    assert said("node:nowhere", source) == (2, "error: node: there is no folder nowhere")


def test_a_bundle_that_is_gone_is_sent_again(tmp_path: Path, node: Node) -> None:
    source = str(tree(tmp_path / "s", a="a"))
    assert sync(source, "node:again").returncode == 0
    shutil.rmtree(node.home / ".holdfast" / "bundles")

    done = sync(source, "node:again")

    assert done.returncode == 0, done.stderr
    assert "sending holdfast to node" in done.stderr
