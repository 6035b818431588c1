"""What runs inside DataLoader workers: each batch is seeded by its ordinal, and the user's dataset stays in sight.

Seeds cover the global generators of Python, NumPy and torch, while the batch is fetched and collated. A generator that
a dataset keeps in an attribute of its own is out of reach.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils.data import get_worker_info
from torch.utils.data._utils import worker as torch_worker

from holdfast.train.indices import Batch
from holdfast.train.rng import seed_globals


class SeededDataset:
    """Takes `Batch` in place of indices, seeds, and asks the user's dataset as torch would have."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, batch: Batch) -> Any:
        seed_globals(batch.seed)
        return self.inner[batch.indices]

    def __getitems__(self, batch: Batch) -> Any:
        seed_globals(batch.seed)
        whole = getattr(self.inner, "__getitems__", None)
        return whole(batch.indices) if whole else [self.inner[index] for index in batch.indices]


class InitWorker:
    """Runs first in each worker: `get_worker_info().dataset` is the user's again, then the user's own function."""

    def __init__(self, then: Callable[[int], Any] | None) -> None:
        self.then = then

    def __call__(self, worker_id: int) -> None:
        info = get_worker_info()
        if info is not None and isinstance(info.dataset, SeededDataset):
            torch_worker._worker_info = torch_worker.WorkerInfo(  # noqa: SLF001 (torch gives no other way)
                id=info.id, num_workers=info.num_workers, seed=info.seed, dataset=info.dataset.inner
            )
        if self.then is not None:
            self.then(worker_id)
