"""Choose which checkpoints to keep.

Pure: reads records, returns a choice, removes nothing (`commit.retain` does that). What is aside (see `lineage`) is not
asked about here and stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from holdfast.checkpoint.lineage import Position
from holdfast.plan import Best, Keep

LEAST = 2  # whatever the policy says: should the newest turn out damaged, there is one to fall back to


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One live checkpoint. `whole`: nothing is known to be wrong with it."""

    position: Position
    metrics: dict[str, float] = field(default_factory=dict)
    whole: bool = True


def choose(found: Sequence[Candidate], keep: Keep) -> set[Position]:
    """The positions to keep: the newest; the last `keep.last` whole ones, two at least; the best whole ones."""
    ordered = sorted(found, key=lambda one: one.position)
    whole = [one for one in ordered if one.whole]
    kept = {one.position for one in whole[-max(keep.last, LEAST) :]}
    if keep.best is not None:
        kept |= {one.position for one in best(whole, keep.best)}
    return kept | {one.position for one in ordered[-1:]}


def best(found: Sequence[Candidate], rule: Best) -> list[Candidate]:
    """The `rule.count` best by the metric, best first; of equals the newer. Those without the metric do not count."""
    sign = -1.0 if rule.mode == "max" else 1.0
    measured = [one for one in found if rule.metric in one.metrics]
    newest_first = sorted(measured, key=lambda one: one.position, reverse=True)
    return sorted(newest_first, key=lambda one: sign * one.metrics[rule.metric])[: rule.count]
