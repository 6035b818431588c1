"""One machine writes to a mirror. Another takes over by a lease of a higher term, as in the folder.

A folder may write when the newest lease on the mirror is one that it knows: its own, or the one it resumed from. Taking
a term: `terms/TTTTTT.json` is created where the store refuses to create what exists (probed, never assumed), and in any
case the lease is put and the leases are listed: who then sees another one of the same or a higher term yields. Two at
the same instant on a store without conditions may both yield; both never go on.

Whoever writes rewrites `leases/TTTTTT.alive` every 20 s. By the store's own clock: one that is older than 90 s belongs
to a machine that is gone.

`leases/TTTTTT.stop` is word for whoever holds the run and cannot be reached otherwise: it is to stop. It binds until
that one has stopped, or a person resumes the run elsewhere.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast.checkpoint import canonical, lease
from holdfast.checkpoint.canonical import Damaged
from holdfast.checkpoint.lease import Lease
from holdfast.errors import HoldfastError
from holdfast.mirror import clock
from holdfast.stores import Store, enforces_create

BEAT_S = 20.0
GONE_S = 90.0


class Superseded(HoldfastError):
    """Another machine has gone on from this mirror."""

    exit_code = 11

    def __init__(self, url: str, why: str) -> None:
        super().__init__(f"{url}: {why}", hint="that run goes on there; give this one another mirror, or stop it")


class HeldElsewhere(HoldfastError):
    """A machine that lives writes to this mirror."""

    exit_code = 11


@dataclass(frozen=True, slots=True)
class Owner:
    """Who writes: `host` and `dir` tell two machines apart, and let a restart on the same one be the same."""

    host: str
    dir: str

    @classmethod
    def here(cls, root: Path) -> Owner:
        """Of the checkpoint folder at `root` on this machine."""
        return cls(socket.gethostname(), str(root))


@dataclass(frozen=True, slots=True)
class Alive:
    """The newest sign of life. `age_s` by the store's clock."""

    owner: Owner
    age_s: float

    def holds_against(self, other: Owner) -> bool:
        """Whether `other` must not write now."""
        return self.owner != other and self.age_s < GONE_S


class Fence:
    """One folder's right to write to one mirror. Every method raises StoreRefused."""

    def __init__(self, store: Store, owner: Owner) -> None:
        self._store, self._owner = store, owner
        self.enforced: bool | None = None  # whether the store refuses to create what exists; None: not probed yet

    def hold(self, own: Lease, known: Iterable[str]) -> bool:
        """Be sure that this folder may write; whether the lease was taken just now.

        own: the folder's newest lease. known: file names of every lease it has or had. Raises Superseded.
        """
        there = leases_on(self._store)
        self._check(own, there, {*known, own.file_name})
        if own.file_name in there:
            return False
        self._take(own)
        return True

    def _check(self, own: Lease, there: list[str], known: set[str]) -> None:
        newest = max(there, key=_term, default=None)
        strangers = [name for name in there if _term(name) >= own.term and name not in known]
        if newest is not None and (newest not in known or strangers):
            raise Superseded(self._store.url, f"another machine has taken term {_term(newest)} of this run")

    def _take(self, own: Lease) -> None:
        if self.enforced is None:
            self.enforced = enforces_create(self._store, f"terms/probe-{secrets.token_hex(8)}")
        if self.enforced:
            self._claim(own)
        self._store.put(f"leases/{own.file_name}", own.raw)
        others = [name for name in leases_on(self._store) if _term(name) >= own.term and name != own.file_name]
        if others:
            self._store.delete(f"leases/{own.file_name}")
            raise Superseded(self._store.url, f"another machine has taken term {_term(max(others))} of this run")

    def _claim(self, own: Lease) -> None:
        key = f"terms/{own.term:06d}.json"
        mine = canonical.encode_checked({"lease": own.file_name})
        try:
            self._store.put(key, mine, create=True)
        except FileExistsError as error:
            if self._store.get(key) != mine:
                raise Superseded(self._store.url, f"another machine has taken term {own.term} of this run") from error

    def beat(self, own: Lease) -> None:
        """Say that the owner of `own` lives."""
        told = {"host": self._owner.host, "dir": self._owner.dir, "pid": os.getpid()}
        self._store.put(_alive_key(own.term), canonical.encode_checked(told))

    def rest(self, own: Lease) -> None:
        """Say that it has ended: another machine need not wait, and who told it to stop was heard."""
        there = list(self._store.list("leases/"))
        for last in (_alive_key(own.term), _stop_key(own.term)):  # in this order: an old sign of life means nothing
            for key in there:
                if Path(key).suffix == Path(last).suffix and key <= last:
                    self._store.delete(key)

    def has_word(self, own: Lease) -> bool:
        """Whether somebody has told us to stop, or has taken the run: `hold` knows for certain."""
        there = self._store.list("leases/")
        return any(_is_stop(key) or _term(key.removeprefix("leases/")) > own.term for key in there)


def leases_on(store: Store) -> list[str]:
    """File names of the leases on a mirror."""
    names = [key.removeprefix("leases/") for key in store.list("leases/")]
    return [name for name in names if lease.term_of(name) is not None]


def alive(store: Store) -> Alive | None:
    """The sign of life of whoever holds the newest term; None when there is none."""
    terms = [_term(name) for name in leases_on(store)]
    if not terms:
        return None
    key = _alive_key(max(terms))
    found = store.head(key)
    if found is None:
        return None
    age_s = clock.now_s(store) - found.modified_s
    return Alive(_owner_in(store, key), age_s)


def refuse_if_alive(store: Store, me: Owner) -> None:
    """Raises HeldElsewhere while another machine writes there."""
    found = alive(store)
    if found is not None and found.holds_against(me):
        raise HeldElsewhere(
            f"{store.url} is in use by {found.owner.host}, which said so {max(0.0, found.age_s):.0f} s ago",
            hint=f"stop the run there, or wait {GONE_S:.0f} s after that machine has died",
        )


def tell_to_stop(store: Store) -> None:
    """Leave word for whoever holds the run. Raises StoreRefused."""
    newest = max(map(_term, leases_on(store)), default=0)
    store.put(_stop_key(newest), canonical.encode_checked({"host": socket.gethostname()}))


def is_told_to_stop(store: Store) -> bool:
    """Whether there is such word. Raises StoreRefused."""
    return any(map(_is_stop, store.list("leases/")))


def revoke_stop(store: Store) -> None:
    """A person wants the run to go on. Raises StoreRefused."""
    for key in list(store.list("leases/")):
        if _is_stop(key):
            store.delete(key)


def _owner_in(store: Store, key: str) -> Owner:
    try:
        told: dict[str, Any] = canonical.decode_checked(store.get(key), key)
    except (FileNotFoundError, Damaged):
        return Owner("another machine", "")
    return Owner(str(told.get("host")), str(told.get("dir")))


def _alive_key(term: int) -> str:
    return f"leases/{term:06d}.alive"


def _stop_key(term: int) -> str:
    return f"leases/{term:06d}.stop"


def _is_stop(key: str) -> bool:
    return key.endswith(".stop")


def _term(name: str) -> int:
    return lease.term_of(name) or 0
