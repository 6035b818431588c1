"""Every process of a run's attempts, found without root, and how to end them.

A process belongs to an attempt when it was started with its marks in the environment, or lives in the trainer's
session. Leftovers hold GPU memory and ports, and a rank whose launcher died would go on training.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from holdfast.plan import VISIBLE
from holdfast.process import Identity, environment, identity, send_signal

TERM_GRACE_S = 1.0
KILL_GRACE_S = 5.0
_POLL_S = 0.01


@dataclass(frozen=True, slots=True)
class Swept:
    """How many were ended, and those that even SIGKILL did not end (state D: a driver or a dead mount holds them)."""

    ended: int = 0
    stuck: tuple[Identity, ...] = ()


def members(run_dir: Path, *, session: int = 0) -> list[Identity]:
    """Live processes of any attempt of the run in `run_dir`, and those of session `session` unless 0."""
    mark = f"HOLDFAST_RUN_DIR={run_dir}".encode()
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and _belongs(int(entry.name), mark, session):
            who = identity(int(entry.name))
            if who is not None:
                found.append(who)
    return found


def given() -> dict[str, str]:
    """uuid → real path of the run directory, for each device that a living process of an attempt was started with."""
    found: dict[str, str] = {}
    for entry in os.scandir("/proc"):
        environ = environment(int(entry.name)) if entry.name.isdigit() else {}
        if "HOLDFAST_ATTEMPT" in environ:
            run = str(Path(environ.get("HOLDFAST_RUN_DIR", "")).resolve())
            found |= {uuid: run for uuid in environ.get(VISIBLE, "").split(",") if uuid.startswith("GPU-")}
    return found


def _belongs(pid: int, mark: bytes, session: int) -> bool:
    try:
        if session and os.getsid(pid) == session:
            return True
        raw = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
    # The attempt's mark too: a shell opened in the run's environment is a person's.
    return mark in raw and b"HOLDFAST_ATTEMPT=" in raw and mark in raw.split(b"\0")


def end(find: Callable[[], list[Identity]], *, term_grace_s: float = TERM_GRACE_S) -> Swept:
    """SIGTERM, SIGKILL after `term_grace_s` (at once when 0), until `find` finds none or the rest is stuck."""
    seen: set[Identity] = set()
    if term_grace_s > 0:
        _signal_until_gone(find, signal.SIGTERM, term_grace_s, seen)
    left = _signal_until_gone(find, signal.SIGKILL, KILL_GRACE_S, seen)
    return Swept(ended=len(seen - set(left)), stuck=tuple(left))


def _signal_until_gone(
    find: Callable[[], list[Identity]], number: int, grace_s: float, seen: set[Identity]
) -> list[Identity]:
    """Signal each process found once, newly found ones too; returns who is left after `grace_s`."""
    deadline_s = time.monotonic() + grace_s
    told: set[Identity] = set()
    while True:
        left = find()
        for who in left:
            if who not in told:
                send_signal(who, number)
        told |= set(left)
        seen |= set(left)
        if not left or time.monotonic() > deadline_s:
            return left
        time.sleep(_POLL_S)
