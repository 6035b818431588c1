"""Where every process of an attempt stands, without ptrace, root or tools.

A rank that announced it writes all its threads to stderr on SIGUSR2 (faulthandler). Of the others the kernel tells
state, wait channel and, where we may see it, the kernel stack. Before a restart, when nothing is lost any more,
SIGABRT makes every Python that was started with PYTHONFAULTHANDLER write its threads too; it dies of that.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from pathlib import Path

from holdfast.heartbeat import Beat, Handlers
from holdfast.process import Identity, environment, send_signal, stat_fields

WRITE_S = 2.0  # how long the ranks may take to write
QUIET_S = 0.15  # after this long without a new byte they are done
_POLL_S = 0.02


def capture(processes: Sequence[Identity], beats: Sequence[Beat], output: Path, *, fatal: bool) -> str:
    """The stacks of all `processes` as text; `fatal` when they are about to be ended anyway."""
    parts = [_from_kernel(who) for who in processes]
    ready = [Identity(beat.pid, beat.start_ticks) for beat in beats if beat.handlers & Handlers.STACKS]
    if ready:
        parts.append(_written(ready, signal.SIGUSR2, output))
    if fatal:
        rest = [who for who in processes if who not in ready and environment(who.pid).get("PYTHONFAULTHANDLER")]
        parts.append(_written(rest, signal.SIGABRT, output))
    return "\n".join(part for part in parts if part) + "\n"


def _from_kernel(who: Identity) -> str:
    folder = Path(f"/proc/{who.pid}")
    command = _read(folder / "cmdline").replace("\0", " ").strip()
    state = (stat_fields(who.pid) or ["gone"])[0]
    lines = [f"process {who.pid}, state {state}: {command[:300]}"]
    for task in sorted(folder.glob("task/*"), key=lambda path: int(path.name))[:256]:
        wchan, name = _read(task / "wchan").strip(), _read(task / "comm").strip()
        kernel = _read(task / "stack").strip().replace("\n", "; ")
        told = (stat_fields_of(task) or ["?"])[0]
        lines.append(f"  thread {task.name} {name}: state {told}, waits in {wchan or '?'} {kernel}".rstrip())
    return "\n".join(lines)


def stat_fields_of(task: Path) -> list[str] | None:
    """As `process.stat_fields`, of one thread."""
    text = _read(task / "stat")
    return text[text.rindex(")") + 2 :].split() if ")" in text else None


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _written(processes: Sequence[Identity], number: int, output: Path) -> str:
    """What the processes add to the output when signalled, until they are quiet or `WRITE_S` is over."""
    before = _size(output)
    if not [who for who in processes if send_signal(who, number)]:
        return ""
    began_s = changed_s = time.monotonic()
    size = before
    while time.monotonic() - began_s < WRITE_S:
        time.sleep(_POLL_S)
        if _size(output) != size:
            size, changed_s = _size(output), time.monotonic()
        if size > before and time.monotonic() - changed_s > QUIET_S:
            break
    with output.open("rb") as file:
        file.seek(before)
        return file.read(1 << 20).decode(errors="replace")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
