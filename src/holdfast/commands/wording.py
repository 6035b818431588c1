"""How moments, values and tables read in the terminal. Pure but for the local time zone."""

from __future__ import annotations

import re
import textwrap
import time
from collections.abc import Iterator, Sequence
from itertools import chain, repeat

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


_UNBROKEN = "\u00a0"  # a blank that no line ends at


def unbroken(text: str) -> str:
    """`text`, which `hanging` puts on one line."""
    return text.replace(" ", _UNBROKEN)


def by_commas(text: str) -> str:
    """`text`, in which lines of `hanging` end at commas and semicolons alone."""
    return re.sub(r"(?<![,;]) ", _UNBROKEN, text)


def labelled(facts: Sequence[tuple[str, str]], width: int | None) -> Iterator[str]:
    """Two columns, a label and its text. The text goes on below itself past `width` columns; None is any width."""
    widest = max(7, *(len(label) for label, _ in facts))
    if width is not None and widest > width // 4:  # the text needs room: such a label has a line to itself
        widest = 7
    for label, text in facts:
        fits = len(label) <= widest
        if not fits:
            yield label
        yield from hanging(f"{label if fits else '':<{widest}}  ", text, width)


def hanging(head: str, text: str, width: int | None) -> Iterator[str]:
    """`head` and `text`, whose further lines begin below its first; words are never cut."""
    lines = [text]
    if width is not None:
        room = max(1, width - len(head))
        lines = textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False) or [""]
    for lead, line in zip(chain([head], repeat(" " * len(head))), lines, strict=False):
        yield (lead + line.replace(_UNBROKEN, " ")).rstrip()


def plural(count: int, noun: str) -> str:
    """ "1 restart", "3 restarts"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
