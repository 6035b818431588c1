"""A master and its network, with a real ssh and a real sshd."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from holdfast import process
from holdfast.link import mux, target
from holdfast.link.diagnosis import Cause
from holdfast.link.master import Master
from holdfast.link.states import MORE_PATIENCE_S, Link, State
from tests.labs import sshd as lab

pytestmark = pytest.mark.e2e


@pytest.fixture(autouse=True)
def own_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No link of whoever runs the tests is touched."""
    monkeypatch.setenv("HOLDFAST_HOME", str(tmp_path))
    yield
    shutil.rmtree(target.folder(), ignore_errors=True)


@contextlib.asynccontextmanager
async def serving(
    server: lab.Sshd, at_first: Callable[[Master], object] = lambda master: None
) -> AsyncIterator[tuple[Master, list[State]]]:
    """A master that is wanted, and the states it has been in; `at_first` happens within the first change."""
    seen: list[State] = []

    def tell(link: Link) -> None:
        seen.append(link.state)
        if len(seen) == 1:
            at_first(master)

    master = Master(target.resolve("node", config=str(server.config)), tell)
    task = asyncio.get_running_loop().create_task(master.serve())
    try:
        master.want()
        yield master, seen
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(condition: Callable[[], object], within_s: float = 30.0) -> None:
    """On the event loop."""
    deadline_s = asyncio.get_running_loop().time() + within_s
    while not condition():
        assert asyncio.get_running_loop().time() < deadline_s, f"not within {within_s:g} s"
        await asyncio.sleep(0.02)


def ours(server: lab.Sshd) -> list[int]:
    """The server's processes for connections, without the one that listens."""
    listed = subprocess.run(["pgrep", "-P", str(server.pid)], capture_output=True, text=True, check=False).stdout
    children = [int(word) for word in listed.split()]
    grand = [subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False) for pid in children]
    return [*children, *(int(word) for one in grand for word in one.stdout.split())]


def test_it_comes_up_when_wanted_and_ends_when_dropped(server: lab.Sshd) -> None:
    async def work() -> None:
        async with serving(server) as (master, seen):
            await until(lambda: master.link.state is State.UP)
            pid = await mux.alive(str(master.path))
            assert 0 < master.link.trip_s < 5 or master.link.trip_s == 0.0
            master.drop()
            await until(lambda: master.link.state is State.DOWN)
            assert process.identity(pid) is None
            assert seen[:2] == [State.CONNECTING, State.UP]
            await asyncio.sleep(0.5)
            assert master.link.state is State.DOWN

    asyncio.run(work())


def test_a_master_that_hangs_is_killed_when_it_should_end(server: lab.Sshd) -> None:
    async def work() -> process.Identity:
        async with serving(server) as (master, _):
            await until(lambda: master.link.state is State.UP)
            who = process.identity(await mux.alive(str(master.path)))
            assert who is not None
            os.kill(who.pid, signal.SIGSTOP)
        return who

    hung = asyncio.run(work())
    assert not process.alive(hung)


def test_a_master_that_is_killed_is_replaced(server: lab.Sshd) -> None:
    async def work() -> None:
        async with serving(server) as (master, seen):
            await until(lambda: master.link.state is State.UP)
            pid = await mux.alive(str(master.path))
            os.kill(pid, signal.SIGKILL)
            await until(lambda: seen.count(State.UP) == 2)
            assert await mux.alive(str(master.path)) != pid
            assert State.DOWN in seen

    asyncio.run(work())


def test_silence_is_noticed_and_another_connection_made(server: lab.Sshd) -> None:
    async def work() -> None:
        async with serving(server) as (master, seen):
            await until(lambda: master.link.state is State.UP)
            silent = ours(server)
            assert silent
            for pid in silent:
                with contextlib.suppress(ProcessLookupError):  # of a connection of the test before
                    os.kill(pid, signal.SIGSTOP)
            try:
                master.uproot()
                await until(lambda: State.SUSPECT in seen)
                await until(lambda: seen.count(State.UP) == 2)
                after = seen[seen.index(State.DEAD) :]
                assert after[:4] == [State.DEAD, State.DOWN, State.CONNECTING, State.UP]
            finally:
                for pid in silent:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)

    asyncio.run(work())


def test_a_machine_that_stood_still_does_not_take_that_for_silence(server: lab.Sshd) -> None:
    """Neither we nor ssh had the processor while a ping was under way, and ssh gets it back somewhat later."""

    async def work() -> None:
        async with serving(server) as (master, seen):
            await until(lambda: master.link.state is State.UP)
            ssh = process.identity(await mux.alive(str(master.path)))
            assert ssh is not None
            await until(lambda: master.link.asked_s is None)
            process.send_signal(ssh, signal.SIGSTOP)
            master.uproot()
            await asyncio.sleep(0)
            time.sleep(master.link.patience_s + MORE_PATIENCE_S + 0.5)
            later = threading.Timer(0.5, process.send_signal, (ssh, signal.SIGCONT))
            later.start()
            await until(lambda: master.link.asked_s is None)
            later.join()
            assert set(seen) <= {State.CONNECTING, State.UP, State.SUSPECT}
            assert await mux.alive(str(master.path)) == ssh.pid

    asyncio.run(work())


def test_a_key_that_is_not_taken_is_shown_once(server: lab.Sshd) -> None:
    async def work() -> None:
        server.allowed.write_text("")
        before = server.log.count("Connection from")
        async with serving(server) as (master, seen):
            await until(lambda: master.link.state is State.NEEDS_AUTHENTICATION)
            await asyncio.sleep(1.0)
            assert seen == [State.CONNECTING, State.NEEDS_AUTHENTICATION]
            assert master.link.why is not None
            assert master.link.why.cause is Cause.AUTHENTICATION
            assert server.log.count("Connection from") <= before + 1

    asyncio.run(work())


def test_what_a_killed_master_left_does_not_stand_in_the_way(server: lab.Sshd) -> None:
    async def work() -> None:
        async with serving(server) as (master, _):
            await until(lambda: master.link.state is State.UP)

    path = target.control_path(target.resolve("node", config=str(server.config)))
    target.make_folder()
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    asyncio.run(work())
    assert not path.exists()


def test_dropped_before_ssh_was_started_it_is_down_and_comes_when_wanted(server: lab.Sshd) -> None:
    async def work() -> None:
        async with serving(server, at_first=Master.drop) as (master, seen):
            await until(lambda: State.DEAD in seen and master.link.state is State.DOWN)
            master.want()
            await until(lambda: master.link.state is State.UP)
            # one connection, its process with rights and its process without, once those of the test before are gone
            await until(lambda: len(ours(server)) == 2)

    asyncio.run(work())


def test_ssh_that_cannot_be_started_is_told_and_tried_again(server: lab.Sshd) -> None:
    path = target.control_path(target.resolve("node", config=str(server.config)))
    log = path.with_name(f"{path.name}.log")
    target.make_folder()
    log.mkdir()

    async def work() -> None:
        async with serving(server) as (master, _):
            await until(lambda: master.link.failures)
            assert master.link.why is not None
            assert "ssh node could not be started: Is a directory" in master.link.why.sentence
            log.rmdir()
            await until(lambda: master.link.state is State.UP)

    asyncio.run(work())


def test_there_is_a_clock_where_there_is_no_boot_time() -> None:
    """macOS."""
    asked = "import time; del time.CLOCK_BOOTTIME; from holdfast.link import clock; print(clock.now_s())"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True)

    assert float(done.stdout) > 0, done.stderr
