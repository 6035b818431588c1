"""When silence is a hang. Pure: pages and clocks in, a judgement out.

What counts is the completed step and the trainer's own last sign of life, never the output. Allowed silence:

    phase               allowed
    STARTING RESTORING  `watchdog.startup` (also before the first page of a program known to use the library)
    RUNNING             `watchdog.progress`; on `auto` five times the longest step seen, at least 60 s, once five steps
                        of the attempt were seen (first steps compile and fill caches), before that `startup`
    SAVING WAITING      the larger of `checkpoint.timeout` and RUNNING's, plus 60 s: a save ends by its own timeout
    EPOCH_CODE          the larger of `startup` and five times the longest stretch of epoch code seen
    CLOSED              any: training is over

Silence is counted only while we were awake ourselves: a machine that was suspended, a container that was frozen and a
supervisor that was stopped all show as a gap between two looks, after which every rank gets its full time again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from holdfast.heartbeat import Beat, Phase

FACTOR = 5.0
WARM_UP_STEPS = 5
LEAST_S = 60.0
GAP_S = 3.0  # two looks further apart than this: we slept


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """From the plan, in seconds."""

    startup_s: float
    progress_s: float | None
    checkpoint_timeout_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What the looks so far have taught. Times are CLOCK_MONOTONIC in seconds."""

    attempt: int = 0
    started_s: float = 0.0  # of the attempt
    looked_s: float = 0.0
    awake_s: float = 0.0  # since when we look without a gap
    step: int = -1
    step_at_s: float = 0.0
    steps_seen: int = 0  # completed in this attempt
    longest_step_s: float = 0.0
    step_s: float = 0.0  # of late, smoothed; 0 while unknown
    phase: Phase = Phase.STARTING
    phase_at_s: float = 0.0
    longest_epoch_code_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Silence:
    """A rank that has been silent for longer than allowed."""

    rank: int
    silent_s: float
    allowed_s: float
    step: int
    phase: str


def look(memory: Memory, beats: Sequence[Beat], *, attempt: int, now_s: float) -> Memory:
    """Learn from one look. The lowest rank stands for all: they move in step."""
    slept = memory.looked_s == 0 or now_s - memory.looked_s > GAP_S
    memory = replace(memory, looked_s=now_s, awake_s=now_s if slept else memory.awake_s)
    if attempt != memory.attempt:
        memory = replace(memory, attempt=attempt, started_s=now_s, step=-1, steps_seen=0, phase=Phase.STARTING)
    if not beats:
        return memory
    return _learn_phase(_learn_step(memory, beats[0], now_s), beats[0], now_s)


def _learn_step(memory: Memory, beat: Beat, now_s: float) -> Memory:
    if beat.step == memory.step:
        return memory
    at_s = beat.beat_ns / 1e9
    done = beat.step - memory.step
    seen = replace(memory, step=beat.step, step_at_s=at_s, steps_seen=beat.step - beat.first_step)
    if memory.step < 0 or done < 0 or seen.steps_seen <= WARM_UP_STEPS or memory.awake_s > memory.step_at_s:
        return seen
    each_s = max(0.0, at_s - memory.step_at_s) / done
    smoothed = each_s if memory.step_s == 0 else 0.8 * memory.step_s + 0.2 * each_s
    in_loop = memory.phase == Phase.RUNNING == beat.phase
    longest = max(memory.longest_step_s, each_s) if in_loop else memory.longest_step_s
    return replace(seen, step_s=smoothed, longest_step_s=longest)


def _learn_phase(memory: Memory, beat: Beat, now_s: float) -> Memory:
    if beat.phase == memory.phase:
        return memory
    longest = memory.longest_epoch_code_s
    if memory.phase == Phase.EPOCH_CODE and memory.awake_s <= memory.phase_at_s:
        longest = max(longest, now_s - memory.phase_at_s)
    return replace(memory, phase=beat.phase, phase_at_s=now_s, longest_epoch_code_s=longest)


def allowed_s(memory: Memory, phase: Phase, *, stepped: bool, limits: Limits) -> float:
    """How long a rank in `phase` may be silent; `stepped` once it completed a step of this attempt."""
    if limits.progress_s is not None:
        running_s = limits.progress_s if stepped else max(limits.startup_s, limits.progress_s)
    elif memory.steps_seen > WARM_UP_STEPS and memory.longest_step_s > 0:
        running_s = max(LEAST_S, FACTOR * memory.longest_step_s)
    else:
        running_s = limits.startup_s
    if phase == Phase.RUNNING:
        return running_s
    if phase in (Phase.SAVING, Phase.WAITING):
        return max(limits.checkpoint_timeout_s, running_s) + LEAST_S
    if phase == Phase.EPOCH_CODE:
        return max(limits.startup_s, FACTOR * memory.longest_epoch_code_s)
    return limits.startup_s


def silence(memory: Memory, beats: Sequence[Beat], *, now_s: float, limits: Limits, library: bool) -> Silence | None:
    """The rank that has overdrawn its time the most, if any. `library`: the program is known to write pages."""
    overdrawn = []
    for beat in beats:
        if beat.phase == Phase.CLOSED:
            continue
        allowed = allowed_s(memory, beat.phase, stepped=beat.step > beat.first_step, limits=limits)
        silent = now_s - max(beat.beat_ns / 1e9, memory.awake_s, memory.started_s if beat.beat_ns == 0 else 0.0)
        if silent > allowed:
            overdrawn.append(
                Silence(rank=beat.rank, silent_s=silent, allowed_s=allowed, step=beat.step, phase=beat.phase.name)
            )
    if not beats and library and now_s - max(memory.started_s, memory.awake_s) > limits.startup_s:
        waited_s = now_s - memory.started_s
        overdrawn.append(Silence(rank=0, silent_s=waited_s, allowed_s=limits.startup_s, step=0, phase="STARTING"))
    return max(overdrawn, key=lambda each: each.silent_s - each.allowed_s, default=None)
