"""From `kill -9` of the training process to its next optimizer step, beside torchrun, as a ratio to a bare start.

Bare: the script alone, from exec to its first optimizer step. torchrun: `--max-restarts` with torch.save. holdfast:
`holdfast run`. The three take turns within each round, so that all see the same machine; medians are reported.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import live, machine
from bench.recovery_train import EVERY
from holdfast.process import identity

SCRIPT = Path(__file__).with_name("recovery_train.py")
LONGEST_S = 180
TARGET_RATIO = 1.3


class Steps:
    """The script's log of optimizer steps."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def times_ns(self) -> list[int]:
        """CLOCK_MONOTONIC of each step so far, all attempts."""
        lines = self.path.read_text().split("\n")[:-1] if self.path.exists() else []
        return [int(line.split()[1]) for line in lines]

    def first_after(self, moment_ns: int) -> int:
        """The time of the first step completed after `moment_ns`; waits for it."""

        def found() -> int | None:
            return next((at_ns for at_ns in self.times_ns() if at_ns > moment_ns), None)

        return live.until(found, within_s=LONGEST_S, what=f"a step in {self.path.name}")

    def wait_for(self, count: int) -> None:
        """Until that many steps are done."""
        live.until(lambda: len(self.times_ns()) >= count, within_s=LONGEST_S, what=f"step {count}")


@contextmanager
def started(*argv: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process in its own session; what remains of the session is killed afterwards."""
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(timeout=60)


def script(saver: str, steps: Steps, *more: str) -> list[str]:
    """The command line below the launcher."""
    return [str(SCRIPT), "--saver", saver, "--steps-log", str(steps.path), *more]


def bare(folder: Path, width: int) -> float:
    """Seconds from exec to the first optimizer step, without anything around it."""
    steps = Steps(folder / "steps")
    begun_ns = time.monotonic_ns()
    with started(sys.executable, *script("none", steps, "--width", str(width))):
        return (steps.first_after(begun_ns) - begun_ns) / 1e9


def after_kill(steps: Steps, kill: Callable[[], object]) -> float:
    """Seconds from the kill to the next optimizer step."""
    steps.wait_for(3 * EVERY)
    killed_ns = time.monotonic_ns()
    kill()
    return (steps.first_after(killed_ns + 1_000_000) - killed_ns) / 1e9


def torchrun(folder: Path, width: int) -> float:
    """Under `torchrun --max-restarts`, with torch.save."""
    steps = Steps(folder / "steps")
    argv = (
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--max-restarts",
        "3",
        "--nproc-per-node",
        "1",
    )
    more = ("--checkpoint", str(folder / "checkpoint.pt"), "--width", str(width))
    with started(*argv, *script("torch", steps, *more)) as launcher:

        def kill() -> None:
            agent = identity(launcher.pid)
            workers = [found for pid in live.children(agent) if (found := identity(pid))] if agent else []
            for worker in workers:
                if str(SCRIPT) in Path(f"/proc/{worker.pid}/cmdline").read_text():
                    live.kill(worker)

        return after_kill(steps, kill)


def holdfast(folder: Path, width: int) -> float:
    """Under `holdfast run`."""
    steps = Steps(folder / "steps")
    command = [sys.executable, *script("holdfast", steps, "--width", str(width))]
    code = folder / "code"  # a snapshot is taken of it: the runs must not lie inside
    code.mkdir()
    run = live.start(code, "--set", f"checkpoint.every={EVERY} steps", "--", *command, home=folder / "home")
    try:

        def kill() -> None:
            trainer = run.trainer()
            assert trainer is not None
            live.kill(trainer)

        return after_kill(steps, kill)
    finally:
        run.call("kill")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--width", type=int, default=512, help="state is about 24 x width squared bytes")
    given = parser.parse_args()
    measured: dict[str, list[float]] = {"bare_start_s": [], "torchrun_s": [], "holdfast_s": []}
    ways = {"bare_start_s": bare, "torchrun_s": torchrun, "holdfast_s": holdfast}
    for number in range(given.rounds):
        for name, way in ways.items():
            folder = Path(tempfile.mkdtemp(prefix=f"recovery-{name}-", dir=Path.home()))
            try:
                measured[name].append(round(way(folder, given.width), 3))
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        print(
            f"round {number + 1}: " + ", ".join(f"{name} {values[-1]}" for name, values in measured.items()), flush=True
        )
    medians = {name: statistics.median(values) for name, values in measured.items()}
    ratios = {name: round(medians[name] / medians["bare_start_s"], 3) for name in ("torchrun_s", "holdfast_s")}
    result = {"width": given.width, "rounds": measured, "medians": medians, "ratio_to_bare_start": ratios}
    print(f"ratio to a bare start: {ratios}, target {TARGET_RATIO}; {machine.keep('recovery', result)}")
    return 0 if ratios["holdfast_s"] <= TARGET_RATIO else 1


if __name__ == "__main__":
    sys.exit(main())
