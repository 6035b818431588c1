"""What is wrong with a run file, all of it at once, each with its line and a caret under the spot.

Pure. A plain value that stands directly under `secrets:` is never shown, not even in the line it was found on.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from holdfast.errors import RunFileError

MOST_SHOWN = 30
LINE_SHOWN = 120  # characters of a source line
_BREAK = re.compile(r"\r\n|[\n\r\x85\u2028\u2029]")


@dataclass(frozen=True, slots=True)
class Source:
    """One text that goes into a run: a file, or an option of the command line. `name` is what people are shown."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Span:
    """From one place of a source to another; lines and columns count from 0, the end is exclusive. Line -1 stands for
    the source as a whole."""

    source: Source
    line: int
    column: int
    end_line: int
    end_column: int


def whole(source: Source) -> Span:
    """No spot in particular."""
    return Span(source, -1, 0, -1, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistake:
    """One thing that cannot be, where it is, and what would be right."""

    message: str
    at: Span | None = None
    hint: str = ""
    example: str = ""


@dataclass(slots=True)
class Ledger:
    """Mistakes found so far, and the spots that must not be shown."""

    found: list[Mistake] = field(default_factory=list)
    hidden: list[Span] = field(default_factory=list)
    unread: bool = False  # a text could not be read to its end, so what seems missing may be in it

    def add(self, message: str, at: Span | None = None, *, hint: str = "", example: str = "") -> None:
        """Note one more."""
        self.found.append(Mistake(message=message, at=at, hint=hint, example=example))


class RunFileMistakes(RunFileError):
    """Everything that is wrong with the run file; `mistakes` holds the same as records."""

    def __init__(self, mistakes: Sequence[Mistake], hidden: Iterable[Span] = ()) -> None:
        self.mistakes = tuple(sorted(mistakes, key=_place))
        super().__init__(_render(self.mistakes, tuple(hidden)))


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word that was probably meant, or an empty string."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    if word.lower() in by_lower:
        return by_lower[word.lower()]
    near = difflib.get_close_matches(word.lower()[:64], by_lower, n=1, cutoff=0.6)
    return by_lower[near[0]] if near else ""


def quote(value: object, limit: int = 60) -> str:
    """The value as people are shown it, bounded and without control characters."""
    text = value if isinstance(value, str) else str(value)
    return repr(text if len(text) <= limit else text[: limit - 3] + "...")


def _place(mistake: Mistake) -> tuple[str, int, int]:
    return (mistake.at.source.name, mistake.at.line, mistake.at.column) if mistake.at else ("", 0, 0)


def _render(mistakes: Sequence[Mistake], hidden: Sequence[Span]) -> str:
    count = len(mistakes)
    head = "the run file has a mistake" if count == 1 else f"the run file has {count} mistakes"
    blocks = [_block(mistake, hidden) for mistake in mistakes[:MOST_SHOWN]]
    more = [f"… and {count - MOST_SHOWN} more"] if count > MOST_SHOWN else []
    return "\n\n".join([head, *blocks, *more])


def _block(mistake: Mistake, hidden: Sequence[Span]) -> str:
    lines = [mistake.message]
    if mistake.at is not None:
        lines = [f"{_where(mistake.at)}: {mistake.message}", *_excerpt(mistake.at, hidden)]
    lines += [f"  hint: {mistake.hint}"] if mistake.hint else []
    lines += [f"  example: {mistake.example}"] if mistake.example else []
    return "\n".join(lines)


def _where(at: Span) -> str:
    if at.line < 0 or at.source.name.startswith("--"):
        return at.source.name
    return f"{at.source.name}:{at.line + 1}:{at.column + 1}"


def _excerpt(at: Span, hidden: Sequence[Span]) -> list[str]:
    """The source line and a line with carets below it."""
    lines = _BREAK.split(at.source.text)
    if not 0 <= at.line < len(lines) or not lines[at.line].strip():
        return []
    line = _mask(lines[at.line], at, hidden)
    start = min(at.column, len(line))
    end = at.end_column if at.end_line == at.line else len(line.rstrip())
    end = min(max(end, start + 1), max(len(line), start + 1))
    first = max(0, start - LINE_SHOWN // 2) if len(line) > LINE_SHOWN else 0
    end = min(end, first + LINE_SHOWN)
    shown = _printable(line[first : first + LINE_SHOWN])
    number = f"{at.line + 1:>5} | "
    before = _width(_printable(line[first:start]))
    carets = max(1, _width(_printable(line[start:end])))
    return [number + shown.rstrip(), " " * (len(number) - 2) + "| " + " " * before + "^" * carets]


def _mask(line: str, at: Span, hidden: Sequence[Span]) -> str:
    for spot in hidden:
        if spot.source is at.source and spot.line <= at.line <= spot.end_line:
            first = spot.column if spot.line == at.line else 0
            last = spot.end_column if spot.end_line == at.line else len(line)
            line = line[:first] + "*" * len(line[first:last]) + line[last:]
    return line


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else " " if c == "\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def _width(text: str) -> int:
    """Columns on a terminal; East Asian wide characters take two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 0 if unicodedata.combining(c) else 1 for c in text)
