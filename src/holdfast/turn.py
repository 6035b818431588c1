"""Whose turn it is to have devices of a machine. Pure: `node.gpus` keeps the book, `node.nvidia` looks at the devices.

First come, first served: a run takes free devices when nobody before it waits for any of them. So a job that needs
many is not passed over by small ones for ever, and what the earlier cannot use need not lie idle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from holdfast.units import Accelerators


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One device as the driver tells of it. Bytes are None where it does not say."""

    index: int
    uuid: str
    name: str
    memory_bytes: int | None
    used_bytes: int | None
    unfit: str = ""  # why nobody gets it, in words


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A run in the line. since_s: unix seconds; who has the smaller comes first."""

    dir: str
    wants: Accelerators
    since_s: float

    @property
    def place(self) -> tuple[float, str]:
        """What the line is sorted by."""
        return self.since_s, self.dir


@dataclass(frozen=True, slots=True, kw_only=True)
class Book:
    """Who has what (uuid → run directory), and who waits."""

    claims: Mapping[str, str] = field(default_factory=dict)
    waiting: tuple[Waiting, ...] = ()

    def of(self, run: str) -> tuple[str, ...]:
        """The devices that a run has."""
        return tuple(uuid for uuid, holder in self.claims.items() if holder == run)

    def ahead(self, me: Waiting) -> tuple[Waiting, ...]:
        """Who waits before `me`, in order."""
        return tuple(sorted((one for one in self.waiting if one.place < me.place), key=lambda one: one.place))

    def queued(self, me: Waiting) -> Book:
        """With `me` in the line and without devices."""
        left = self.without(me.dir)
        return replace(left, waiting=tuple(sorted((*left.waiting, me), key=lambda one: one.place)))

    def given(self, run: str, uuids: Sequence[str]) -> Book:
        """With these devices, and no others, in the hands of `run`, which no longer waits."""
        left = self.without(run)
        return replace(left, claims={**left.claims, **dict.fromkeys(uuids, run)})

    def without(self, run: str) -> Book:
        """Without that run."""
        return Book(
            claims={uuid: holder for uuid, holder in self.claims.items() if holder != run},
            waiting=tuple(one for one in self.waiting if one.dir != run),
        )


def fitting(wants: Accelerators, devices: Sequence[Device]) -> list[Device]:
    """The devices that a run can use at all."""
    return [device for device in devices if wants.fit(device.name) and not device.unfit]


def turn(me: Waiting, book: Book, devices: Sequence[Device], busy: Mapping[str, str]) -> tuple[str, ...]:
    """The devices that `me` may take now, all it wants; empty while it has to wait.

    busy: uuid → who computes there without having it from us. Earlier ones that this machine can never serve (a device
    has failed since they came) hold nobody up.
    """
    awaited = {device.uuid for earlier in book.ahead(me) for device in _servable(earlier.wants, devices)}
    taken = {uuid for uuid, holder in book.claims.items() if holder != me.dir}
    free = [
        device.uuid for device in fitting(me.wants, devices) if device.uuid not in {*taken, *busy, *awaited}
    ]  # fmt: skip
    had = set(book.of(me.dir))
    free.sort(key=lambda uuid: uuid not in had)  # its own first, else in the order of the machine
    return tuple(free[: me.wants.count]) if len(free) >= me.wants.count else ()


def asked(me: Waiting, book: Book, devices: Sequence[Device], busy: Mapping[str, str]) -> Book:
    """The book once `me` has asked: with its devices, or in the line."""
    uuids = turn(me, book, devices, busy)
    return book.given(me.dir, uuids) if uuids else book.queued(me)


def kept(run: str, uuids: Sequence[str], book: Book, used: Mapping[str, str]) -> Book:
    """The book once a run has claimed again what it had; without it, where somebody else has any of that by now.

    used: uuid → who trains there, whatever the book says: the book may have been lost, others may have begun since.
    """
    holders = {**book.claims, **used}
    return book.given(run, uuids) if all(holders.get(uuid, run) == run for uuid in uuids) else book.without(run)


def obstacles(me: Waiting, book: Book, devices: Sequence[Device], busy: Mapping[str, str]) -> str:
    """Why `me` waits: what is with each device that it could use."""
    usable = fitting(me.wants, devices)
    if len(usable) < me.wants.count:
        return f"this machine has {len(usable)} of them; see holdfast queue"
    said = [f"GPU {device.index}: {_with(me, device, book, busy)}" for device in usable]
    return "; ".join(said)


def _with(me: Waiting, device: Device, book: Book, busy: Mapping[str, str]) -> str:
    holder = book.claims.get(device.uuid)
    if holder is not None and holder != me.dir:
        return f"run {holder.rpartition('/')[2]}"
    return busy.get(device.uuid, "free")


def _servable(wants: Accelerators, devices: Sequence[Device]) -> list[Device]:
    found = fitting(wants, devices)
    return found if len(found) >= wants.count else []
