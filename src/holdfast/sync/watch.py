"""When something in a folder has changed, by looking: the same on every file system, and with the ignore files' rules.

Notifications of the kernel would need a library for each system, one watch for each folder, ignored ones included, and
say nothing about network file systems. The pause grows with what a look costs: at most 5 % of a core.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from holdfast import runs
from holdfast.sync.known import signature
from holdfast.workspace.walking import walk

PAUSE_S = 0.3
_SHARE = 20  # pauses are at least so many times as long as a look
_SETTLE_S = 3.0  # longest wait for a burst of changes to end


def changes(root: Path) -> Iterator[None]:
    """At once, and then each time that something has changed since the last one was handed out."""
    while True:
        seen, _ = look(root)
        yield
        pause_s = PAUSE_S
        while True:
            time.sleep(pause_s)
            now, cost_s = look(root)
            pause_s = max(PAUSE_S, _SHARE * cost_s)
            if now != seen:
                break
        _settled(root, now, pause_s)


def look(root: Path) -> tuple[bytes, float]:
    """What tells one state of the folder from another, and the seconds of CPU that it took to see."""
    began_s = time.process_time()
    state = hashlib.blake2b(digest_size=16)
    for found in walk(root, runs.home().resolve()):
        known = (found.mode,) if stat.S_ISDIR(found.mode) else (found.mode, *signature(found.status))
        state.update(os.fsencode(found.path) + b"\0" + repr(known).encode())
    return state.digest(), time.process_time() - began_s


def _settled(root: Path, seen: bytes, pause_s: float) -> None:
    """Wait while more and more changes come: a checkout, or an editor that writes in steps."""
    deadline_s = time.monotonic() + _SETTLE_S
    while time.monotonic() < deadline_s:
        time.sleep(pause_s / 3)
        now, _ = look(root)
        if now == seen:
            return
        seen = now
