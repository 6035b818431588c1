"""Every error that reaches a person: one sentence with the values, and a hint of one thing to do.

    HoldfastError                1   a bug, or something nobody foresaw
    ├── UsageError               2   the command line is off
    ├── RunFileError             3   the run file is wrong
    ├── RunNotFound              2   no run of that name here
    ├── HostUnreachable         10
    ├── LeaseHeld               11   the run is live elsewhere
    ├── NoValidCheckpoint       12
    ├── BudgetSpent             13   restarts used up, or no progress between them
    └── StoreRefused            14

`STOPPED_WITH_CHECKPOINT` (75, EX_TEMPFAIL) and `INTERRUPTED` (130) are exit codes without an error: nothing failed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

STOPPED_WITH_CHECKPOINT = 75
INTERRUPTED = 130


_STEERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all that controls a terminal, but line ends and tabs


def plain(text: str) -> str:
    """A sentence that may hold words of another machine, without what would steer the terminal it is shown at."""
    return _STEERS.sub("\N{REPLACEMENT CHARACTER}", text)


class HoldfastError(Exception):
    """Base of all. `hint` is one thing the reader can do, or empty."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint
        if hint:
            self.__notes__ = [f"hint: {hint}"]  # where nobody catches it, below the traceback (Python 3.11, PEP 678)


class UsageError(HoldfastError):
    """The call itself is wrong: an argument, a name, a combination."""

    exit_code = 2


class RunFileError(HoldfastError):
    """The run file says something that cannot be."""

    exit_code = 3


class RunNotFound(UsageError):
    """No run of that name on this machine."""

    def __init__(self, run: str, *, near: str = "", said: str = "", hint: str = "") -> None:
        """`said`: a sentence in place of one made here."""
        self.is_explained = bool(near or said)
        guess = f"; did you mean {near!r}?" if near else ""
        super().__init__(said or f"no run named {run!r}{guess}", hint=hint or "holdfast ps --all lists every run")


class HostUnreachable(HoldfastError):
    """A machine does not answer, or does not let us do what was asked; what runs there goes on."""

    exit_code = 10


class LeaseHeld(HoldfastError):
    """Another live process holds this run directory."""

    exit_code = 11

    def __init__(self, directory: str, pid: int, *, hint: str = "") -> None:
        super().__init__(
            f"{directory} is in use by process {pid}", hint=hint or f"holdfast attach, or stop process {pid} first"
        )
        self.pid = pid


class NoValidCheckpoint(HoldfastError):
    """Every candidate failed verification; nothing was loaded."""

    exit_code = 12

    def __init__(self, run: str, tried: int = 0, *, why: str = "", said: str = "", hint: str = "") -> None:
        """`said` is the sentence of another process, in place of one made here."""
        super().__init__(
            said or f"run {run!r} has no valid checkpoint: {tried} tried, {tried} damaged{': ' + why if why else ''}",
            hint=hint or f"holdfast ckpt verify {run}",
        )


class BudgetSpent(HoldfastError):
    """The run was restarted as often as its `restart` table allows."""

    exit_code = 13


class StoreRefused(HoldfastError):
    """A checkpoint could not be written where it should go."""

    exit_code = 14


def received(told: Mapping[str, Any]) -> HoldfastError:
    """What another process of ours has told as {"error", "hint", "exit_code"}."""
    code = told.get("exit_code")
    error = (UsageError if code == UsageError.exit_code else HoldfastError)(
        str(told.get("error", "refused")), hint=str(told.get("hint", ""))
    )
    error.exit_code = int(code) if isinstance(code, int) else HoldfastError.exit_code
    return error
