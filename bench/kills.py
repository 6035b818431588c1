"""Random kills of everything a run consists of; afterwards it must be as if nothing had happened.

`trainings` breaks as many trainings as it takes for the wanted number of kills and judges each against one that ran in
peace: same final weights, every step in the records and in the output, a repeated step never with another loss, and no
more steps done twice than lie between two copies in memory.

At each moment a shim, supervisor or archiver is left that holds the copies: to kill all of them before the first is
back is the end of everything at once, after which only the disk has a state and only `resume` brings the run back. A
trainer holds them too, but one whose worker was killed goes any moment by itself.
"""

from __future__ import annotations

import random
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bench import live
from bench.attempts import attempts, contradictions, recoveries
from bench.live import LiveRun
from bench.plain import weights_in
from holdfast.process import Identity, alive, identity

SCRIPT = Path(__file__).parent / "unseen"
STEPS_PER_EPOCH = 25
CADENCE_STEPS = 1  # `checkpoint.memory` of unseen/holdfast.yaml
ROLES = ("trainer", "worker", "shim", "supervisor", "archiver")
LONGEST_S = 600  # of one training, kills included
NODE = ("shim", "supervisor", "archiver")
_PRINTED = re.compile(r"step (\d+) loss (\S+)$", re.MULTILINE)  # a dying worker may have left half a line before it


@dataclass(frozen=True, slots=True)
class Reference:
    """What the training must come to."""

    weights: str
    losses: dict[int, str]  # as printed, by step
    seconds: float


@dataclass(slots=True)
class Broken:
    """One training that was broken on purpose, and what was wrong with it afterwards."""

    run: str
    kills: Counter[str] = field(default_factory=Counter)
    story: list[str] = field(default_factory=list)  # a line a kill
    attempts: int = 0
    tiers: Counter[str] = field(default_factory=Counter)  # what attempts continued from
    problems: list[str] = field(default_factory=list)


def in_peace(home: Path, *, epochs: int) -> Reference:
    """Run it once without harm. Raises TooSlow, CalledProcessError."""
    begun_s = time.monotonic()
    run = live.start(SCRIPT, "--env", f"EPOCHS={epochs}", home=home)
    waiter = run.waiter()
    try:
        live.until(lambda: waiter.poll() is not None, within_s=LONGEST_S, what="the end of the training")
        return Reference(weights_in(run.output()), printed_losses(run.output())[0], time.monotonic() - begun_s)
    finally:
        put_down(run)
        waiter.wait(timeout=60)


def printed_losses(output: str) -> tuple[dict[int, str], list[str]]:
    """The loss of each step as printed, and a sentence for each step that was printed with two different ones."""
    losses: dict[int, str] = {}
    differing = []
    for step, loss in _PRINTED.findall(output):
        if losses.setdefault(int(step), loss) != loss:
            differing.append(f"step {step} printed loss {losses[int(step)]} and {loss}")
    return losses, differing


def broken(home: Path, reference: Reference, rng: random.Random, *, epochs: int, most: int) -> Broken:
    """One training, killed at random moments until it ends or `most` kills were done."""
    run = live.start(SCRIPT, "--env", f"EPOCHS={epochs}", home=home)
    result = Broken(run.id)
    waiter = run.waiter()
    deadline_s = time.monotonic() + LONGEST_S
    try:
        while sum(result.kills.values()) < most and waiter.poll() is None and time.monotonic() < deadline_s:
            kill_something(run, result, rng, ended=lambda: waiter.poll() is not None)
        live.until(lambda: waiter.poll() is not None, within_s=LONGEST_S, what="the end of the training")
        judge(run, result, reference, exit_code=waiter.wait(), steps_total=epochs * STEPS_PER_EPOCH)
    except live.TooSlow as slow:
        result.problems.append(f"{slow}; status {run.call('status', '--json').stdout.strip()}")
    finally:
        put_down(run)
        waiter.wait(timeout=60)
    return result


def kill_something(run: LiveRun, result: Broken, rng: random.Random, *, ended: Callable[[], bool]) -> None:
    """Wait for a random time, mostly in training but now and then while the last kill is being mended; then kill."""
    if rng.random() < 0.7:
        live.until(lambda: ended() or stepping(run), within_s=120, what="the next step")
    moment_s = time.monotonic() + rng.expovariate(1 / 0.5)
    live.until(lambda: ended() or time.monotonic() >= moment_s, within_s=60, what="a random moment")
    role = rng.choice(ROLES)
    target = find(run, role, rng)
    if target is not None and someone_holds(run, besides=target) and live.kill(target):
        beat = run.beat()
        result.kills[role] += 1
        live.until(lambda: not alive(target), within_s=60, what=f"the end of {target.pid}")  # it holds nothing any more
        result.story.append(f"{role} {target.pid} at step {beat.step if beat else 0}, t {time.time():.3f}")


def stepping(run: LiveRun) -> bool:
    """Whether this attempt has completed a step of its own."""
    beat = run.beat()
    return beat is not None and run.trainer() is not None and beat.step > beat.first_step


def someone_holds(run: LiveRun, *, besides: Identity) -> bool:
    """Whether another process of ours holds the slots, or lives while nobody has any yet, the trainer neither."""
    ours = [found for role in NODE if (found := run.process(role)) is not None]
    holders = [found for found in ours if _holds_slots(found)]
    trainer = run.trainer()
    if not holders and trainer is not None and _holds_slots(trainer):
        return False
    return any(found != besides for found in holders or ours)


def _holds_slots(process: Identity) -> bool:
    try:
        return any("memfd:holdfast-" in str(link.readlink()) for link in Path(f"/proc/{process.pid}/fd").iterdir())
    except OSError:  # it has ended
        return False


def find(run: LiveRun, role: str, rng: random.Random) -> Identity | None:
    """A living process of that role."""
    if role not in ("trainer", "worker"):
        return run.process(role)
    trainer = run.trainer()
    if trainer is None or role == "trainer":
        return trainer
    workers = live.children(trainer)
    return identity(rng.choice(workers)) if workers else None


def judge(run: LiveRun, result: Broken, reference: Reference, *, exit_code: int, steps_total: int) -> None:
    """Note everything that differs from the training in peace."""
    records, output = list(run.records()), run.output()
    losses, differing = printed_losses(output)
    found = attempts(records)
    result.attempts = len(found)
    result.tiers.update(attempt.tier for attempt in found if attempt.tier)
    result.problems += [
        f"attempt from step {each.from_step} after step {each.reached_step} was reached"
        for each in recoveries(found)
        if each.lost_steps > CADENCE_STEPS and not each.fell_back
    ]
    result.problems += contradictions(records, steps_total=steps_total) + differing
    if exit_code != 0:
        result.problems.append(f"exit code {exit_code}")
    if weights_in(output) != reference.weights:
        result.problems.append(f"final weights {weights_in(output) or 'none'}, expected {reference.weights}")
    if losses != reference.losses:
        wrong = sorted(
            step for step in losses.keys() | reference.losses if losses.get(step) != reference.losses.get(step)
        )
        result.problems.append(f"{len(wrong)} steps printed otherwise or not at all, the first {wrong[:5]}")


def put_down(run: LiveRun) -> None:
    """Leave nothing behind; nothing happens to a run that has ended."""
    run.call("kill")


def trainings(home: Path, *, seed: int, kills: int, epochs: int, tell: Callable[[Broken], None]) -> list[Broken]:
    """Break trainings until `kills` kills were done or one came to harm."""
    rng = random.Random(seed)
    reference = in_peace(home, epochs=epochs)
    done: list[Broken] = []
    while (left := kills - sum(sum(each.kills.values()) for each in done)) > 0:
        done.append(broken(home, reference, rng, epochs=epochs, most=left))
        tell(done[-1])
        if done[-1].problems:
            break
    return done
