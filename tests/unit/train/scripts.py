"""Tiny training scripts, one for each way of looping. Each is what a user would write, but that it can be told to die.

A script builds everything anew, as a process does, and returns a digest of all it ended with and of all data it saw.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    WeightedRandomSampler,
)
from torchdata.stateful_dataloader import StatefulDataLoader

import holdfast
from tests.fake_node import FakeNode

ITEMS, BATCH, EPOCHS = 11, 3, 2  # four batches an epoch, the last one smaller


class Killed(BaseException):
    """In place of SIGKILL."""


def die(run: holdfast.Run) -> None:
    """What SIGKILL leaves of a run in this process: nothing is finished, and nothing of it acts any more."""
    session = run._session
    session.closed = True
    session._hooks.remove()
    session._saver.fence.forget()
    session._link._socket.close()
    session._records.close()


class Noisy(Dataset[Any]):
    """Random augmentation from three libraries."""

    def __len__(self) -> int:
        return ITEMS

    def __getitem__(self, index: int) -> torch.Tensor:
        torch_noise = torch.rand(2)
        return torch.cat([torch.tensor([index, random.random(), np.random.rand()], dtype=torch.float32), torch_noise])


def noisy_collate(items: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack(items) * (1 + random.random())


class Moody(Sampler[int]):
    """A custom sampler that draws from every global generator as it goes."""

    def __iter__(self) -> Iterator[int]:
        for _ in range(ITEMS):
            yield int((random.random() + np.random.rand() + torch.rand(()).item()) / 3 * ITEMS)

    def __len__(self) -> int:
        return ITEMS


class Numbers:
    """No DataLoader: an iterable that says itself where it is."""

    def __init__(self) -> None:
        self.given = 0

    def __iter__(self) -> Iterator[torch.Tensor]:
        while self.given < ITEMS // BATCH:
            self.given += 1
            yield torch.rand(BATCH, 5) + self.given
        self.given = 0

    def __len__(self) -> int:
        return ITEMS // BATCH

    def state_dict(self) -> dict[str, int]:
        return {"given": self.given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.given = state["given"]


class Flow(IterableDataset[torch.Tensor]):
    """Knows where it is, and not how long it is."""

    def __init__(self) -> None:
        self.inner = Numbers()

    def __iter__(self) -> Iterator[torch.Tensor]:
        for batch in self.inner:
            yield from batch

    def state_dict(self) -> dict[str, int]:
        return self.inner.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.inner.load_state_dict(state)


@dataclass
class Trial:
    """One process: `kill_at` is the number of completed steps at which it dies, inside the next."""

    node: FakeNode
    kill_at: int | None
    make_loader: Callable[[], Any]
    disturbed: bool = False

    def begin(self, **more: Any) -> None:
        torch.manual_seed(5)
        random.seed(6)
        np.random.seed(7)
        self.model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
        self.ema = torch.optim.swa_utils.AveragedModel(self.model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.05)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 2, 0.7)
        self.loader = self.make_loader()
        if self.disturbed:  # where a resumed process happens to stand must not matter
            random.seed(99)
            np.random.seed(98)
            torch.rand(17)
        state = {"model": self.model, "ema": self.ema, "optimizer": self.optimizer, "scheduler": self.scheduler}
        self.run = holdfast.Run(**state, loader=self.loader, trace="", **more)

    def work(self, x: torch.Tensor, *, accumulate: int = 1) -> None:
        self.node.archive_now()
        if self.run.step == self.kill_at:
            raise Killed
        noise = random.random() + np.random.rand() + torch.rand(()).item()
        loss = (self.model(x.nan_to_num()) * noise).square().mean()
        loss.backward()
        if (self.run.step + 1) % accumulate == 0:
            self.optimizer.step()
            self.ema.update_parameters(self.model)
            self.optimizer.zero_grad()
        saw = hashlib.sha256(x.numpy().tobytes()).hexdigest()
        self.run.state["trace"] = hashlib.sha256((self.run.state["trace"] + saw).encode()).hexdigest()
        self.run.log(loss=loss)

    def result(self) -> str:
        digest = hashlib.sha256(f"{self.run.step} {self.run.epoch} {self.run.state} {random.random()}".encode())
        digest.update(f"{np.random.rand()} {torch.rand(())} {self.scheduler.state_dict()}".encode())
        for module in (self.model, self.ema):
            for tensor in module.state_dict().values():
                digest.update(tensor.numpy().tobytes())
        for state in self.optimizer.state.values():
            digest.update(b"".join(value.numpy().tobytes() for value in state.values()))
        self.run.close()
        return digest.hexdigest()


def steps(trial: Trial) -> str:
    trial.begin()
    for x in trial.run.steps(trial.loader, epochs=EPOCHS):
        trial.work(x)
        trial.scheduler.step()
    return trial.result()


def epochs(trial: Trial) -> str:
    trial.begin()
    for epoch in trial.run.epochs(EPOCHS):
        trial.optimizer.param_groups[0]["lr"] *= 0.9 + 0.01 * random.random()  # before the loop, and not idempotent
        trial.run.state["begun"] = [*trial.run.state.get("begun", []), epoch]
        for x in trial.run.steps(trial.loader):
            trial.work(x)
        trial.scheduler.step()
        trial.run.log(val_loss=random.random())
    return trial.result()


def bare(trial: Trial) -> str:
    trial.begin()
    for _ in range(trial.run.epoch, EPOCHS):
        for x in trial.run.steps(trial.loader):
            trial.work(x)
        trial.scheduler.step()
    return trial.result()


def accumulate(trial: Trial) -> str:
    trial.begin()
    trial.optimizer.zero_grad()
    for x in trial.run.steps(trial.loader, epochs=EPOCHS):
        trial.work(x, accumulate=3)
    return trial.result()


def wrapped(trial: Trial) -> str:
    trial.begin()
    for _ in range(trial.run.epoch, EPOCHS):
        for x in trial.run.wrap(trial.loader):
            trial.work(x)
            trial.run.tick()
        trial.scheduler.step()
    return trial.result()


def two_in_turn(trial: Trial) -> str:
    other = trial.make_loader()
    trial.begin(other=other)
    for _ in trial.run.epochs(2):
        for x in trial.run.steps(trial.loader):
            trial.work(x)
        trial.scheduler.step()
        for x in trial.run.steps(other):
            trial.work(x)
    return trial.result()


def two_at_once(trial: Trial) -> str:
    """The second loader is shorter and endless: it is wrapped again inside a step."""
    other = DataLoader(Noisy(), batch_size=4, shuffle=True)
    trial.begin(other=other)
    second = iter(trial.run.wrap(other))
    for x in trial.run.steps(trial.loader, epochs=EPOCHS):
        y = next(second, None)
        if y is None:
            second = iter(trial.run.wrap(other))
            y = next(second)
        trial.work(torch.cat([x, y]))
    return trial.result()


def cut_short(trial: Trial) -> str:
    """Every epoch's loop is left by `break`."""
    trial.begin()
    for _ in trial.run.epochs(EPOCHS):
        for number, x in enumerate(trial.run.steps(trial.loader)):
            trial.work(x)
            if number == 1 or trial.run.state.get("cut") == trial.run.epoch:
                break
            trial.run.state["cut"] = trial.run.epoch  # `number` begins anew after a resume, this does not
        trial.scheduler.step()
    return trial.result()


LOOPS = {f.__name__: f for f in (steps, epochs, bare, accumulate, wrapped, two_in_turn, two_at_once, cut_short)}


def _workers(**more: Any) -> DataLoader[Any]:
    return DataLoader(Noisy(), batch_size=BATCH, num_workers=2, collate_fn=noisy_collate, **more)


LOADERS: dict[str, Callable[[], Any]] = {
    "plain": lambda: DataLoader(Noisy(), batch_size=BATCH, shuffle=True),
    "generator": lambda: DataLoader(Noisy(), BATCH, shuffle=True, generator=torch.Generator().manual_seed(3)),
    "weighted": lambda: DataLoader(Noisy(), BATCH, sampler=WeightedRandomSampler([0.1] * 5 + [0.9] * 6, ITEMS)),
    "moody": lambda: DataLoader(Noisy(), BATCH, sampler=Moody()),
    "batch-sampler": lambda: DataLoader(Noisy(), batch_sampler=BatchSampler(RandomSampler(range(ITEMS)), BATCH, True)),
    "unbatched": lambda: DataLoader(Noisy(), batch_size=None, shuffle=True, collate_fn=lambda x: x.repeat(2, 1)),
    "workers": lambda: _workers(shuffle=True),
    "workers-moody": lambda: _workers(sampler=Moody(), prefetch_factor=1),
    "persistent": lambda: _workers(shuffle=True, persistent_workers=True),
    "iterable": Numbers,
    "unknown-length": lambda: StatefulDataLoader(Flow(), BATCH),
    "stateful": lambda: StatefulDataLoader(Noisy(), BATCH, shuffle=True),
    "stateful-workers": lambda: StatefulDataLoader(Noisy(), BATCH, shuffle=True, num_workers=2),
}
