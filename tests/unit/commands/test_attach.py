from __future__ import annotations

import os
import pty
import select
import sys

from tests.unit.commands.scene import holdfast, make_run, status, supervised
from tests.waiting import until


class Terminal:
    """A program on a terminal of its own, as a person has it."""

    def __init__(self, *argv: str) -> None:
        self.pid, self.screen = pty.fork()
        if self.pid == 0:
            environ = {**os.environ, "TERM": "xterm", "COLUMNS": "160", "LINES": "40"}
            os.execve(sys.executable, [sys.executable, "-m", "holdfast", *argv], environ)
        self.shown = b""

    def read(self) -> bytes:
        """Everything shown so far."""
        while select.select([self.screen], [], [], 0)[0]:
            try:
                new = os.read(self.screen, 65_536)
            except OSError:  # the other end is closed
                break
            if not new:
                break
            self.shown += new
        return self.shown

    def await_text(self, text: bytes) -> None:
        """Until it was shown."""
        until(lambda: text in self.read(), what=f"{text!r} in {self.shown!r}")

    def press(self, key: bytes) -> None:
        """As on the keyboard."""
        os.write(self.screen, key)

    def exit_code(self) -> int:
        """Until it has ended."""

        def ended() -> tuple[int] | None:
            self.read()
            pid, code = os.waitpid(self.pid, os.WNOHANG)
            return (os.waitstatus_to_exitcode(code),) if pid else None

        code = until(ended)[0]
        self.read()
        os.close(self.screen)
        return code


def test_ctrl_c_leaves_the_run_running_and_says_how_to_come_back() -> None:
    run = make_run(output=b"epoch 1\n10%\r55%\nhalf a li")

    with supervised(run, status()) as fake:
        terminal = Terminal("attach", "digits")
        terminal.await_text(b"step 18200 of 50000")
        terminal.await_text(b"0.96 steps/s")
        terminal.press(b"\x03")
        code = terminal.exit_code()

    assert code == 130
    assert b"digits keeps running" in terminal.shown
    assert b"holdfast attach digits comes back" in terminal.shown
    assert b"55%" in terminal.shown
    assert b"10%" not in terminal.shown  # a terminal would have overwritten it
    assert b"half a li" in terminal.shown
    assert fake.asked == []


def test_a_terminal_shows_lines_as_they_come_and_ends_with_the_run() -> None:
    run = make_run(output=b"first\n")

    with supervised(run, status(restarts=0)) as fake:
        terminal = Terminal("attach", "digits")
        terminal.await_text(b"first")
        with run.output.open("ab") as log:
            log.write(b"second\n")
        terminal.await_text(b"second")
        fake.ends("failed", 13)
        code = terminal.exit_code()

    assert code == 13
    assert b"hint: holdfast explain digits" in terminal.shown


def test_without_a_terminal_it_is_the_plain_log() -> None:
    run = make_run(output=b"".join(b"line %d\n" % number for number in range(30)))
    full = {"id": "disk-full", "severity": "error", "message": "no room", "hint": "make room"}

    with supervised(run, status(findings=[full])) as fake:
        fake.on_status = lambda asked: fake.ends("stopped", 75) if asked == 3 else None
        said = holdfast("attach", "digits")

    assert said.code == 75
    assert said.out.splitlines() == [f"line {number}" for number in range(10, 30)]
    assert said.err.count("finding disk-full: no room\nhint: make room\n") == 1
    assert said.err.endswith(
        "digits stopped at step 18200 of 50000, epoch 7, after 3 restarts\nhint: holdfast resume digits\n"
    )
