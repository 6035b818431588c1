"""Whether reuse is in effect and what it saves: one command over new connections, through the shared one, and by us."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from holdfast.deadline import within
from holdfast.errors import HostUnreachable
from holdfast.link import mux, remote
from holdfast.link.channels import Connection, session_when_free
from holdfast.link.client import Up
from holdfast.link.diagnosis import diagnose
from holdfast.link.target import Target

TICKS_PER_S = 100  # of /proc/*/stat on every Linux
_WITHIN_S = 30.0
# The server's process for this session and the one above it: their names, and what they have computed so far.
_COUNT = (
    "exec /bin/sh -c 'read -r a </proc/$PPID/stat; set -- ${a##*) }; read -r b </proc/$2/stat;"
    ' read -r c </proc/$2/cmdline; echo "$a"; echo "$b"; echo "$c"\' 2>/dev/null'
)


@dataclass(frozen=True, slots=True)
class Way:
    """One way to run a command: seconds of each call; CPU seconds of the server a call, None where nobody can see."""

    name: str
    times_s: tuple[float, ...]
    cpu_s: float | None = None

    @property
    def median_s(self) -> float:
        return statistics.median(self.times_s)


async def compare(up: Up, target: Target, calls: int) -> list[Way]:
    """A new login, ssh through the shared connection, and ours, in turns. Raises HostUnreachable."""
    cold: list[tuple[float, str]] = []
    shared: list[tuple[float, str]] = []
    ours: list[tuple[float, str]] = []
    connection = Connection(await mux.proxied(up.path))
    try:
        await _channel(connection)  # nobody's first
        for _ in range(calls):
            cold.append(await _program(target, ["-o", "ControlPath=none"]))
            for _ in range(3):
                # a client that fails to share makes a connection of its own, silently: here it cannot
                shared.append(await _program(target, ["-S", up.path, "-o", "ProxyCommand=false"]))
                ours.append(await _channel(connection))
    finally:
        await connection.close()
    logins = [ticks for _, said in cold if (ticks := cpu_ticks(said)) is not None]
    grown = [ticks for _, said in (shared[0], ours[-1]) if (ticks := cpu_ticks(said)) is not None]
    each = (grown[1] - grown[0]) / (len(shared) + len(ours) - 1) / TICKS_PER_S if len(grown) > 1 else None
    return [
        Way("ssh, a new connection", _seconds(cold), statistics.fmean(logins) / TICKS_PER_S if logins else None),
        Way("ssh, through the shared one", _seconds(shared), each),
        Way("holdfast", _seconds(ours), each),
    ]


async def _program(target: Target, options: Sequence[str]) -> tuple[float, str]:
    argv = ["ssh", *target.options, "-o", "ControlMaster=no", "-o", "BatchMode=yes", "-T", *options, "--", target.alias]
    began_s = time.monotonic()
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(
        *argv, _COUNT, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe
    )
    try:
        out, err = await within(child.communicate(), _WITHIN_S)
    except asyncio.TimeoutError:
        raise HostUnreachable(f"ssh {target.alias} did not end within {_WITHIN_S:g} s") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
    if child.returncode == remote.UNREACHED:
        why = diagnose(err.decode(errors="replace"), target.alias)
        raise HostUnreachable(why.sentence, hint=why.hint)
    return time.monotonic() - began_s, out.decode(errors="replace")


async def _channel(connection: Connection) -> tuple[float, str]:
    began_s = time.monotonic()
    channel = await session_when_free(connection, _WITHIN_S)
    await channel.exec(_COUNT)
    out = b""
    while part := await within(channel.read(), _WITHIN_S):
        out += part
    await within(channel.wait(), _WITHIN_S)
    return time.monotonic() - began_s, out.decode(errors="replace")


def _seconds(calls: Sequence[tuple[float, str]]) -> tuple[float, ...]:
    return tuple(seconds for seconds, _ in calls)


def cpu_ticks(said: str) -> int | None:
    """What the server's processes of one connection have computed, from what `_COUNT` prints; None where it is hidden.

    The process that exchanged keys is a child that has ended, and counts with the one above the session's; without
    that one (the user is root) what is above serves everybody and does not count.
    """
    lines = said.splitlines()
    if len(lines) < 2 or "(sshd" not in lines[0]:
        return None
    above = [lines[1]] if len(lines) > 2 and "[priv]" in lines[2] else []
    return sum(sum(map(int, line.rpartition(") ")[2].split()[11:15])) for line in [lines[0], *above])
