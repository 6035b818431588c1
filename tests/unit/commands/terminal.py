"""The program where a person sees it and presses keys."""

from __future__ import annotations

import os
import pty
import select
import sys

from tests.waiting import until


class Terminal:
    """A program on a terminal of its own, as a person has it."""

    def __init__(self, *argv: str, columns: int = 160) -> None:
        self.pid, self.screen = pty.fork()
        if self.pid == 0:
            environ = {**os.environ, "TERM": "xterm", "COLUMNS": str(columns), "LINES": "40"}
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
