"""Where a loader stands, and how to continue from there.

A plain DataLoader over a map-style dataset is continued by skipping index batches; anything else by its own
`state_dict`. The user's loader object is never changed: iteration goes through a twin with the same attributes.

A StatefulDataLoader over a map-style dataset without a state is treated as a plain one, since its own state leaves out
what its workers draw. Over an iterable dataset, or one with a state, its own state is all there is: random augmentation
in the main process (num_workers=0) resumes exactly, in workers only if the dataset's state holds its generator.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from torch.utils.data import DataLoader, IterableDataset

from holdfast.errors import UsageError
from holdfast.train.indices import Batch, Pass, generators_of, has_state, index_sampler, set_epoch
from holdfast.train.rng import Stream, derive
from holdfast.train.workers import InitWorker, SeededDataset


@dataclass(slots=True)
class Place:
    """Which pass over a loader this is, and how many of its batches were handed out.

    A pass is named by the epoch it began in, the number of earlier entries in that epoch, and the number of renewals
    inside steps (an endless second loader) since then.
    """

    epoch: int = -1
    entry: int = 0
    renewal: int = 0
    yielded: int = 0
    open: bool = False  # begun, neither exhausted nor left
    stepped: bool = False  # a step was completed during it

    @property
    def key(self) -> tuple[int, int, int]:
        return self.epoch, self.entry, self.renewal

    def next_pass(self, epoch: int, *, in_step: bool) -> Place:
        if in_step and self.epoch >= 0:
            return Place(self.epoch, self.entry, self.renewal + 1, open=True)
        return Place(epoch, self.entry + 1 if self.epoch == epoch else 0, open=True)


class _Source(Protocol):
    """How one kind of loader is iterated from a place."""

    def start(self, place: Place, state: Any) -> Iterator[Any]: ...

    def state(self, place: Place) -> Any: ...


class Feed:
    """A loader under its name. `resume` is told once what a checkpoint holds for it; `enter` begins passes."""

    def __init__(self, name: str, loader: Any, *, seed: int, rank: int) -> None:
        """Raises UsageError for a loader whose position cannot be known."""
        self.name, self.loader = name, loader
        self.place = Place()
        self._source = _source(name, loader, seed, rank)
        self._stored: Place | None = None
        self._stored_state: Any = None
        self._skipped = 0

    def resume(self, stored: dict[str, Any]) -> None:
        """Continue from what `snapshot` returned in an earlier process."""
        self._stored = self.place = Place(**stored["place"])
        self._stored_state = stored["state"]

    def snapshot(self) -> dict[str, Any]:
        """Position and own state, as values that `checkpoint.state` can hold."""
        kept = self._stored_state
        state = self._source.state(self.place) if kept is None else kept
        return {"place": dataclasses.asdict(self.place), "state": state}

    @property
    def skipping(self) -> bool:
        """Whether the pass in which the checkpoint was made is still to come."""
        return self._stored is not None

    def enter(self, epoch: int, *, in_step: bool) -> Iterator[Any] | None:
        """The batches of the next pass, or None for one that was over before the checkpoint."""
        stored = self._stored
        if stored is not None and stored.epoch == epoch and self._skipped < stored.entry:
            self._skipped += 1
            return None
        self._stored = None
        if stored is not None and stored.epoch == epoch and not stored.open:
            return None
        if stored is None or not stored.open:
            self.place = self.place.next_pass(epoch, in_step=in_step)
        state, self._stored_state = self._stored_state, None
        return self._source.start(self.place, state)

    def __len__(self) -> int:
        return len(self.loader)

    def length(self) -> int | None:
        """Batches in a pass; None where the loader, or the dataset it asks, does not know."""
        try:
            return len(self)
        except (TypeError, NotImplementedError):
            return None


class _Indices:
    """Stands in the twin for the loader's index sampler; torch asks for it more than once before a pass begins.

    It knows nothing of the twin: in a reference cycle torch's worker processes take 5 s each to leave.
    """

    def __init__(self, sampler: Any) -> None:
        self._sampler = sampler
        self.current: Iterator[Any] = iter(())

    def __iter__(self) -> Iterator[Any]:
        return self.current

    def __len__(self) -> int:
        return len(self._sampler)


class _Plain:
    """A map-style DataLoader: index batches are drawn by us, fetched by torch's own iterator over a twin."""

    def __init__(self, name: str, loader: DataLoader[Any], seed: int, rank: int) -> None:
        self._name, self._loader, self._seed, self._rank = name, loader, seed, rank
        self._generators = generators_of(loader)
        self._sampler = index_sampler(loader)
        self._indices = _Indices(self._sampler)
        self._pass: Pass | None = None
        self._twin = self._make_twin()

    def _make_twin(self) -> DataLoader[Any]:
        # A StatefulDataLoader over a map-style dataset is iterated by torch's own machinery: the position is ours.
        kind = DataLoader if has_state(self._loader) else type(self._loader)
        twin: DataLoader[Any] = object.__new__(kind)
        vars(twin).update(vars(self._loader))
        which = "sampler" if self._loader.batch_sampler is None else "batch_sampler"
        vars(twin).update({which: self._indices, "_iterator": None})
        if self._loader.num_workers > 0:
            init = InitWorker(self._loader.worker_init_fn)
            vars(twin).update(dataset=SeededDataset(self._loader.dataset), worker_init_fn=init)
        return twin

    def start(self, place: Place, state: Any) -> Iterator[Any]:
        set_epoch(self._loader, place.epoch + place.entry + place.renewal)
        seed = derive(self._seed, "sampler", self._name, *place.key)
        workers = self._loader.num_workers
        in_flight = workers * (self._loader.prefetch_factor or 0)
        self._pass = Pass(self._sampler, seed, self._generators, skip=place.yielded, state=state, in_flight=in_flight)
        self._indices.current = _seeded(self._pass, self._worker_seed(place)) if workers else _bare(self._pass)
        began = () if self._loader.persistent_workers else place.key  # such workers live longer than a pass
        with Stream(derive(self._seed, "iterator", self._name, self._rank, *began), self._generators):
            return iter(self._twin)

    def _worker_seed(self, place: Place) -> int:
        return derive(self._seed, "workers", self._name, self._rank, *place.key)

    def state(self, place: Place) -> Any:
        return self._pass.state_after(place.yielded) if self._pass is not None else None


def _bare(batches: Pass) -> Iterator[Any]:
    return (indices for _, indices in batches)


def _seeded(batches: Pass, seed: int) -> Iterator[Batch]:
    return (Batch(derive(seed, ordinal), indices) for ordinal, indices in batches)


class _OwnState:
    """Anything with `state_dict` and `load_state_dict`: it knows itself where it is."""

    def __init__(self, name: str, loader: Any, seed: int, rank: int) -> None:
        self._name, self._loader, self._seed, self._rank = name, loader, seed, rank
        self._touched = False

    def start(self, place: Place, state: Any) -> Iterator[Any]:
        self._touched = True
        if state is not None:
            self._loader.load_state_dict(state)
        with Stream(derive(self._seed, "iterator", self._name, self._rank, *place.key)):
            return iter(self._loader)

    def state(self, _place: Place) -> Any:
        return self._loader.state_dict() if self._touched else None


def _source(name: str, loader: Any, seed: int, rank: int) -> _Source:
    if not isinstance(loader, DataLoader):
        if hasattr(loader, "__iter__") and has_state(loader):
            return _OwnState(name, loader, seed, rank)
        raise UsageError(
            f"loader {name!r} is a {type(loader).__qualname__}: neither a DataLoader nor an iterable with state_dict "
            "and load_state_dict, so its position cannot be stored",
            hint="give a torch DataLoader, a torchdata StatefulDataLoader, or add the two methods",
        )
    if isinstance(loader.dataset, IterableDataset) or (has_state(loader) and has_state(loader.dataset)):
        if has_state(loader):
            return _OwnState(name, loader, seed, rank)
        raise UsageError(
            f"loader {name!r} reads an IterableDataset ({type(loader.dataset).__qualname__}) whose position cannot be "
            "known from outside",
            hint="use torchdata's StatefulDataLoader, with state_dict and load_state_dict in the dataset",
        )
    if type(loader).__iter__ is not DataLoader.__iter__ and not has_state(loader):
        raise UsageError(
            f"loader {name!r} is a {type(loader).__qualname__}, which replaces DataLoader.__iter__, so its position "
            "cannot be known",
            hint="use DataLoader itself (persistent_workers=True keeps workers between epochs)",
        )
    if not getattr(loader, "in_order", True):
        raise UsageError(
            f"loader {name!r} has in_order=False, so which batches were used cannot be known",
            hint="drop in_order=False",
        )
    return _Plain(name, loader, seed, rank)
