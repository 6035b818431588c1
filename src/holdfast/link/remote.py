"""Commands on hosts: one with its bytes straight to ours, or many at once, each kept apart."""

from __future__ import annotations

import asyncio
import contextlib
import select
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from holdfast import crowd
from holdfast.deadline import within
from holdfast.errors import HoldfastError, HostUnreachable
from holdfast.link import clock, mux
from holdfast.link.channels import Channel, Connection, session_when_free, when_free
from holdfast.link.client import Links, Up, telling
from holdfast.link.mux import MasterGone, Passenger

AT_ONCE = 32  # hosts
# Of one connection at a time. sshd frees the slot of a session that it was told to close only when it has taken all
# else that came with that (process_buffered_input_packets in serverloop.c), so each may count twice, and pings besides;
# the usual limit is 10.
SESSIONS = 4
SLOT_S = 30.0  # for the server to have one free
MOST_BYTES = 16 << 20  # of output that is kept, of each stream of each host
UNREACHED = 255  # the exit status of a command that nobody could run, as ssh has it


@dataclass(frozen=True, slots=True)
class CommandOutcome:
    """What became of a command on one host. `error` is a sentence where it did not run to its end."""

    host: str
    status: int
    out: bytes = b""
    err: bytes = b""
    error: str = ""
    hint: str = ""
    seconds: float = 0.0


def run(up: Up, command: str, stdio: Sequence[int], *, within_s: float = mux.HOST_ANSWER_S) -> int:
    """Run `command` there on descriptors of ours; its exit status, 255 when a signal ended it.

    within_s: for the host to begin it.

    Raises HostUnreachable when the link ends first, BrokenPipeError when the reader of stdout has left.
    """

    async def ride() -> int:
        ridden = await passenger(up, command, stdio, within_s=within_s)
        try:
            return await ridden.wait()
        finally:
            ridden.close()

    with telling(up):
        try:
            status = crowd.run(ride())
        except MasterGone:
            if _is_read(stdio[1]):
                raise
            status = mux.BY_SIGNAL
    if status == mux.BY_SIGNAL and not _is_read(stdio[1]):  # a master hangs up then, too
        raise BrokenPipeError
    return status


def _is_read(descriptor: int) -> bool:
    """Whether anybody is left who reads what is written there."""
    looking = select.poll()
    looking.register(descriptor, 0)
    return not any(events & select.POLLERR for _, events in looking.poll(0))


async def passenger(up: Up, command: str, stdio: Sequence[int], *, within_s: float = mux.HOST_ANSWER_S) -> Passenger:
    """`command` in a session that the master drives on three descriptors, as soon as there is one. Raises as mux's."""
    return await when_free(lambda: mux.passenger(up.path, command, stdio, within_s=within_s), SLOT_S)


def ask(up: Up, command: str, given: bytes = b"", *, within_s: float) -> CommandOutcome:
    """Run `command` there with `given` as its input, and keep what it says. Raises HostUnreachable."""
    return crowd.run(_kept(up, command, given, within_s, time.monotonic()))


def everywhere(
    hosts: Sequence[str],
    command: str,
    *,
    config: str = "",
    at_once: int = AT_ONCE,
    within_s: float = 60.0,
) -> Iterator[CommandOutcome]:
    """Run `command` on every host, so many at once; outcomes in the order of `hosts`, each as soon as it may."""
    began_s = clock.now_s()
    free: dict[str, threading.Semaphore] = {}
    return crowd.each(lambda host: _one(host, command, config, within_s, free, began_s), hosts, at_once)


def _one(
    host: str,
    command: str,
    config: str,
    within_s: float,
    free: dict[str, threading.Semaphore],
    asked_s: float,
) -> CommandOutcome:
    began_s = time.monotonic()
    try:
        with Links() as links:
            up = links.up(host, config=config, within_s=within_s, asked_s=asked_s)
            slots = free.setdefault(up.key, threading.Semaphore(SESSIONS))  # one step, whatever other threads do
            with telling(up), slots:
                left_s = within_s - (time.monotonic() - began_s)
                return crowd.run(_kept(up, command, b"", left_s, began_s))
    except HoldfastError as error:
        return CommandOutcome(host, UNREACHED, error=str(error), hint=error.hint, seconds=time.monotonic() - began_s)


async def _kept(up: Up, command: str, given: bytes, within_s: float, began_s: float) -> CommandOutcome:
    connection = Connection(await mux.proxied(up.path))
    try:
        channel = await session_when_free(connection, within_s)
        await channel.exec(command)
        work = asyncio.gather(
            _feed(channel, given), _all(channel, stderr=False), _all(channel, stderr=True), channel.wait()
        )
        try:
            _, out, err, exit_ = await within(work, max(0.0, within_s))
        except asyncio.TimeoutError:
            await channel.signal("TERM")
            raise HostUnreachable(
                f"{up.alias}: the command did not end within {within_s:.0f} s, and was sent SIGTERM"
            ) from None
    finally:
        await connection.close()
    seconds = time.monotonic() - began_s
    if exit_.signal:
        return CommandOutcome(up.alias, UNREACHED, out, err, f"the command was ended by SIG{exit_.signal}", "", seconds)
    if exit_.status is None:
        return CommandOutcome(
            up.alias, UNREACHED, out, err, "the channel was cut before the command ended", "", seconds
        )
    return CommandOutcome(up.alias, exit_.status, out, err, seconds=seconds)


async def _feed(channel: Channel, given: bytes) -> None:
    with contextlib.suppress(BrokenPipeError):  # it wants no more of it
        await channel.write(given)
    await channel.end()


async def _all(channel: Channel, *, stderr: bool) -> bytes:
    kept = bytearray()
    while part := await channel.read(stderr=stderr):
        kept += part[: MOST_BYTES - len(kept)]
    return bytes(kept)
