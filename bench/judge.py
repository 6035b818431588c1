"""What came of a trial: the weights that were loaded beside what was acknowledged. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum


class Verdict(str, Enum):
    """Best first."""

    RECOVERED = "recovered"  # the newest that was acknowledged, or one begun after it, whole
    TOLD = "told"  # damage was found: an error, or an older save together with a sentence that says so
    UNRECOVERABLE = "unrecoverable"  # nothing was damaged after the save, and its own way to load ends with an error
    LOST = "lost"  # an older save, or none, although a newer was acknowledged, and nothing was said
    TORN = "torn"  # elements of two saves
    SILENT = "silently wrong"  # elements that no save held, and no error


BAD = (Verdict.UNRECOVERABLE, Verdict.LOST, Verdict.TORN, Verdict.SILENT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What loading came to. `found`: elements by step, -1 for those of none; empty when nothing was loaded."""

    error: str = ""
    claimed: int | None = None  # the step that the engine says it loaded
    found: Mapping[int, int] = field(default_factory=dict)
    said: Sequence[str] = ()  # what it said about checkpoints that it passed over
    seconds: float = 0.0  # that loading took, without starting a process and importing


def judge(outcome: Outcome, *, saved: Sequence[int], begun: int, damaged: bool) -> tuple[Verdict, str]:
    """The verdict and a sentence.

    saved: acknowledged steps. begun: the last step that began. damaged: bytes were changed behind the engine's back,
    so that an error, or an older save with a word about it, is all that can be asked.
    """
    newest = max(saved, default=0)
    if outcome.error:
        return (Verdict.TOLD if damaged or not saved else Verdict.UNRECOVERABLE), outcome.error
    if not outcome.claimed:  # step 0 is a start from nothing, too
        return _older(outcome, 0, newest, damaged)
    held = set(outcome.found)
    if any(step < 1 or step > begun for step in held):
        foreign = sum(count for step, count in outcome.found.items() if step < 1 or step > begun)
        return Verdict.SILENT, f"{foreign} of {sum(outcome.found.values())} elements are of no save"
    if len(held) > 1:
        return Verdict.TORN, f"elements of the steps {sorted(held)}"
    if held != {outcome.claimed}:
        return Verdict.TORN, f"says step {outcome.claimed}, holds step {held.pop()}"
    return _older(outcome, outcome.claimed, newest, damaged)


def _older(outcome: Outcome, step: int, newest: int, damaged: bool) -> tuple[Verdict, str]:
    what = f"step {step}" if step else "nothing"
    if step >= newest:
        return Verdict.RECOVERED, f"{what}, newest acknowledged {newest}"
    if damaged and outcome.said:
        return Verdict.TOLD, f"{what} instead of {newest}: {outcome.said[0]}"
    return Verdict.LOST, f"{what}, although {newest} was acknowledged"


def merge(outcomes: Sequence[Outcome]) -> Outcome:
    """Several ranks as one: an error of any, the elements of all."""
    found: dict[int, int] = {}
    for outcome in outcomes:
        for step, count in outcome.found.items():
            found[step] = found.get(step, 0) + count
    claims = {outcome.claimed for outcome in outcomes}
    return Outcome(
        error=next((outcome.error for outcome in outcomes if outcome.error), ""),
        claimed=min((claim for claim in claims if claim is not None), default=None),
        found=found,
        said=[sentence for outcome in outcomes for sentence in outcome.said],
        seconds=max(outcome.seconds for outcome in outcomes),
    )
