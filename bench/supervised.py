"""The training that `holdfast run` starts for bench/engines/holdfast_run.py: LOOK DIARY SIZE_BYTES LAST."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import holdfast
from bench.job import Job


def main(told: str, diary: str, size_bytes: str, last: str) -> None:
    torch.set_num_threads(1)
    job = Job(Path(diary), size_bytes=int(size_bytes), last=int(last))
    run = holdfast.Run(weights=job.weights)
    look = Path(told)
    if look.exists():
        torch.save({"model": job.weights.state_dict(), "step": run.step if run.resumed else 0}, look)
        run.close()
        return
    run.on("committed", lambda done: job.saved(done.step))
    run.on("save_failed", lambda done: job.refused(done.step, done.error))
    run.begin()
    for _ in job.steps(after=run.step):
        run.tick()
    run.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
