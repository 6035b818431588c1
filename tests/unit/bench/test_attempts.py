"""What a run's records say about its attempts."""

from __future__ import annotations

from bench.attempts import attempts, contradictions, recoveries


def step(number: int, *, attempt: int = 1, loss: float = 0.5) -> dict[str, float]:
    return {"t": 100.0 * attempt + number, "step": number, "epoch": 0, "attempt": attempt, "loss": loss}


KILLED = [
    {"event": "restored", "attempt": 1, "step": 0},
    *(step(number) for number in (1, 2, 3, 4, 5)),
    {"event": "restored", "attempt": 2, "step": 3},
    *(step(number, attempt=2) for number in (4, 5, 6)),
]


def test_a_recovery_counts_the_steps_that_were_done_twice() -> None:
    (found,) = recoveries(attempts(KILLED))

    assert (found.reached_step, found.from_step, found.lost_steps, found.next_step_s) == (5, 3, 2, 204.0)


def test_an_attempt_that_was_killed_before_its_first_step_is_no_recovery() -> None:
    born_dead = [{"event": "restored", "attempt": 2, "step": 3}]

    assert len(list(recoveries(attempts([*KILLED[:6], *born_dead, *(step(n, attempt=3) for n in (4, 5))])))) == 1


def test_all_steps_recorded_and_repeated_alike_is_no_contradiction() -> None:
    assert contradictions(KILLED, steps_total=6) == []


def test_a_missing_step_and_a_step_with_two_losses_are_found() -> None:
    records = [step(1), step(2), step(2, attempt=2, loss=0.6)]

    missing, differing = contradictions(records, steps_total=3)

    assert missing == "no record of 1 steps, the first [3]"
    assert differing == "step 2 logged [0.5, 0.6]"
