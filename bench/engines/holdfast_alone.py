"""holdfast without a supervisor: `Run(dir=…)`, `run.save()` at every step."""

from __future__ import annotations

import json
from pathlib import Path

from bench.engines import NOTHING, Engine, Loaded
from bench.job import Job, Weights


class HoldfastAlone(Engine):
    title = "holdfast, Run(dir=…)"
    documented = "docs/concepts/checkpoints.md; run.on('committed'): src/holdfast/train/run.py"
    packages = ("torch", "holdfast")
    preload = ("holdfast.train",)
    retention = "keep: {last: 3}, its default"
    ranks = True
    reshards = False

    def train(self, folder: Path, job: Job) -> None:
        import holdfast

        run = holdfast.Run(dir=folder / "run", weights=job.weights)
        asked: dict[int, int] = {}  # step of the run → step of the job
        run.on("committed", lambda done: job.saved(asked[done.step]))
        run.on("save_failed", lambda done: job.refused(asked[done.step], done.error))
        job.each = run.tick
        run.begin()
        for step in job.steps():
            asked[run.step + 1] = step
            run.save()
            run.tick()
        run.close()

    def load(self, folder: Path, weights: Weights) -> Loaded:
        import holdfast

        run = holdfast.Run(dir=folder / "run", weights=weights)
        return Loaded(run.step, passed_over(folder / "run")) if run.resumed else NOTHING

    def reload(self, folder: Path, weights: Weights) -> Loaded:
        import holdfast

        return Loaded(holdfast.load_weights(weights, self.checkpoints(folder), name="weights").step)

    def checkpoints(self, folder: Path) -> Path:
        return folder / "run" / "checkpoints"


def passed_over(run: Path) -> list[str]:
    """What the last restore said about damaged checkpoints; it is on the terminal as well."""
    said: list[str] = []
    for path in sorted((run / "records").glob("rank-*.jsonl")):
        restored = [line for line in path.read_text(errors="replace").splitlines() if '"event":"restored"' in line]
        said += json.loads(restored[-1])["fell_back"] if restored else []  # lines before may be what was damaged
    return said
