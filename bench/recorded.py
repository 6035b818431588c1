"""The training process that strace watches: `python -m bench.recorded ENGINE FOLDER DIARY SIZE_BYTES STEPS`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch

from bench import engines
from bench.job import Job


def main(name: str, folder: str, diary: str, size_bytes: str, steps: str) -> None:
    torch.set_num_threads(1)
    work = Job(Path(diary), size_bytes=int(size_bytes), last=int(steps))
    engine = engines.named(name)
    if engine.moves_from_tmp:
        tempfile.tempdir = str(Path(folder) / "tmp")
        Path(tempfile.tempdir).mkdir()
    try:
        engine.train(Path(folder), work)
    except Exception as error:
        work.refused(work.step, f"{type(error).__name__}: {error}")
        raise
    work.done()


if __name__ == "__main__":
    main(*sys.argv[1:])
