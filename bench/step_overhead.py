"""What holdfast costs a training step in which nothing is saved: median µs, against the same loop without it.

    python bench/step_overhead.py [steps]

The other side of the sockets is the tests' fake node, so only the trainer's own work is measured.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, RandomSampler, Sampler, TensorDataset

sys.path.insert(0, str(Path(__file__).parents[1]))
import holdfast
from holdfast.plan import Every
from tests.fake_node import FakeNode


class Custom(Sampler[int]):
    """A sampler of the user's own, for which index batches cannot be drawn ahead."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.size))

    def __len__(self) -> int:
        return self.size


def per_step_us(batches: Iterable[Any], each: Callable[[Any], None]) -> float:
    """Median time from one batch to the next, in µs."""
    times = []
    before = time.perf_counter_ns()
    for batch in batches:
        each(batch)
        now = time.perf_counter_ns()
        times.append(now - before)
        before = now
    return statistics.median(times) / 1000


def main(steps: int) -> None:
    torch.set_num_threads(1)
    data = TensorDataset(torch.zeros(steps, 1))
    loss = torch.tensor(0.5)
    with tempfile.TemporaryDirectory() as folder:
        node = FakeNode(Path(folder) / "bench", every=Every(auto=False))
        os.environ.update(node.environ())
        for name, sampler in (("random", RandomSampler(data)), ("custom", Custom(steps))):
            loader = DataLoader(data, batch_size=1, sampler=sampler)
            bare = per_step_us(loader, lambda _: None)
            run = holdfast.Run(loader=loader)
            silent = per_step_us(run.steps(loader), lambda _: None) - bare
            logged = per_step_us(run.steps(loader), lambda _, log=run.log: log(loss=loss, lr=0.1)) - bare
            run.close()
            node.kept.clear()
            print(f"{name} sampler: bare {bare:.1f} µs, steps +{silent:.1f} µs, with one log +{logged:.1f} µs")
        node.close()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5000)
