"""The shim's promises towards ranks and archiver, asked over its real socket; and exit statuses of strangers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from holdfast import process
from holdfast.node.shim import exit_status
from holdfast.runs import RunDir
from tests import noderuns, rundirs
from tests.waiting import until

pytestmark = pytest.mark.e2e


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDir]:
    """A run whose supervisor waits for a secret that never comes: the shim is ours."""
    with noderuns.home(tmp_path) as base:
        yield noderuns.begin(base, noderuns.shell("true"), secret_names=("NEVER",))


def ask(run: RunDir, message: dict[str, Any], fds: tuple[int, ...] = ()) -> tuple[dict[str, Any], list[int]]:
    return process.request(run.runtime / "shim.sock", message, fds=fds, timeout_s=60)


def inodes(fds: list[int]) -> list[int]:
    found = [os.fstat(descriptor).st_ino for descriptor in fds]
    for descriptor in fds:
        os.close(descriptor)
    return found


def me() -> dict[str, int]:
    who = process.identity(os.getpid())
    assert who is not None
    return {"pid": who.pid, "start_ticks": who.start_ticks}


def test_slots_are_made_once_and_the_same_afterwards(run: RunDir) -> None:
    first, second, other = (ask(run, {"op": "slots", "rank": rank})[1] for rank in (0, 0, 1))

    assert len(first) == 5
    told = inodes(first)
    assert inodes(second)[2:] == told[2:]
    assert not set(inodes(other)[2:]) & set(told[2:])


def test_an_offer_of_a_rank_beats_an_archivers(run: RunDir) -> None:
    mine = [os.memfd_create("mine") for _ in range(5)]
    ask(run, {"op": "offer", "rank": 7}, tuple(mine))

    told = inodes(ask(run, {"op": "slots", "rank": 7})[1])

    assert told == inodes(mine)


def test_a_second_process_of_a_rank_is_refused(run: RunDir) -> None:
    hello = {"op": "hello", "role": "rank", "rank": 0}
    with subprocess.Popen(["sleep", "60"]) as other:
        who = until(lambda: process.identity(other.pid))
        assert ask(run, {**hello, "pid": who.pid, "start_ticks": who.start_ticks})[0]["ok"]

        refused = ask(run, {**hello, **me()})[0]
        other.kill()

    assert (refused["ok"], refused["exit_code"], refused["pid"]) == (False, 11, other.pid)
    assert ask(run, {**hello, **me()})[0]["ok"]


def test_nonsense_is_answered_and_survived(run: RunDir) -> None:
    shim = noderuns.role(run, "shim")
    for message in ({"op": "dance"}, {}, {"op": "slots"}, {"op": "spawn", "attempt": 1}, {"op": "hello", "role": 3}):
        assert not ask(run, message)[0]["ok"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link:
        link.connect(str(run.runtime / "shim.sock"))
        link.send(b"\xff\x00 not json")
        assert not json.loads(link.recv(4096))["ok"]

    assert noderuns.role(run, "shim") == shim


def test_nobody_shares_a_session(run: RunDir) -> None:
    """What a signal to a group ends, and what an autogroup shares out."""
    found = [noderuns.role(run, name) for name in ("shim", "supervisor", "archiver")]

    assert len({os.getsid(who.pid) for who in found}) == len(found)


def test_alone_it_leaves_when_the_last_rank_has(tmp_path: Path) -> None:
    with noderuns.home(tmp_path) as base:
        run = rundirs.make(base, [], alone=True)
        process.start_shim(run, alone=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link:
            link.connect(str(run.runtime / "shim.sock"))
            process.send(link, {"op": "hello", "role": "rank", "rank": 0, **me()})
            assert process.receive(link)[0]["ok"]
            assert set(rundirs.processes(run)) <= {"shim", "archiver"}

        until(lambda: not rundirs.processes(run))


def test_what_a_shim_makes_is_private_whatever_the_umask(tmp_path: Path) -> None:
    with noderuns.home(tmp_path) as base:
        run = rundirs.make(base, [], alone=True)
        shutil.rmtree(run.runtime, ignore_errors=True)
        before = os.umask(0)
        try:
            process.start_shim(run, alone=True)
        finally:
            os.umask(before)

        modes = [path.stat().st_mode & 0o777 for path in (run.runtime, run.runtime / "pages")]
        ask(run, {"op": "finish"})
        until(lambda: not rundirs.processes(run))
        assert modes == [0o700, 0o700]


@pytest.mark.parametrize(("text", "expected"), [("exit 5", 5), ("kill -9 $$", -signal.SIGKILL)])
@pytest.mark.parametrize("reaped", [True, False])
def test_the_exit_status_of_a_stranger(text: str, expected: int, reaped: bool) -> None:
    with subprocess.Popen(["sh", "-c", f"read x; {text}"], stdin=subprocess.PIPE) as child:
        pidfd = os.pidfd_open(child.pid)
        assert child.stdin is not None
        child.stdin.close()
        if reaped:
            child.wait()
        else:
            until(lambda: process.identity(child.pid) is None)  # a zombie

        status = exit_status(pidfd, child.pid)
    os.close(pidfd)

    assert status is not None  # reaped: PIDFD_GET_INFO, Linux 6.15
    assert os.waitstatus_to_exitcode(status) == expected
