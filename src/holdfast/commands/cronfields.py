"""The five fields of crontab(5), read so that a mistake is told before anything is changed."""

from __future__ import annotations

import re

from holdfast.errors import UsageError

AT_BOOT = "@reboot"
_DAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]
_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_FIELDS = (("minute", 0, 59), ("hour", 0, 23), ("day", 1, 31), ("month", 1, 12), ("weekday", 0, 7))
_PART = re.compile(r"(\*|\d+|[a-z]{3})(?:-(\d+|[a-z]{3}))?(?:/(\d+))?")


def check(cron: str) -> str:
    """The five fields with single blanks between them. Raises UsageError."""
    parse(cron)
    return " ".join(cron.split())


def parse(cron: str) -> dict[str, set[int]]:
    """What each of the five fields allows; weekdays from 0, Sunday. Raises UsageError."""
    words = cron.lower().split()
    if len(words) != len(_FIELDS):
        raise UsageError(f"{cron!r} has {len(words)} fields, not five", hint="minute hour day month weekday: 0 2 * * *")
    found = {name: _values(word, name, low, high) for word, (name, low, high) in zip(words, _FIELDS, strict=True)}
    found["weekday"] = {day % 7 for day in found["weekday"]}
    return found


def _values(word: str, name: str, low: int, high: int) -> set[int]:
    allowed: set[int] = set()
    for part in word.split(","):
        match = _PART.fullmatch(part)
        if match is None or (match[1] == "*" and match[2]):
            raise UsageError(f"cron field {name}: {part!r} cannot be read", hint="write it like *, 5, 1-5 or */15")
        first = low if match[1] == "*" else _number(match[1], name)
        last = _number(match[2], name) if match[2] else high if match[1] == "*" or match[3] else first
        if not low <= first <= last <= high or match[3] == "0":
            raise UsageError(f"cron field {name}: {part!r} is not within {low} to {high}")
        allowed.update(range(first, last + 1, int(match[3] or 1)))
    return allowed


def _number(word: str, name: str) -> int:
    if word.isdecimal():
        return int(word)
    names = {"weekday": _DAYS, "month": _MONTHS}.get(name, [])
    if word not in names:
        raise UsageError(f"cron field {name}: {word!r} is no {name}")
    return names.index(word) + (1 if name == "month" else 0)
