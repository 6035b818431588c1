"""Names for several hosts, of which a run takes one: `holdfast host pool`. They lie in hosts.json.

A pool's name is no host's: whoever reads `--on gpu` must know which of the two is meant.
"""

from __future__ import annotations

from collections.abc import Sequence

from holdfast.errors import UsageError
from holdfast.link import hosts


def every() -> dict[str, tuple[str, ...]]:
    """The hosts of each pool, in the order in which they were given. Raises HoldfastError for the file."""
    return hosts.known().pools


def make(name: str, members: Sequence[str], aliases: Sequence[str]) -> None:
    """The pool `name` has these hosts from now on. `aliases`: those of the ssh configuration.

    Raises UsageError for a name that a host has, HoldfastError, OSError.
    """
    with hosts.changing() as held:
        if name in aliases or name in held.hosts:
            raise UsageError(f"{name} is the name of a host already", hint="give the pool another name")
        if name in members:
            raise UsageError(f"{name} cannot be a host of the pool {name}", hint="give the pool another name")
        held.pools[name] = tuple(members)


def forget(name: str) -> bool:
    """Whether there was one. Raises HoldfastError, OSError."""
    with hosts.changing() as held:
        return held.pools.pop(name, None) is not None


def check_free(name: str) -> None:
    """Raises UsageError where a host would get the name of a pool."""
    if name in every():
        raise UsageError(f"{name} is the name of a pool", hint=f"another name, or holdfast host pool {name} --rm")
