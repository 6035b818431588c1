"""Which checkpoints belong to the run as it is now, and which were left behind by going back.

Pure. Order is by (term, sequence), never by step or time. A term begins at its base, the checkpoint it resumed from;
what earlier terms wrote after that base is aside: it stays on disk and nobody resumes from it unasked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """Where a checkpoint stands among all of a run."""

    term: int
    sequence: int

    def to_json(self) -> dict[str, int]:
        """As in manifests and leases."""
        return {"term": self.term, "sequence": self.sequence}


def live(positions: Iterable[Position], bases: Mapping[int, Position | None]) -> list[Position]:
    """The positions of the current line, oldest first.

    bases: term → what it resumed from, None for nothing. A term that is missing here (its lease is lost and none of
    its checkpoints is left) is taken to have resumed from the newest before it.
    """
    known = sorted(set(positions))
    terms = sorted({position.term for position in known} | set(bases))
    line: list[Position] = []
    last: Position | None = Position(terms[-1], _NO_END) if terms else None
    while last is not None:
        line += [p for p in reversed(known) if p.term == last.term and p <= last]
        last = _before(last.term, terms, bases)
    return line[::-1]


_NO_END = 1 << 62


def _before(term: int, terms: list[int], bases: Mapping[int, Position | None]) -> Position | None:
    """Where the line goes on below `term`; a base that does not lie below it is no base."""
    base = bases.get(term)
    if base is not None and base.term < term:
        return base
    if term in bases:
        return None
    lower = [other for other in terms if other < term]
    return Position(lower[-1], _NO_END) if lower else None


def parent(own: Position, line: Iterable[Position]) -> Position | None:
    """The checkpoint before `own` on the line it continues."""
    return max((position for position in line if position < own), default=None)
