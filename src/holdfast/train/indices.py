"""The index batches of one pass over a DataLoader: drawn under their own random stream, skipped without loading."""

from __future__ import annotations

import copy
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch.utils.data import (
    BatchSampler,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from holdfast.train.rng import Stream, derive

# Changing to the sampler's random stream and back costs some 200 µs with NumPy, so several index batches are drawn
# at once.
# A sampler that depends on training must have a state_dict (it could not be resumed otherwise): from it, one at a time.
AHEAD = 32  # torch's own samplers, which look at nothing but their generator
AHEAD_CUSTOM = 8
_KNOWN = (SequentialSampler, RandomSampler, SubsetRandomSampler, WeightedRandomSampler, DistributedSampler)


class Batch(NamedTuple):
    """What a worker is sent in place of bare indices: enough to seed it for exactly this batch."""

    seed: int
    indices: Any


class Pass:
    """One pass, from index batch `skip` on. Nothing is drawn before the first `next`."""

    def __init__(
        self,
        sampler: Any,
        seed: int,
        generators: tuple[torch.Generator, ...],
        *,
        skip: int = 0,
        state: Any = None,
        in_flight: int = 0,
    ) -> None:
        """sampler: the loader's batch sampler, or its sampler when it does not batch.

        state: of a sampler that has one, as of `skip` batches; None otherwise.
        in_flight: how many batches workers may be ahead of what was consumed.
        """
        self._sampler, self._seed, self._generators = sampler, seed, generators
        self._stream = Stream(seed, generators)
        self._own_state, self._in_flight = has_state(sampler), in_flight
        self._skip, self._state = skip, state
        self._ahead = 1 if self._own_state else AHEAD if _is_known(sampler) else AHEAD_CUSTOM
        self._drawn: deque[Any] = deque()
        self._source: Iterator[Any] | None = None
        self._ordinal = skip
        self._states: deque[tuple[int, Any]] = deque(maxlen=in_flight + 4)  # (ordinal, the sampler's state after it)

    def __iter__(self) -> Pass:
        return self

    def __next__(self) -> tuple[int, Any]:
        """(ordinal, indices) of the next batch."""
        if not self._drawn:
            self._draw()
        if not self._drawn:
            raise StopIteration
        ordinal = self._ordinal
        self._ordinal += 1
        return ordinal, self._drawn.popleft()

    def _draw(self) -> None:
        if not self._own_state:
            with self._stream:
                self._take()
            return
        if self._source is None:
            with self._stream:
                self._source = self._open()
        with Stream(derive(self._seed, "batch", self._ordinal), self._generators):  # so that no random state is kept
            self._take()
        if self._in_flight:
            self._states.append((self._ordinal, copy.deepcopy(self._sampler.state_dict())))

    def _take(self) -> None:
        if self._source is None:
            self._source = self._open()
        self._drawn.extend(itertools.islice(self._source, self._ahead))

    def _open(self) -> Iterator[Any]:
        if self._state is None:
            return itertools.islice(self._sampler, self._skip, None)
        self._sampler.load_state_dict(self._state)
        source: Iterator[Any] = iter(self._sampler)
        if self._skip:
            return source
        # The state is from the end of the pass before; a sampler that counts then has nothing left, and begins anew.
        first = list(itertools.islice(source, 1))
        return itertools.chain(first, source) if first else iter(self._sampler)

    def state_after(self, count: int) -> Any:
        """The sampler's own state when `count` batches were consumed; None for a sampler without one."""
        if self._own_state and not self._in_flight and self._source is not None:
            return self._sampler.state_dict()  # now: training may have changed it since the last draw
        found = [state for ordinal, state in self._states if ordinal == count - 1]
        return found[0] if found else self._state


def has_state(sampler: Any) -> bool:
    """Whether the sampler says itself where it is (torchdata's do, and those that depend on training must)."""
    return callable(getattr(sampler, "state_dict", None)) and callable(getattr(sampler, "load_state_dict", None))


def _is_known(sampler: Any) -> bool:
    if type(sampler) is BatchSampler:
        sampler = sampler.sampler
    return type(sampler) in _KNOWN


class Stateful:
    """A batch sampler whose inner sampler has a state: gives it the inner one's."""

    def __init__(self, outer: Any, inner: Any) -> None:
        self._outer = outer
        self.state_dict: Callable[[], Any] = inner.state_dict
        self.load_state_dict: Callable[[Any], Any] = inner.load_state_dict

    def __iter__(self) -> Iterator[Any]:
        return iter(self._outer)

    def __len__(self) -> int:
        return len(self._outer)


def index_sampler(loader: Any) -> Any:
    """What yields the loader's index batches, with a state where it or its inner sampler has one."""
    outer = loader.batch_sampler if loader.batch_sampler is not None else loader.sampler
    inner = getattr(outer, "sampler", None)
    return Stateful(outer, inner) if not has_state(outer) and has_state(inner) else outer


def generators_of(loader: Any) -> tuple[torch.Generator, ...]:
    """Every torch.Generator that the loader or its samplers hold, once."""
    holders = [loader, loader.sampler, loader.batch_sampler, getattr(loader.batch_sampler, "sampler", None)]
    found: dict[int, torch.Generator] = {}
    for holder in holders:
        for value in vars(holder).values() if hasattr(holder, "__dict__") else ():
            if isinstance(value, torch.Generator):
                found[id(value)] = value
    return tuple(found.values())


def set_epoch(loader: Any, epoch: int) -> None:
    """Tell every sampler that wants to know (DistributedSampler) which pass begins."""
    for sampler in (loader.batch_sampler, loader.sampler, getattr(loader.batch_sampler, "sampler", None)):
        tell = getattr(sampler, "set_epoch", None)
        if callable(tell):
            tell(epoch)
