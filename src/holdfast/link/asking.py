"""What ssh asks a person: passphrases, passwords, keys of hosts that it does not know, a touch of a hardware key.

The master has no terminal. ssh runs the program `askpass` instead, that hands the question to the agent, and the agent
to a verb that waits for the link at a terminal. Nothing is answered by us, and nothing is kept.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from holdfast import crowd, process
from holdfast.link import messages
from holdfast.link.states import PERSON_S
from holdfast.link.target import folder

PROGRAM = Path(__file__).with_name("askpass")
NOTICE, CONFIRM = "none", "confirm"  # kinds of question, as ssh names them; "" asks for words
_KEY, _COMMAND = "HOLDFAST_LINK", "HOLDFAST_COMMAND"
_SHOWN = re.compile(r"\byes\b")  # an answer to this is no secret
_one_at_a_time = threading.Lock()  # a terminal has one line for answers


def environment(key: str) -> dict[str, str]:
    """What makes the ssh of link `key` ask us. Source: ssh(1), SSH_ASKPASS_REQUIRE (OpenSSH 8.4)."""
    ours = {_KEY: key, _COMMAND: shlex.join(process.command())}
    return {"SSH_ASKPASS": str(PROGRAM), "SSH_ASKPASS_REQUIRE": "force", **ours}


def main(prompt: str) -> int:
    """The program that ssh runs: prints the answer. 1 when nobody has answered."""
    kind = os.environ.get("SSH_ASKPASS_PROMPT", "")
    question = {"op": "ask", "key": os.environ[_KEY], "prompt": prompt, "kind": kind}
    told = messages.request(folder() / "agent.sock", question, timeout_s=PERSON_S)
    if not told["ok"]:
        return 1
    sys.stdout.write(told["answer"] + "\n")
    return 0


def is_possible() -> bool:
    """Whether somebody sits at our terminal, and we are what they look at."""
    with contextlib.suppress(OSError):
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)
        try:
            return os.tcgetpgrp(terminal) == os.getpgrp()
        finally:
            os.close(terminal)
    return False


def put(question: dict[str, Any]) -> str | None:
    """Put a question to whoever sits at the terminal; their answer, None when they gave none."""
    prompt, kind = str(question["prompt"]), question["kind"]
    with _one_at_a_time, contextlib.suppress(EOFError):
        if kind == NOTICE:
            Path("/dev/tty").write_text(f"{prompt}\n")
            return None
        return _line(prompt, is_secret=kind != CONFIRM and not _SHOWN.search(prompt))
    return None


def _line(prompt: str, *, is_secret: bool) -> str:
    """What is typed; nobody sees a secret. Raises EOFError, also where nobody waits for it any more."""
    with Path("/dev/tty").open("r+b", buffering=0) as terminal, _unseen(terminal.fileno(), is_secret):
        terminal.write(prompt.encode())
        line = terminal.readline() if crowd.readable(terminal.fileno()) else b""
    if not line:
        raise EOFError
    return line.decode(errors="surrogateescape").rstrip("\n")


@contextlib.contextmanager
def _unseen(terminal: int, is_secret: bool) -> Iterator[None]:
    """What is typed there is not shown, as getpass(3) has it, and the line ends all the same."""
    before = termios.tcgetattr(terminal)
    during = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
    try:
        if is_secret:
            termios.tcsetattr(terminal, termios.TCSAFLUSH, during)
        yield
    finally:
        if is_secret:
            termios.tcsetattr(terminal, termios.TCSADRAIN, before)
            os.write(terminal, b"\n")
