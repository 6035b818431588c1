"""Hundreds of random kills of trainer, workers, shim, supervisor and archiver; the result is kept with its seed."""

from __future__ import annotations

import argparse
import secrets
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from bench import kills, machine


def tell(broken: kills.Broken) -> None:
    """One line a training."""
    said = ", ".join(f"{role} {count}" for role, count in sorted(broken.kills.items()))
    print(
        f"{broken.run}: {said or 'no kill'}; {broken.attempts} attempts; {'; '.join(broken.problems) or 'exact'}",
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=40, help="of one training; a long one takes more kills")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31))
    parser.add_argument(
        "--home", type=Path, help="keep the runs there; by default they are kept only when one came to harm"
    )
    given = parser.parse_args()
    home = given.home or Path(tempfile.mkdtemp(prefix="holdfast-soak-", dir=Path.home()))
    print(f"seed {given.seed}, runs below {home}", flush=True)

    begun_s = time.monotonic()
    done = kills.trainings(home, seed=given.seed, kills=given.kills, epochs=given.epochs, tell=tell)
    total = sum((broken.kills for broken in done), Counter())
    problems = [f"{broken.run}: {problem}" for broken in done for problem in broken.problems]
    result = {
        "seed": given.seed, "kills": dict(total), "trainings": len(done), "attempts": sum(b.attempts for b in done),
        "continued_from": dict(sum((broken.tiers for broken in done), Counter())),
        "seconds": round(time.monotonic() - begun_s), "problems": problems,
    }  # fmt: skip
    print(f"{sum(total.values())} kills, {len(problems)} problems; {machine.keep('soak-kills', result)}")
    if not problems and not given.home:
        shutil.rmtree(home)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
