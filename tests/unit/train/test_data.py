"""Positions of single loaders: custom samplers with a state, DistributedSampler, own-state iterables, streams."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, Sampler
from torchdata.stateful_dataloader import StatefulDataLoader
from torchdata.stateful_dataloader.sampler import StatefulDistributedSampler

from holdfast.checkpoint.state import decode, encode
from holdfast.errors import UsageError
from holdfast.train.data import Feed
from holdfast.train.rng import Stream, capture, derive, restore

QUIET = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated", "ignore:.*fork.*:DeprecationWarning")


class Range(Dataset[int]):
    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> int:
        return index


class Curriculum(Sampler[int]):
    """Depends on training: prefers what `weights` says now."""

    def __init__(self) -> None:
        self.weights = torch.ones(10)
        self.left = 9

    def __iter__(self) -> Iterator[int]:
        while self.left:
            self.left -= 1
            yield int(torch.multinomial(self.weights, 1))
        self.left = 9

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self.weights.clone(), "left": self.left}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.weights, self.left = state["weights"], state["left"]


class Numbers(IterableDataset[int]):
    def __init__(self) -> None:
        self.at = 0

    def __iter__(self) -> Iterator[int]:
        while self.at < 12:
            self.at += 1
            yield self.at
        self.at = 0

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at = state["at"]


def curriculum(workers: int) -> DataLoader[int]:
    return DataLoader(Range(), batch_size=3, sampler=Curriculum(), num_workers=workers)


LOADERS: dict[str, Any] = {
    "curriculum": lambda: curriculum(0),
    "distributed": lambda: DataLoader(Range(), 2, sampler=DistributedSampler(Range(), 2, 1)),
    "stateful-distributed": lambda: StatefulDataLoader(Range(), 2, sampler=StatefulDistributedSampler(Range(), 2, 1)),
    "stateful-iterable": lambda: StatefulDataLoader(Numbers(), batch_size=3),
    "stateful-iterable-workers": lambda: StatefulDataLoader(Numbers(), batch_size=3, num_workers=2),
}


def stored(feed: Feed) -> dict[str, Any]:
    encoded = encode({"feed": feed.snapshot()})
    tensors = {name: tensor.clone() for name, tensor in encoded.tensors.items()}
    return decode(encoded.tree, tensors)["feed"]  # type: ignore[no-any-return]


def batches(feed: Feed, epoch: int) -> Iterator[Any]:
    found = feed.enter(epoch, in_step=False)
    return iter(()) if found is None else found


def consume(feed: Feed, epochs: int, count: int | None = None) -> list[Any]:
    """Batches of the epochs from the feed's own on, as `run.steps` takes them, up to `count`."""
    seen: list[Any] = []
    for epoch in range(max(feed.place.epoch, 0), epochs):
        for batch in batches(feed, epoch):
            feed.place.yielded += 1
            seen.append(batch.tolist())
            if isinstance(feed.loader.sampler, Curriculum):
                feed.loader.sampler.weights[batch[0]] += 5
            if len(seen) == count:
                return seen
        feed.place.open = False
    return seen


@QUIET
@pytest.mark.parametrize("kind", LOADERS)
def test_the_rest_is_the_same_from_every_position(kind: str) -> None:
    whole = consume(Feed("x", LOADERS[kind](), seed=1, rank=0), 3)

    for count in range(1, len(whole), 1 if "workers" not in kind else 2):  # a process for each worker
        torch.manual_seed(count)
        first = Feed("x", LOADERS[kind](), seed=1, rank=0)
        begun = consume(first, 3, count)
        second = Feed("x", LOADERS[kind](), seed=1, rank=0)
        second.resume(stored(first))
        assert begun + consume(second, 3) == whole, count


@QUIET
def test_a_sampler_state_belongs_to_what_was_consumed_not_to_what_workers_fetched() -> None:
    loader = curriculum(2)
    feed = Feed("x", loader, seed=1, rank=0)
    next(batches(feed, 0))
    feed.place.yielded = 1

    assert feed.snapshot()["state"]["left"] == 6


def test_drawing_indices_is_invisible_to_the_training_loop_and_to_a_shared_generator() -> None:
    generator = torch.Generator().manual_seed(4)
    loader = DataLoader(Range(), 2, shuffle=True, generator=generator)
    random.seed(1)
    before, own = capture(), generator.get_state()

    list(batches(Feed("x", loader, seed=1, rank=0), 0))

    after = capture()
    assert torch.equal(after["torch"], before["torch"])
    assert torch.equal(generator.get_state(), own)
    assert np.array_equal(after["numpy"]["state"]["key"], before["numpy"]["state"]["key"])
    assert torch.equal(after["python"]["words"], before["python"]["words"])


def test_epochs_names_and_seeds_shuffle_differently_and_the_same_ones_alike() -> None:
    def order(name: str, seed: int, epoch: int) -> str:
        loader = DataLoader(Range(), 10, shuffle=True)
        return str([b.tolist() for b in batches(Feed(name, loader, seed=seed, rank=0), epoch)])

    kinds = [("x", 1, 0), ("y", 1, 0), ("x", 2, 0), ("x", 1, 1)]
    assert len({order(*kind) for kind in kinds}) == 4
    assert order(*kinds[0]) == order(*kinds[0])


def test_the_users_loader_is_left_as_it_was() -> None:
    loader = DataLoader(Range(), 2, num_workers=0)
    before = dict(vars(loader))

    list(batches(Feed("x", loader, seed=1, rank=0), 0))

    assert vars(loader) == before


class Repeating(DataLoader[int]):
    def __iter__(self) -> Any:
        return iter([])


@pytest.mark.parametrize(
    ("loader", "says"),
    [
        (Repeating(Range()), "replaces DataLoader.__iter__"),
        (DataLoader(Numbers()), "reads an IterableDataset"),
        (DataLoader(Range(), num_workers=1, in_order=False), "in_order=False"),
    ],
)
def test_loaders_without_a_knowable_position_are_refused(loader: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Feed("x", loader, seed=1, rank=0)


def test_random_states_come_back_through_a_checkpoint() -> None:
    random.gauss(0, 1)
    np.random.randn()
    encoded = encode({"rng": capture()})
    expected = [random.gauss(0, 1), random.random(), np.random.randn(), np.random.rand(), torch.randn(3).tolist()]

    said = restore(decode(encoded.tree, {name: tensor.clone() for name, tensor in encoded.tensors.items()})["rng"])

    assert said == []
    assert [
        random.gauss(0, 1),
        random.random(),
        np.random.randn(),
        np.random.rand(),
        torch.randn(3).tolist(),
    ] == expected


def test_a_stream_continues_where_it_was_left() -> None:
    def draw() -> list[float]:
        return [random.random(), float(np.random.rand()), torch.rand(()).item()]

    whole = Stream(derive(1, "a"))
    with whole:
        expected = draw() + draw()

    parts = Stream(derive(1, "a"))
    with parts:
        first = draw()
    draw()
    with parts:
        assert first + draw() == expected
