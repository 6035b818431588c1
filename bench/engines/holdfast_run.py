"""holdfast as most use it: `holdfast run` with `checkpoint.every: 1 steps`; after the fault `holdfast resume`.

Training is `bench/supervised.py`; a file tells it to look at what it got instead of training.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from bench.engines import NOTHING, Engine, Loaded
from bench.engines.holdfast_alone import passed_over
from bench.job import Job, Weights

NAME = "bench"
SCRIPT = Path(__file__).parents[1] / "supervised.py"


def call(folder: Path, *words: str) -> None:
    """A verb of holdfast, runs below `folder`. Raises RuntimeError with what it said."""
    done = subprocess.run(
        [sys.executable, "-m", "holdfast", *words],
        cwd=folder, env={**os.environ, "HOLDFAST_HOME": str(folder / "home")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"holdfast {words[0]}: exit code {done.returncode}: {done.stderr.strip()[-400:]}")


def look_of(folder: Path) -> Path:
    """What tells the training to look, and then holds what it saw; not in `folder`, whose disk may be full."""
    return Path(tempfile.gettempdir()) / f"look-{folder.parent.name}-{folder.name}"


class HoldfastRun(Engine):
    title = "holdfast run"
    documented = "docs/guides/getting-started.md, docs/guides/run-file.md"
    packages = ("torch", "holdfast")
    retention = "keep: {last: 3}, its default"
    supervised = True

    def train(self, folder: Path, job: Job) -> None:
        words = [sys.executable, str(SCRIPT), str(look_of(folder)), str(job.diary), str(job.size_bytes), str(job.last)]
        (folder / "home").mkdir()
        call(folder, "run", "-d", "--in-place", "--name", NAME, "--set", "checkpoint.every=1 steps", "--", *words)
        call(folder, "wait", NAME)

    def load(self, folder: Path, weights: Weights) -> Loaded:
        look = look_of(folder)
        look.touch()
        for _ in range(2):  # the first one may only find, where the journal's end is lost, that training was over
            if not look.stat().st_size:
                call(folder, "resume", NAME, "-d")
                call(folder, "wait", NAME)
        seen = torch.load(look, weights_only=True)
        weights.load_state_dict(seen["model"])
        return Loaded(seen["step"], passed_over(self._run(folder))) if seen["step"] else NOTHING

    def reload(self, folder: Path, weights: Weights) -> Loaded:
        import holdfast

        return Loaded(holdfast.load_weights(weights, self.checkpoints(folder), name="weights").step)

    def checkpoints(self, folder: Path) -> Path:
        return self._run(folder) / "checkpoints"

    def forget(self, folder: Path) -> None:
        look_of(folder).unlink(missing_ok=True)

    def _run(self, folder: Path) -> Path:
        return folder / "home" / "runs" / NAME
