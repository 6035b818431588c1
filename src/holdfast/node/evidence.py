"""What can be known about an attempt's end: its last output, its pages, and the kernel's count of killings."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from holdfast.exits import Exit
from holdfast.heartbeat import Beat

TAIL_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class OomCount:
    """How often the out-of-memory killer struck, in `scope`; None where the kernel does not say."""

    scope: str
    kills: int | None


def oom_count(pid: int | str = "self") -> OomCount:
    """Of the memory cgroup that process `pid` lives in; of the whole machine where that cannot be read.

    The cgroup's own count includes killings by any killer but only of its members, so it is the better witness.
    """
    for path in _cgroup_files(pid):
        kills = _counter(path)
        if kills is not None:
            return OomCount("this cgroup", kills)
    return OomCount("this machine", _counter(Path("/proc/vmstat")))


def _cgroup_files(pid: int | str) -> list[Path]:
    """Candidates for `memory.events` (v2) and `memory.oom_control` (v1), as this namespace may see them."""
    found = []
    with contextlib.suppress(OSError):  # the process is gone: the machine's count is what is left
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                places = [("/sys/fs/cgroup", "memory.events"), ("/sys/fs/cgroup/unified", "memory.events")]
            elif "memory" in controllers.split(","):
                places = [("/sys/fs/cgroup/memory", "memory.oom_control")]
            else:
                continue
            found += [Path(at) / name for root, name in places for at in (root + path, root)]
    return found


def _counter(path: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        for line in path.read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return None


def rise(before: OomCount, after: OomCount) -> int:
    """Killings in between; 0 when the two do not compare."""
    if before.scope != after.scope or before.kills is None or after.kills is None:
        return 0
    return max(0, after.kills - before.kills)


def tail(output: Path, begin: int, *, at_most: int = TAIL_BYTES) -> str:
    """The last `at_most` bytes of what was written from offset `begin` on."""
    try:
        with output.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(begin, size - at_most))
            return file.read(at_most).replace(b"\0", b"").decode(errors="replace")
    except OSError:
        return ""


def outcome(beats: Sequence[Beat]) -> str:
    """What the ranks say of their own end: the worst of them, empty when none said anything."""
    told = {beat.outcome.name.lower() for beat in beats}
    return next((name for name in ("raised", "stopped", "finished") if name in told), "")


def gather(
    *,
    status: int | None,
    text: str,
    beats: Sequence[Beat],
    asked: str,
    before: OomCount,
    exec_error: str = "",
    rebooted: bool = False,
) -> Exit:
    """Everything together, for `exits.classify`."""
    after = oom_count()
    return Exit(
        status=status,
        tail=text,
        asked=asked,
        outcome=outcome(beats),
        progressed=any(beat.step > beat.first_step for beat in beats),
        oom_kills=rise(before, after),
        oom_scope=after.scope,
        exec_error=exec_error,
        rebooted=rebooted,
    )
