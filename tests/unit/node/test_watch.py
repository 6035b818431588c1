"""When silence is a hang."""

from __future__ import annotations

from typing import Any

import pytest

from holdfast.heartbeat import Beat, Handlers, Outcome, Phase
from holdfast.node.watch import Limits, Memory, Silence, look, silence

LIMITS = Limits(startup_s=600.0, progress_s=None, checkpoint_timeout_s=900.0)


def beat(step: int, at_s: float, *, phase: Phase = Phase.RUNNING, rank: int = 0, first_step: int = 0) -> Beat:
    words: dict[str, Any] = dict.fromkeys(Beat.__slots__, 0)
    words |= {"rank": rank, "step": step, "beat_ns": int(at_s * 1e9), "phase": phase, "first_step": first_step}
    return Beat(**words | {"handlers": Handlers.NONE, "outcome": Outcome.NONE})


def trained(steps: int, each_s: float) -> tuple[Memory, float]:
    """A memory of a healthy attempt, looked at once a second, and the time at which it stands."""
    memory, now_s = Memory(), 0.0
    while now_s < steps * each_s:
        now_s += 1.0
        done = int(now_s / each_s)
        memory = look(memory, [beat(done, done * each_s)], attempt=1, now_s=now_s)
    return memory, now_s


def waits(memory: Memory, beats: list[Beat], since_s: float, until_s: float, limits: Limits = LIMITS) -> Silence | None:
    """Look once a second; the first silence too long."""
    now_s = since_s
    while now_s < until_s:
        now_s += 1.0
        memory = look(memory, beats, attempt=1, now_s=now_s)
        found = silence(memory, beats, now_s=now_s, limits=limits, library=True)
        if found is not None:
            return found
    return None


def test_the_limit_is_five_times_the_longest_step() -> None:
    memory, now_s = trained(20, each_s=20.0)

    found = waits(memory, [beat(20, 400.0)], now_s, 600.0)

    assert found is not None
    assert 100.0 < found.silent_s <= 101.0
    assert (found.step, found.phase) == (20, "RUNNING")


def test_quick_steps_get_a_minute() -> None:
    memory, now_s = trained(200, each_s=0.1)

    assert waits(memory, [beat(200, 20.0)], now_s, 79.0) is None
    assert waits(memory, [beat(200, 20.0)], now_s, 82.0) is not None


def test_first_steps_get_the_startup_time() -> None:
    memory, now_s = trained(3, each_s=2.0)

    assert waits(memory, [beat(3, 6.0)], now_s, 600.0) is None
    assert waits(memory, [beat(3, 6.0)], now_s, 700.0) is not None


def test_a_stated_limit_holds_from_the_first_step_on() -> None:
    limits = Limits(startup_s=600.0, progress_s=3.0, checkpoint_timeout_s=900.0)

    assert waits(Memory(), [beat(1, 0.0)], 0.0, 10.0, limits) is not None
    assert waits(Memory(), [beat(0, 0.0)], 0.0, 10.0, limits) is None


@pytest.mark.parametrize("phase", [Phase.SAVING, Phase.WAITING, Phase.EPOCH_CODE, Phase.CLOSED])
def test_other_phases_get_longer(phase: Phase) -> None:
    memory, now_s = trained(200, each_s=0.1)

    assert waits(memory, [beat(200, 20.0, phase=phase)], now_s, 500.0) is None


def test_the_rank_that_hangs_is_named() -> None:
    memory, now_s = trained(200, each_s=0.1)
    beats = [beat(200, 75.0), beat(199, 20.0, rank=1)]

    found = waits(memory, beats, now_s, 100.0)

    assert found is not None
    assert found.rank == 1


def test_a_suspended_machine_is_no_hang() -> None:
    memory, now_s = trained(200, each_s=0.1)
    woken_s = now_s + 3600.0
    stale = [beat(200, 20.0)]

    memory = look(memory, stale, attempt=1, now_s=woken_s)

    assert silence(memory, stale, now_s=woken_s, limits=LIMITS, library=True) is None
    assert waits(memory, stale, woken_s, woken_s + 59.0) is None
    assert waits(memory, stale, woken_s, woken_s + 62.0) is not None


def test_a_program_known_to_use_the_library_must_come_up() -> None:
    assert waits(Memory(), [], 0.0, 590.0) is None
    assert waits(Memory(), [], 0.0, 610.0) is not None
