"""What starts things by the clock or after a reboot for a user: a systemd user manager, else cron.

Both know `install(key, when, argv)`, where `when` is five cron fields or `AT_BOOT`, `remove(key)` and `hint()`.
"""

from __future__ import annotations

from typing import Protocol, cast

from holdfast.errors import HoldfastError


class Clockwork(Protocol):
    """One of the two, a module."""

    NAME: str

    def available(self) -> bool:
        """Whether this machine has it for this user."""

    def install(self, key: str, when: str, argv: list[str]) -> None:
        """Add or replace our entry `key`. Raises HoldfastError."""

    def remove(self, key: str) -> bool:
        """Take our entry `key` out; whether there was one. Raises HoldfastError."""

    def hint(self) -> str:
        """What else the person should do or know; may be empty."""


class NoClockwork(HoldfastError):
    """Neither a user manager nor a crontab."""


def pick(by: str | None) -> Clockwork:
    """The one asked for, else the first this machine has. Raises NoClockwork."""
    from holdfast.commands import crontab, timers

    both = {works.NAME: cast("Clockwork", works) for works in (timers, crontab)}
    for name, works in both.items():
        if name == (by or name) and works.available():
            return works
    raise NoClockwork(
        f"this machine has no {by or 'systemd user manager and no crontab'} for you",
        hint="--print-ci shows the recipe for a CI system" if by is None else "leave --by out",
    )
