"""`holdfast.Run`: what a training script holds."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

from holdfast.checkpoint.matching import Lenient
from holdfast.errors import LeaseHeld
from holdfast.train import setting as settings
from holdfast.train import weights
from holdfast.train.data import Feed
from holdfast.train.loop import AllSteps, Epochs, Steps, Wrap
from holdfast.train.objects import is_json
from holdfast.train.occasions import Occasion
from holdfast.train.records import tell
from holdfast.train.session import Session

_live: dict[tuple[str, int], Session] = {}  # (run directory, rank) of this process


class Run:
    """A training run that can be killed at any moment and continues, exact to the bit.

    Keyword arguments are the state: anything with `state_dict` and `load_state_dict`, DataLoaders, generators of random
    numbers, and JSON values (which become defaults of `run.state`). None is left out. What a checkpoint holds is put
    back in place by the constructor; random states and gradients in accumulation when the loop is entered.

    dir: the run's folder when there is no supervisor; default `./runs/<script>`. The same folder resumes.
    seed: what sampling and augmentation are derived from; default is torch's initial seed at the first start.
    init: RUN, RUN@STEP, RUN@best or a checkpoint folder (as `holdfast ckpt import` makes one) whose weights the modules
    begin with as long as this run has no checkpoint of its own; everything else starts fresh. `holdfast run --from`
    gives the same from outside.
    allow_missing, allow_unused: shell patterns (`ema`, `model/head.*`) of what the checkpoint may lack or hold in vain;
    what both cover may be of another shape, and stays as it is here. allow_dtype: what may be converted.
    check_snapshot: compare every copy with its source, and raise SnapshotChanged when something wrote to it meanwhile;
    slow, for finding that something. HOLDFAST_CHECK_SNAPSHOT=1 does the same.
    Raises LeaseHeld, NoValidCheckpoint, UsageError, HoldfastError.
    """

    def __init__(
        self,
        *,
        dir: str | os.PathLike[str] | None = None,  # noqa: A002 (the word users write)
        seed: int | None = None,
        init: str | os.PathLike[str] | None = None,
        allow_missing: Sequence[str] = (),
        allow_unused: Sequence[str] = (),
        allow_dtype: Sequence[str] = (),
        check_snapshot: bool = False,
        **state: Any,
    ) -> None:
        setting = settings.find(dir, os.environ)
        setting = replace(setting, check_snapshot=check_snapshot or setting.check_snapshot)
        self._key = str(setting.run.root), setting.rank
        held = _live.get(self._key)
        if held is not None and not held.closed:
            raise LeaseHeld(str(setting.run.root), os.getpid())
        values = {name: value for name, value in state.items() if value is not None and is_json(value)}
        given = {name: value for name, value in state.items() if value is not None and name not in values}
        lenient = Lenient(tuple(allow_missing), tuple(allow_unused), tuple(allow_dtype))
        self._session = _live[self._key] = Session(setting, given, values, seed=seed, lenient=lenient)
        self.state: dict[str, Any] = self._session.content.state
        target = init or os.environ.get("HOLDFAST_INIT")
        if target and not self.resumed:
            self._begin_with(target, lenient)
        if dir is not None and not setting.alone:
            self._session.warn(f"Run(dir={str(dir)!r}) is ignored: the supervisor's run is in {setting.run.root}")

    def _begin_with(self, target: str | os.PathLike[str], lenient: Lenient) -> None:
        objects = self._session.content.objects
        try:
            tell(weights.begin(target, objects, lenient))
        except BaseException:
            self._session.abandon()
            raise

    @property
    def step(self) -> int:
        """Completed steps, over all attempts."""
        return self._session.step

    @property
    def epoch(self) -> int:
        """Completed epochs: the number of the one in progress, from 0."""
        return self._session.epoch

    @property
    def resumed(self) -> bool:
        """Whether the constructor found a checkpoint."""
        return self._session.resumed

    @property
    def should_stop(self) -> bool:
        """A stop was asked for. Loops need not look: `steps` and `tick` leave with 75 once the checkpoint is durable.

        A loop that looks and breaks leaves at the next call to this object: let nothing stand between the two.
        """
        return self._session.should_stop

    def steps(self, loader: Any, *, epochs: int | None = None) -> Steps | AllSteps:
        """Batches of `loader`, each a step, from where the run stands: one pass, or until `epochs` are complete."""
        feed = self._feed(loader)
        return Steps(self._session, feed) if epochs is None else AllSteps(self._session, feed, epochs)

    def epochs(self, count: int) -> Epochs:
        """Epoch numbers from where the run stands up to `count`, for per-epoch code around `run.steps(loader)`.

        Code before the inner loop runs again after a resume, and its effect on registered objects is undone; code
        behind it runs again unless a later boundary was committed.
        """
        return Epochs(self._session, count)

    def wrap(self, loader: Any) -> Wrap:
        """One pass over `loader` whose position is kept; say `run.tick()` after each step."""
        return Wrap(self._session, self._feed(loader))

    def tick(self) -> None:
        """A step of a hand-written loop is complete."""
        self._session.settle()
        self._session.ticking = True
        self._session.complete_step()

    def begin(self) -> None:
        """A hand-written loop without `wrap` starts here: random states and gradients are put back now."""
        self._session.settle()
        self._session.ticking = True  # what is logged from here on is the coming step's
        self._session.take_up()

    def _feed(self, loader: Any) -> Feed:
        self._session.settle()
        return self._session.feed(loader)

    def log(self, **values: Any) -> None:
        """Record numbers of this step; outside one, of the last. Tensors on a GPU are read one step later."""
        self._session.log(values)

    def save(self, reason: str = "run.save") -> None:
        """Save at the end of this step or of this epoch's code; outside loops at once. Returns before it is durable."""
        self._session.ask_save(reason)

    def on(self, occasion: str, function: Callable[[Occasion], Any]) -> None:
        """Call `function` with an Occasion: before_save, committed, save_failed, restored or shrink_batch.

        `restored` is called at once when there is something to tell, since the constructor has restored already.
        """
        self._session.occasions.add(occasion, function)
        if occasion == "restored" and self.resumed:
            self._session.occasions.call(Occasion(name=occasion, step=self.step, epoch=self.epoch), only=function)

    def close(self) -> None:
        """Save what is new, wait until it is durable, and leave. Raises StoreRefused."""
        self._session.close()

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._session.abandon()
