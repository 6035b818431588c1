"""How long one waits for `holdfast --help`, `holdfast ps` and `import holdfast`, beside a bare interpreter."""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench import machine

PROGRAM = str(Path(sys.executable).with_name("holdfast"))
COMMANDS = {
    "python": [sys.executable, "-c", ""],
    "import holdfast": [sys.executable, "-c", "import holdfast"],
    "holdfast --help": [PROGRAM, "--help"],
    "holdfast ps": [PROGRAM, "ps"],
}
TARGETS_S = {
    "import holdfast": 0.1,
    "holdfast --help": 0.25,
    "holdfast ps": 0.25,
}  # the import without the interpreter's start


def once(argv: list[str], environment: dict[str, str]) -> float:
    """Seconds until it has ended."""
    begun_s = time.perf_counter()
    subprocess.run(argv, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begun_s


def measure(rounds: int, environment: dict[str, str]) -> dict[str, list[float]]:
    """The commands take turns; the first round warms the file cache and is left out."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for number in range(rounds + 1):
        for name, argv in COMMANDS.items():
            seconds = once(argv, environment)
            if number:
                times[name].append(round(seconds, 4))
    return times


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        times = measure(given.rounds, {**os.environ, "HOLDFAST_HOME": home})
    medians = {name: statistics.median(values) for name, values in times.items()}
    medians["import holdfast"] -= medians["python"]
    for name, seconds in medians.items():
        print(f"{name:16} {seconds * 1000:6.0f} ms")
    path = machine.keep("startup", {"medians_s": {name: round(s, 4) for name, s in medians.items()}, "rounds_s": times})
    print(path)
    return 0 if all(medians[name] <= target_s for name, target_s in TARGETS_S.items()) else 1


if __name__ == "__main__":
    sys.exit(main())
