"""The iterators a training script runs through: `steps`, `epochs` and `wrap`.

They are objects, not generators, so that a loop left by `break` is told from one that an exception passed through: the
step in progress is completed by the next call, which after an exception never comes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from holdfast.heartbeat import Phase
from holdfast.train.data import Feed
from holdfast.train.session import TURN, Session

_END = object()


class _Pass:
    """One pass over a feed; told to the session when it is dropped before its end."""

    def __init__(self, session: Session, feed: Feed, *, completes: bool, ends: bool = True) -> None:
        self._session, self._feed, self._completes, self._ends = session, feed, completes, ends
        self._batches: Iterator[Any] | None = None

    def __iter__(self) -> Any:
        return self

    def __len__(self) -> int:
        return len(self._feed)

    def _begin(self) -> None:
        self._batches = self._session.begin_pass(self._feed)

    def _take(self) -> Any:
        """The next batch, or _END."""
        assert self._batches is not None
        batch = next(self._batches, _END)
        if batch is _END:
            self._batches = None
            self._session.end_pass(self._feed)
        else:
            self._session.open_step(self._feed)
        return batch

    def __del__(self) -> None:
        if getattr(self, "_batches", None) is not None and not self._session.closed:
            self._session.leave(self._feed, completes=self._completes, ends=self._ends)


class Steps(_Pass):
    """`run.steps(loader)`: one pass, in which every batch is a step."""

    def __init__(self, session: Session, feed: Feed) -> None:
        super().__init__(session, feed, completes=True)
        self._begun = False

    def __next__(self) -> Any:
        self._session.complete_open_step()
        if not self._begun:
            self._begun = True
            self._begin()
        batch = self._take() if self._batches is not None else _END
        if batch is _END:
            raise StopIteration
        return batch


class AllSteps(_Pass):
    """`run.steps(loader, epochs=N)`: passes until N epochs are complete, then the final checkpoint."""

    def __init__(self, session: Session, feed: Feed, epochs: int) -> None:
        super().__init__(session, feed, completes=True, ends=False)
        self._epochs = epochs

    def __next__(self) -> Any:
        session = self._session
        session.complete_open_step()
        while session.epoch < self._epochs or self._batches is not None:
            if self._batches is None:
                session.managed, session.epochs_total = True, self._epochs
                self._begin()
            batch = self._take()
            if batch is not _END:
                return batch
            session.turn_epoch()
        session.managed = False
        session.finish(TURN)
        raise StopIteration

    def __del__(self) -> None:
        super().__del__()
        if not self._session.closed:
            self._session.managed = False


class Epochs:
    """`run.epochs(N)`: the numbers of the epochs still to do; each ends when the next is asked for."""

    def __init__(self, session: Session, epochs: int) -> None:
        self._session, self._epochs, self._handed_out = session, epochs, False

    def __iter__(self) -> Epochs:
        return self

    def __next__(self) -> int:
        session = self._session
        session.settle()
        session.managed, session.epochs_total = True, self._epochs
        if self._handed_out:
            session.turn_epoch()
        self._handed_out = session.epoch < self._epochs
        if not self._handed_out:
            session.managed = False
            session.finish(TURN)
            raise StopIteration
        session.yield_epoch()
        session.enter_phase(Phase.EPOCH_CODE)
        return session.epoch

    def __del__(self) -> None:
        if not self._session.closed:
            self._session.managed = self._session.in_epoch = False


class Wrap(_Pass):
    """`run.wrap(loader)`: one pass whose position is kept; steps are told by `run.tick`."""

    def __init__(self, session: Session, feed: Feed) -> None:
        super().__init__(session, feed, completes=False)
        self._session.settle()
        self._begin()

    def __next__(self) -> Any:
        batch = self._take() if self._batches is not None else _END
        if batch is _END:
            raise StopIteration
        return batch
