"""Functions given to `run.on`: one that raises is recorded and costs nothing else."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from holdfast.errors import UsageError
from holdfast.train.records import Records, tell

NAMES = ("before_save", "committed", "save_failed", "restored", "shrink_batch")


@dataclass(frozen=True, slots=True, kw_only=True)
class Occasion:
    """What such a function is called with."""

    name: str
    step: int
    epoch: int
    reason: str = ""  # of the save
    error: str = ""  # why it failed


class Occasions:
    """Who wants to know what."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._called: dict[str, list[Callable[[Occasion], Any]]] = {name: [] for name in NAMES}

    def add(self, name: str, function: Callable[[Occasion], Any]) -> None:
        """Raises UsageError for a name there is not."""
        if name not in self._called:
            raise UsageError(f"run.on({name!r}, …): there is no such occasion", hint=f"one of {', '.join(NAMES)}")
        self._called[name].append(function)

    def call(self, occasion: Occasion, *, only: Callable[[Occasion], Any] | None = None) -> None:
        """Call every function for `occasion`, in the order they were added."""
        for function in self._called[occasion.name] if only is None else [only]:
            self._call_one(function, occasion)

    def _call_one(self, function: Callable[[Occasion], Any], occasion: Occasion) -> None:
        try:
            function(occasion)
        except Exception as error:
            called = getattr(function, "__qualname__", repr(function))
            named = f"{occasion.name}: {called}"
            self._records.event("callback_failed", step=occasion.step, callback=named, message=repr(error))
            tell(f"{called}, called on {occasion.name}, raised; training goes on")
            traceback.print_exception(type(error), error, error.__traceback__)
