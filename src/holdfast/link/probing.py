"""What the way to a host is like: round trip, loss, what a login and a shell cost, what the server allows, and how long
the network bears silence.

All of it over connections of its own, authenticated as always, one login after the other, so that no stream of the
shared connection is disturbed and no server takes us for somebody who tries keys.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import shlex
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from holdfast import runs
from holdfast.deadline import within
from holdfast.errors import HostUnreachable
from holdfast.link import mux
from holdfast.link.channels import Connection, session_when_free
from holdfast.link.diagnosis import diagnose
from holdfast.link.hosts import Chosen, Idle, Measured
from holdfast.link.master import command
from holdfast.link.mux import MasterGone, Refused
from holdfast.link.states import CONNECT_S, RESEND_S
from holdfast.link.target import Target, make_folder

PINGS = 20
SHELLS = 5
MOST_SESSIONS = 32  # that are asked for
CLIFFS_S = (60.0, 120.0, 240.0, 300.0, 350.0, 600.0, 900.0, 1800.0, 3600.0)
_PAUSE_S = 0.05
_LATE_S = 0.3
_POLL_S = 0.02
_END_S = 2.0
_ANSWER_S = 10.0
_LEAST_PATIENCE_S = 2.0
_SILENT = Chosen(keepalive=None, tcp_keepalive=False)
_LISTENER = """
import os, select, socket, tempfile
folder = tempfile.mkdtemp()
path = folder + "/s"
listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
listener.listen()
print("holdfast:" + path, flush=True)
select.select([0], [], [], 30)
os.unlink(path)
os.rmdir(folder)
"""

Tell = Callable[[str], object]  # what was found, as a sentence


@dataclass(frozen=True, slots=True)
class Login:
    """A connection of its own; `exchange` is the name of the key exchange."""

    connection: Connection
    login_s: float
    exchange_s: float
    exchange: str


@contextlib.asynccontextmanager
async def alone(target: Target, chosen: Chosen = _SILENT) -> AsyncIterator[Login]:
    """A connection that nobody else uses and on which ssh itself says nothing. Raises HostUnreachable."""
    make_folder()
    with tempfile.TemporaryDirectory(prefix="p-", dir=runs.runtime_home()) as folder:
        path = Path(folder) / "m"
        argv = command(target, path, chosen, asks=False)
        began_s = time.monotonic()
        child = await asyncio.create_subprocess_exec(
            argv[0], "-v", *argv[1:],
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip
        said: list[tuple[float, str]] = []
        reading = asyncio.get_running_loop().create_task(_heard(child, said))
        try:
            connection = await _opened(child, path, target, said, reading)
            login_s = time.monotonic() - began_s
            try:
                yield Login(connection, login_s, *_exchange(said))
            finally:
                await connection.close()
        finally:
            await _ended(child, path)
            reading.cancel()


async def _heard(child: asyncio.subprocess.Process, said: list[tuple[float, str]]) -> None:
    assert child.stderr is not None
    while line := await child.stderr.readline():
        said.append((time.monotonic(), line.decode(errors="replace").strip()))


async def _opened(
    child: asyncio.subprocess.Process,
    path: Path,
    target: Target,
    said: Sequence[tuple[float, str]],
    reading: asyncio.Task[None],
) -> Connection:
    deadline_s = time.monotonic() + CONNECT_S
    while child.returncode is None and time.monotonic() < deadline_s:
        with contextlib.suppress(MasterGone):
            connection = Connection(await mux.proxied(str(path), within_s=_END_S))
            await connection.ping(within_s=CONNECT_S)
            return connection
        await asyncio.sleep(_POLL_S)
    await asyncio.wait([reading], timeout=_END_S)  # what it said last
    why = diagnose("\n".join(line for _, line in said), target.alias)
    raise HostUnreachable(why.sentence, hint=why.hint)


async def _ended(child: asyncio.subprocess.Process, path: Path) -> None:
    try:
        await mux.terminate(str(path), within_s=_END_S)
    except (MasterGone, Refused):
        with contextlib.suppress(ProcessLookupError):
            child.terminate()
    try:
        await within(child.wait(), _END_S)
    except asyncio.TimeoutError:
        child.kill()
        await child.wait()


def _exchange(said: Sequence[tuple[float, str]]) -> tuple[float, str]:
    """How long the last key exchange took, behind a jump that of the host itself, and its name."""
    began_s = ended_s = 0.0
    name = ""
    for at_s, line in said:
        if "SSH2_MSG_KEXINIT sent" in line:
            began_s = at_s
        elif "SSH2_MSG_NEWKEYS received" in line:
            ended_s = at_s
        elif found := re.search(r"kex: algorithm: (\S+)", line):
            name = found[1]
    return max(0.0, ended_s - began_s), name


async def probe(target: Target, *, tell: Tell, pings: int = PINGS) -> Measured:
    """Everything but the limit of silence. Raises HostUnreachable."""
    evidence: list[str] = []

    def found(sentence: str) -> None:
        evidence.append(sentence)
        tell(sentence)

    async with alone(target) as login:
        found(f"a new login took {ms(login.login_s)}, {ms(login.exchange_s)} of it key exchange ({login.exchange})")
        sessions, is_all = await count_sessions(login.connection)
        more = "and more" if is_all else f"it refused number {sessions + 1}"
        found(f"the server allows {sessions} sessions at a time on one connection; {more}")
        trips = await trip_times(login.connection, pings)
        if not trips:
            raise HostUnreachable(f"{target.alias} answered none of {pings} pings")
        trip_s, jitter_s, loss_ratio = weigh(trips, pings)
        late = round(loss_ratio * pings)
        found(f"{pings} pings: {ms(trip_s)} there and back, jitter {ms(jitter_s)}, {late} lost or sent again")
        shell_s = await shell_time(login.connection, trip_s)
        found(f"the user's shell starts and ends in {ms(shell_s)}")
        streamlocal = await takes_sockets(login.connection)
        words = {True: "are allowed", False: "are refused", None: "could not be tried (no python3 there)"}
        found(f"channels to unix sockets {words[streamlocal]}")
    return Measured(
        at_s=time.time(), trip_s=trip_s, jitter_s=jitter_s, loss_ratio=loss_ratio, shell_s=shell_s,
        exchange_s=login.exchange_s, login_s=login.login_s, sessions=sessions, all_sessions=is_all,
        streamlocal=streamlocal, evidence=tuple(evidence),
    )  # fmt: skip


async def trip_times(connection: Connection, count: int) -> list[float]:
    """Of pings one after the other; without those that were not answered."""
    trips = []
    for _ in range(count):
        with contextlib.suppress(MasterGone):
            trips.append(await connection.ping(within_s=_ANSWER_S))
        await asyncio.sleep(_PAUSE_S)  # so that no two share a packet
    return trips


def weigh(trips: Sequence[float], sent: int) -> tuple[float, float, float]:
    """Median, jitter and loss, of at least one trip. Pure.

    Jitter: the mean of the differences between neighbours (RFC 3550, section 6.4.1, not smoothed). Lost: not answered,
    or later than the median by what TCP waits at least before it sends a packet again.
    """
    median_s = statistics.median(trips)
    neighbours = [abs(one - other) for one, other in itertools.pairwise(trips)]
    late = sum(trip_s > median_s + RESEND_S for trip_s in trips)
    return median_s, statistics.fmean(neighbours) if neighbours else 0.0, (sent - len(trips) + late) / sent


async def count_sessions(connection: Connection, most: int = MOST_SESSIONS) -> tuple[int, bool]:
    """How many sessions the server opens before it refuses one, and whether it refused none.

    No command runs in them. A slot comes free some time after its session, so a refusal is believed when it stays so
    for a while; each is a line in the server's log.
    """
    channels = []
    try:
        for _ in range(most):
            channel = await session_when_free(connection, _LATE_S)
            channels.append(channel)
    except Refused:
        return len(channels), False
    finally:
        for channel in channels:
            await channel.close()
    return most, True


async def shell_time(connection: Connection, trip_s: float) -> float:
    """Seconds of a command that does nothing, without the round trip of asking for it."""
    times = []
    for _ in range(SHELLS):
        channel = await session_when_free(connection, _ANSWER_S)
        began_s = time.monotonic()
        await channel.exec("exit")
        await within(channel.wait(), CONNECT_S)
        times.append(time.monotonic() - began_s)
    return max(0.0, statistics.median(times) - trip_s)


async def takes_sockets(connection: Connection) -> bool | None:
    """Whether the server opens channels to unix sockets; None where there is no Python to listen on one."""
    channel = await session_when_free(connection, _ANSWER_S)
    await channel.exec(f"exec python3 -c {shlex.quote(_LISTENER)}")
    said = b""
    while not (found := re.search(rb"holdfast:(\S+)\n", said)):
        part = await within(channel.read(), _ANSWER_S)
        if not part:
            return None
        said += part
    try:
        there = await connection.unix(found[1].decode())
        await there.close()
    except Refused:
        return False
    finally:
        await channel.end()
        await within(channel.wait(), _ANSWER_S)
    return True


async def idle_limit(target: Target, trip_s: float, cliffs_s: Sequence[float], *, tell: Tell) -> Idle:
    """How long a connection may be silent. Raises HostUnreachable.

    All lengths are waited for side by side, each on a connection of its own, and the shortest that is not survived ends
    it: serial halving would take the sum of the times, and a login for each.
    """
    patience_s = max(_LEAST_PATIENCE_S, 8 * trip_s)
    ascending = sorted(cliffs_s)
    alive_s, evidence = 0.0, list[str]()
    async with contextlib.AsyncExitStack() as stack:
        waiting: list[asyncio.Task[tuple[bool, bool]]] = []
        for cliff_s in ascending:
            login = await stack.enter_async_context(alone(target))
            waiting.append(asyncio.get_running_loop().create_task(_survives(login.connection, cliff_s, patience_s)))
        try:
            for cliff_s, task in zip(ascending, waiting, strict=True):
                survives, spoke = await task
                sentence = f"silent for {cliff_s:g} s: {'it answers' if survives else 'no answer'}"
                evidence.append(sentence + (", but the server spoke by itself meanwhile" if spoke else ""))
                tell(evidence[-1])
                if not survives:
                    return Idle(alive_s=alive_s, dead_s=cliff_s, at_s=time.time(), evidence=tuple(evidence))
                alive_s = cliff_s
        finally:
            for task in waiting:
                task.cancel()
    return Idle(alive_s=alive_s, at_s=time.time(), evidence=tuple(evidence))


async def _survives(connection: Connection, silence_s: float, patience_s: float) -> tuple[bool, bool]:
    """Whether it answers after so much silence, and whether the other end spoke meanwhile."""
    with contextlib.suppress(MasterGone):
        await connection.ping(within_s=_ANSWER_S)
        settled_s = min(_LATE_S, silence_s / 2)  # for the last word about the ping
        await asyncio.sleep(settled_s)
        heard_s = connection.heard_s
        await asyncio.sleep(silence_s - settled_s)
        spoke = connection.heard_s > heard_s
        with contextlib.suppress(MasterGone):
            await connection.ping(within_s=patience_s)
            return True, spoke
        return False, spoke
    return False, False


def ms(seconds: float) -> str:
    """For people, to three digits: `0.12 ms`, `203 ms`, `1.2 s`."""
    return f"{seconds * 1000:.3g} ms" if seconds < 0.9995 else f"{seconds:.3g} s"
