"""How moments, values and tables read in the terminal. Pure but for the local time zone."""

from __future__ import annotations

import time
from collections.abc import Sequence

from holdfast.units import show_duration


def lasting(seconds: float | None) -> str:
    """A duration for people; "-" for None."""
    return "-" if seconds is None else show_duration(seconds)


def age(seconds: float | None) -> str:
    """ "41 s ago"; "-" for None."""
    return "-" if seconds is None else f"{show_duration(max(0.0, seconds))} ago"


def clock(unix_s: float) -> str:
    """Local date and time to the second."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix_s))
    except (OverflowError, ValueError, OSError):  # no year that there is
        return f"{unix_s:g} s after 1970"


def number(value: object) -> str:
    """A logged value: four significant digits for floats."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def printable(text: str) -> str:
    """Text out of a file that anybody may have written: what would steer the terminal is spelled out, and it ends."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text[:300])
    return shown if len(shown) <= 200 else shown[:199] + "…"


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as aligned lines, two spaces between columns, no trailing blanks."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def plural(count: int, noun: str) -> str:
    """ "1 restart", "3 restarts"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
