"""Choose which checkpoints to keep.

Pure: reads records, returns a choice, removes nothing (`collect` does that). Order is by position; the clock is asked
only where a rule speaks of time, and is not believed until several checkpoints agree with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from holdfast.checkpoint.lineage import Position
from holdfast.plan import Best, Keep

LEAST = 2  # whatever the policy says: should the newest turn out damaged, there is one to fall back to

Needs = Mapping[str, Mapping[int, int]]  # pack name → record offset → bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One checkpoint. `whole`: nothing is known to be wrong with it; `verified`: read whole, and nothing was wrong."""

    position: Position
    step: int = 0
    epoch: int = 0
    time_s: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)
    whole: bool = True
    verified: bool = True
    live: bool = True
    pinned: bool = False
    needs: Needs = field(default_factory=dict)


def choose(found: Sequence[Candidate], keep: Keep, *, now_s: float = 0.0) -> set[Position]:
    """The positions to keep.

    Of the live line: the last `keep.last` whole ones, the best by the metric, the first at or after each multiple of
    `keep.every_…`; and what is aside. `keep.max_age_s` takes from the last two kinds. `keep.max_bytes` takes from all:
    first what is aside, then multiples, then the last ones, then the best, the oldest first in each. Neither takes what
    is `safe`.

    now_s: unix time. An age counts from the oldest of the last ones: a clock that jumps must have stood there for as
    many checkpoints before anything goes for it.
    """
    live = _ordered(one for one in found if one.live)
    whole = [one for one in live if one.whole]
    last = whole[-max(keep.last, LEAST) :]
    by_rule = [
        [one for one in _ordered(found) if not one.live],
        _multiples(whole, keep),
        last,
        best(whole, keep.best) if keep.best is not None else [],
    ]
    untouchable = safe(found)
    if keep.max_age_s is not None:
        oldest_s = min([now_s, *(one.time_s for one in last)]) - keep.max_age_s
        by_rule[:2] = [[one for one in group if one.time_s >= oldest_s] for group in by_rule[:2]]
    kept = untouchable | {one.position for group in by_rule for one in group}
    if keep.max_bytes is not None:
        order = _first_rank(by_rule, untouchable)
        kept = _within(keep.max_bytes, [one for one in found if one.position in kept], order)
    return kept


def safe(found: Iterable[Candidate]) -> set[Position]:
    """What no rule, age, budget, `prune` or `rm` takes: the pinned, the newest live one, the newest `LEAST` live ones.

    Of the latter as many that are verified, and as many that are whole for all we know.
    """
    every = _ordered(found)
    live = [one for one in every if one.live]
    whole = [one for one in live if one.whole]
    verified = [one for one in whole if one.verified]
    chosen = [*(one for one in every if one.pinned), *live[-1:], *whole[-LEAST:], *verified[-LEAST:]]
    return {one.position for one in chosen}


def older(found: Sequence[Candidate], keep: Keep, *, than_s: float) -> set[Position]:
    """The positions to remove so that nothing older than the unix time `than_s` is left but what is safe, or best."""
    stays = safe(found)
    if keep.best is not None:
        stays |= {one.position for one in best([one for one in found if one.live and one.whole], keep.best)}
    return {one.position for one in found if one.time_s < than_s} - stays


def best(found: Sequence[Candidate], rule: Best) -> list[Candidate]:
    """The `rule.count` best by the metric, best first; of equals the older. Those without the metric do not count.

    A value stays with a run until it is logged anew, so later checkpoints carry it, too: the first was measured.
    """
    sign = -1.0 if rule.mode == "max" else 1.0
    measured = _ordered(one for one in found if rule.metric in one.metrics)
    return sorted(measured, key=lambda one: sign * one.metrics[rule.metric])[: rule.count]


def _ordered(found: Iterable[Candidate]) -> list[Candidate]:
    return sorted(found, key=lambda one: one.position)


def _multiples(whole: Sequence[Candidate], keep: Keep) -> list[Candidate]:
    """The first checkpoint at or after each multiple; of steps and epochs from the first multiple above 0 on."""
    if keep.every_steps is not None:
        return _firsts(whole, lambda one: one.step // (keep.every_steps or 1))
    if keep.every_epochs is not None:
        return _firsts(whole, lambda one: one.epoch // (keep.every_epochs or 1))
    if keep.every_s is not None:
        return _firsts(whole, lambda one: int(one.time_s // (keep.every_s or 1.0)))
    return []


def _firsts(ordered: Sequence[Candidate], number: Callable[[Candidate], int]) -> list[Candidate]:
    """The first of each number above 0."""
    found: dict[int, Candidate] = {}
    for one in ordered:
        found.setdefault(number(one), one)
    return [one for count, one in found.items() if count > 0]


def _first_rank(by_rule: Sequence[Sequence[Candidate]], untouchable: set[Position]) -> dict[Position, int]:
    """How dear each checkpoint is that may be taken: the highest of the groups it is in."""
    rank: dict[Position, int] = {}
    for number, group in enumerate(by_rule):
        rank.update({one.position: number for one in group if one.position not in untouchable})
    return rank


def _within(max_bytes: int, kept: Sequence[Candidate], rank: Mapping[Position, int]) -> set[Position]:
    """`kept` without as many as it takes to need no more than `max_bytes`, what is shared counted once."""
    users = Counter(place for one in kept for place in _places(one))
    total = sum(size for _, _, size in users)
    left = {one.position: one for one in kept}
    for position in sorted(rank, key=lambda position: (rank[position], position)):
        if total <= max_bytes:
            break
        for place in _places(left.pop(position)):
            users[place] -= 1
            total -= place[2] if not users[place] else 0
    return set(left)


def _places(one: Candidate) -> Iterable[tuple[str, int, int]]:
    return ((name, offset, size) for name, records in one.needs.items() for offset, size in records.items())
