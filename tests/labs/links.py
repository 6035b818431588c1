"""A link agent of the test's own, so that nobody's connections are touched."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast import process
from holdfast.link import mux, remote, target
from holdfast.link.agent import socket_path
from holdfast.link.client import held
from holdfast.link.mux import MasterGone
from tests.labs.sshd import Sshd
from tests.waiting import until


@contextlib.contextmanager
def own_links(home: Path, monkeypatch: pytest.MonkeyPatch, bundles: Path | None = None) -> Iterator[None]:
    """HOLDFAST_HOME is `home`; whatever agent was started under it is ended afterwards.

    bundles: wheels for nodes, so that nothing need be fetched.
    """
    home.mkdir(exist_ok=True)
    if bundles is not None:
        (home / "bundles").symlink_to(bundles)
    monkeypatch.setenv("HOLDFAST_HOME", str(home))
    try:
        yield
    finally:
        who = holder()
        if who is not None:
            process.send_signal(who, signal.SIGTERM)
            until(lambda: not process.alive(who))
        shutil.rmtree(target.folder(), ignore_errors=True)


def kill_agent() -> None:
    """SIGKILL; returns when nobody listens any more, which is after its main thread has gone."""
    who = holder()
    assert who is not None
    process.send_signal(who, signal.SIGKILL)
    until(lambda: not process.alive(who))
    until(lambda: not _listens())


def _listens() -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(socket_path())) == 0


def holder() -> process.Identity | None:
    """The agent."""
    path = target.folder() / "agent.lock"
    return process.identity(int(path.read_text() or 0)) if path.exists() else None


def kill_master(alias: str = "node") -> None:
    """SIGKILL, of the link to `alias`, as soon as that is up."""

    def killed() -> bool:
        paths = [link["path"] for link in held() if link["alias"] == alias and link["state"] == "up"]
        with contextlib.suppress(MasterGone, ProcessLookupError):  # it is just going
            for path in paths:
                os.kill(master_of(path), signal.SIGKILL)
                return True
        return False

    until(killed)


def no_slot_is_taken(server: Sshd) -> None:
    """By what is gone: 200 commands, 6 asked for at a time, of which the server refuses none."""
    refusals = server.log.count("no more sessions")
    done = list(remote.everywhere(["node"] * 200, "true", config=str(server.config), at_once=6))
    assert {(one.status, one.error) for one in done} == {(0, "")}
    assert server.log.count("no more sessions") == refusals


def processes(home: Path, word: str) -> list[int]:
    """Pids of the user whose home it is, with `word` in their command lines."""
    argv = ["pgrep", "-u", str(home.stat().st_uid), "-f", word]
    return [int(pid) for pid in subprocess.run(argv, capture_output=True, text=True, check=False).stdout.split()]


def master_of(path: str) -> int:
    """The pid of the master behind a control socket."""
    return asyncio.run(mux.alive(path))
