"""Train a network on handwritten digits, once in peace and once killed with -9 again and again; compare the weights.

Leaves with 0 only when the killed run ended with the very same weights. Everything lies in demo-out/ afterwards.
"""

from __future__ import annotations

import argparse
import random
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from bench import live, plain
from bench.attempts import Recovery, attempts, recoveries
from bench.live import LiveRun
from bench.plot import plot

DIGITS = Path(__file__).parent.parent / "examples" / "digits"
STEPS_PER_EPOCH = 23
LONGEST_S = 900  # until the next of anything, on a slow machine

talk = Console(stderr=True)
data = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 110)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """One `kill -9`."""

    role: str  # trainer or archiver
    moment: str
    step: int  # completed at that moment
    at_s: float  # unix seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """A run that has ended."""

    run: LiveRun
    seconds: float
    exit_code: int
    weights: str


class Watch:
    """Shows a run's progress while something else is waited for, and knows when the run has ended."""

    def __init__(self, run: LiveRun, bar: Progress, title: str, steps: int) -> None:
        self.run, self.bar = run, bar
        self.task = bar.add_task(title, total=steps)
        self.waiter = run.waiter()

    def ended(self) -> bool:
        """Whether the run is over; refreshes the bar."""
        if beat := self.run.beat():
            self.bar.update(self.task, completed=beat.step)
        return self.waiter.poll() is not None

    def until(self, condition: Callable[[], object], *, what: str, every_s: float = live.POLL_S) -> bool:
        """Wait for `condition`; False when the run ended first."""
        live.until(lambda: condition() or self.ended(), within_s=LONGEST_S, what=what, every_s=every_s)
        return self.waiter.poll() is None

    def training_beyond(self, step: int) -> bool:
        """Wait for a living trainer beyond `step` that has completed one itself; False when the run ended first."""

        def there() -> bool:
            beat = self.run.beat()
            return beat is not None and self.run.trainer() is not None and beat.step > max(step, beat.first_step)

        return self.until(there, what=f"step {step}")


def train(run: LiveRun, watch: Watch, started_s: float) -> Training:
    """Wait for the end."""
    watch.until(lambda: False, what="the end of the training")
    printed = plain.weights_in(run.output())
    return Training(run=run, seconds=time.time() - started_s, exit_code=watch.waiter.wait(), weights=printed)


def kill_one(watch: Watch, role: str, moment: str) -> Kill | None:
    """Kill the trainer or the archiver at once; None when it was not there."""
    run = watch.run
    target = run.trainer() if role == "trainer" else run.process(role)
    beat = run.beat()
    if target is None or beat is None or not live.kill(target):
        return None
    kill = Kill(role=role, moment=moment, step=beat.step, at_s=time.time())
    watch.bar.console.print(f"  kill -9 {role} (pid {target.pid}) at step {kill.step}, {moment}")
    return kill


def moments(rng: random.Random, *, count: int, steps: int) -> list[tuple[int, str, str]]:
    """(step, role, moment) in order: `count` kills of the trainer, one more of it and one of the archiver in a save."""
    at_steps = sorted(rng.sample(range(steps // 20, steps - steps // 20), count + 2))
    kinds = [("trainer", "at a random moment")] * count
    kinds.insert(1, ("trainer", "while a checkpoint was written"))
    kinds.insert(3, ("archiver", "while it wrote a checkpoint"))
    return [(step, *kind) for step, kind in zip(at_steps, kinds, strict=True)]


def kill_again_and_again(watch: Watch, rng: random.Random, *, count: int, steps: int) -> list[Kill]:
    """Wait for each moment and kill; within the step, too, the moment is random."""
    done: list[Kill] = []
    for at_step, role, moment in moments(rng, count=count, steps=steps):
        watch.training_beyond(at_step)
        within_s = time.monotonic() + rng.uniform(0, 0.05)
        watch.until(lambda at_s=within_s: time.monotonic() >= at_s, what="a moment", every_s=0)
        if role == "archiver" or "checkpoint" in moment:
            watch.until(watch.run.saving, what="a save", every_s=0)
        if kill := kill_one(watch, role, moment):
            done.append(kill)
            if role == "trainer":
                watch.until(lambda: watch.run.trainer() is None, what="the trainer's end")
    return done


def results(kills: list[Kill], found: list[Recovery]) -> Table:
    """One line a kill. `found` has one entry for each kill of the trainer."""
    table = Table(title="What each kill cost", title_justify="left")
    for heading in ("kill -9 of", "moment", "at step", "continued from", "steps lost", "seconds to the next step"):
        table.add_column(heading, justify="left" if heading in ("kill -9 of", "moment") else "right")
    waiting = iter(found)
    for kill in kills:
        next_one = next(waiting, None) if kill.role == "trainer" else None
        if next_one is None:
            table.add_row(kill.role, kill.moment, str(kill.step), "training went on", "0", "0")
        else:
            seconds = f"{next_one.next_step_s - kill.at_s:.1f}"
            steps = (str(next_one.reached_step), str(next_one.from_step), str(next_one.lost_steps))
            table.add_row(kill.role, kill.moment, *steps, seconds)
    return table


def tell_damage(found: plain.Damage) -> None:
    """The same kills, a plain loop."""
    data.print("\n[bold]The same kills against a loop that uses plain torch.save[/]")
    data.print(f"  at a random moment  {found.lost_steps} steps done again, with other augmentation and another order")
    if found.torn:
        data.print(f"  during a save       torn file, {found.torn}; the next start dies of it:")
        data.print(f"                      {found.error.partition('. ')[0]}")
    else:
        data.print("  during a save       every save was quicker than the kill this time")
    verdict = "equal" if found.weights == found.expected else "[bold red]DIFFERENT[/]"
    data.print(f"  final weights       {verdict}: {found.weights[:16]}…, uninterrupted {found.expected[:16]}…")


def begin(home: Path, name: str, epochs: int) -> LiveRun:
    """Start the digits example, with a budget for more kills in a minute than the default allows in an hour."""
    budget = ("--set", "restart.max_restarts=100", "--set", "restart.window.restarts=100")
    return live.start(DIGITS, "--name", name, "--env", f"EPOCHS={epochs}", *budget, home=home)


def demo(out: Path, seed: int, *, count: int, epochs: int, bar: Progress) -> bool:
    """Both trainings, the comparison, the report; whether the weights are equal."""
    rng, home, steps = random.Random(seed), out / "home", epochs * STEPS_PER_EPOCH
    started: list[LiveRun] = []
    try:
        begun_s = time.time()
        started.append(begin(home, "uninterrupted", epochs))
        peace = train(started[-1], Watch(started[-1], bar, "uninterrupted", steps), begun_s)

        begun_s = time.time()
        started.append(begin(home, "killed", epochs))
        watch = Watch(started[-1], bar, "killed with -9", steps)
        kills = kill_again_and_again(watch, rng, count=count, steps=steps)
        killed = train(started[-1], watch, begun_s)
        task = bar.add_task("plain torch.save", total=None)
        damage = plain.damage(out / "plain", rng, epochs=7, tell=lambda said: bar.update(task, description=said))
        bar.update(task, total=1, completed=1, description="plain torch.save")
    finally:
        for run in started:
            run.call("kill")
    bar.stop()
    return report(out, peace, killed, kills, damage)


def report(out: Path, peace: Training, killed: Training, kills: list[Kill], damage: plain.Damage) -> bool:
    """Print the table, draw the plot, compare the weights."""
    found = attempts(killed.run.records())
    data.print(results(kills, list(recoveries(found))))
    plot(
        out / "loss.png", uninterrupted=attempts(peace.run.records())[0], killed=found, kills_s=[k.at_s for k in kills]
    )
    trainers = sum(kill.role == "trainer" for kill in kills)
    data.print(
        f"kills {len(kills)}, {trainers} of them of the trainer · restarts {len(found) - 1} · "
        f"{killed.seconds:.0f} s instead of {peace.seconds:.0f} s · loss of all attempts: {out / 'loss.png'}"
    )
    tell_damage(damage)
    equal = peace.weights == killed.weights != ""
    data.print("\n[bold]SHA-256 of the final weights[/]")
    data.print(f"  uninterrupted  {peace.weights or 'none'}")
    data.print(f"  killed         {killed.weights or 'none'}")
    data.print("  [bold green]equal[/]" if equal else "  [bold red]DIFFERENT[/]")
    program = Path(sys.executable).parent / "holdfast"
    data.print(f"\nLook closer: HOLDFAST_HOME={out / 'home'} {program} explain {killed.run.id}")
    return equal and trainers >= 3 and peace.exit_code == killed.exit_code == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31), help="of the moments of the kills")
    parser.add_argument("--kills", type=int, default=3, help="kills of the trainer at random moments, at least 2")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("demo-out"))
    given = parser.parse_args()
    out = given.out.resolve()
    shutil.rmtree(out, ignore_errors=True)
    (out / "home").mkdir(parents=True)
    talk.print(f"seed of the moments of the kills: {given.seed}")
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=talk) as bar:
        try:
            good = demo(out, given.seed, count=given.kills, epochs=given.epochs, bar=bar)
        except (live.TooSlow, subprocess.CalledProcessError) as problem:
            talk.print(f"the demo could not go on: {problem}")
            return 1
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
