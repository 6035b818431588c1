"""A child of a loop that has handlers, descriptors and garbage of its own, of which nothing may be left in it."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from holdfast.service.forking import Child
from tests.waiting import until

After = Callable[[Child, int], None]  # a child, and what reads its stdout


def ended(work: Callable[[], int], after: After = lambda _child, _out: None) -> tuple[int, list[int]]:
    """The exit status of a child of a loop that hears signals as the service's does, and which ones that has heard."""
    heard: list[int] = []

    async def main() -> int:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, heard.append, number)
        ours, its = os.pipe()
        with open(ours, "rb", 0), open(os.devnull, "r+b", 0) as nothing:  # noqa: PTH123
            with open(its, "wb", 0):  # noqa: PTH123
                child = Child(work, (nothing.fileno(), its, nothing.fileno()))
            assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())  # of what is blocked while it is made
            after(child, ours)
            return await asyncio.wait_for(child.ended, 30)

    return asyncio.run(main()), heard


def idle() -> int:
    while True:
        signal.pause()


def test_it_has_its_streams_and_no_other_descriptor() -> None:
    assert ended(lambda: sum(1 for _ in Path("/proc/self/fd").iterdir())) == (3 + 1, [])  # and the one that lists them


def test_its_signals_are_written_to_no_descriptor() -> None:
    """Where its parent's are told, there may be a file of the child."""
    assert ended(lambda: signal.set_wakeup_fd(-1) == -1) == (1, [])


def test_it_has_a_session_of_its_own() -> None:
    assert ended(lambda: os.getsid(0) == os.getpid()) == (1, [])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_however_early_and_is_not_told_to_its_parent(number: int) -> None:
    for _ in range(20):
        assert ended(idle, lambda child, _: child.signal(number)) == (-number, [])


def test_ctrl_c_is_an_exception_there() -> None:
    def work() -> int:
        try:
            os.write(1, b"!")
            return idle()
        except KeyboardInterrupt:
            return 9

    def interrupt(child: Child, out: int) -> None:
        os.read(out, 1)
        child.signal(signal.SIGINT)

    assert ended(work, interrupt) == (9, [])


def test_last_words_that_nobody_takes_can_be_interrupted_and_are_no_success() -> None:
    def work() -> int:
        os.set_blocking(1, False)
        try:
            while True:
                os.write(1, bytes(1 << 16))
        except BlockingIOError:
            os.set_blocking(1, True)
        print("end")
        return 0

    def interrupt(child: Child, _out: int) -> None:
        until(lambda: not _catches(child.pid, signal.SIGINT))  # which it does until its work is done
        child.signal(signal.SIGINT)

    assert ended(work, interrupt) == (-signal.SIGINT, [])


def _catches(pid: int, number: int) -> bool:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    mask = next(line.split()[1] for line in lines if line.startswith("SigCgt:"))
    return bool(int(mask, 16) >> (number - 1) & 1)


def test_what_is_collected_there_closes_no_descriptor_of_its_own() -> None:
    class Knot:
        def __init__(self) -> None:
            self.itself, self.descriptor = self, os.open(os.devnull, os.O_RDONLY)

        def __del__(self) -> None:
            os.close(self.descriptor)

    def work() -> int:
        os.dup2(1, number)
        gc.collect()
        os.fstat(number)
        return 0

    gc.disable()
    try:
        number = Knot().descriptor
        assert ended(work) == (0, [])
    finally:
        gc.enable()
        gc.collect()


@pytest.mark.parametrize(("parent", "status"), [("os.getppid()", 0), ("1 << 22", -signal.SIGHUP)])
def test_one_whose_service_was_killed_before_it_could_hear_of_it_ends(parent: str, status: int) -> None:
    code = f"import os; from holdfast.service import forking; forking._begin_anew((0, 1, 2), (), {parent})"

    assert subprocess.run([sys.executable, "-c", code], stdin=subprocess.DEVNULL, check=False).returncode == status
