"""What a checkpoint of a training process consists of, and how it is put back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from holdfast.checkpoint.matching import Lenient, allowed
from holdfast.checkpoint.snapshot import Owned, Stored
from holdfast.checkpoint.state import UnreadableState, decode
from holdfast.train import objects, rng

VERSION = 1
RUN, RNG, GRADIENTS, FEEDS = "@run", "@rng", "@gradients", "@loaders"  # a registered name is an identifier: no clash


class Content:
    """The registered objects and `run.state`, as values that `checkpoint.state` can hold."""

    def __init__(self, registered: Mapping[str, Any], lenient: Lenient) -> None:
        """Raises UsageError for what has no state_dict."""
        self.objects = {name: objects.adapted(name, value) for name, value in registered.items()}
        self._lenient = lenient
        self.state: dict[str, Any] = {}

    def values(self, run: Mapping[str, Any], feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Everything: `run` is counters and place, `feeds` what each loader says."""
        return {
            **self._own(run),
            GRADIENTS: objects.gradients(self.objects),
            RNG: rng.capture(),
            FEEDS: dict(feeds),
        }

    def registered_values(self) -> dict[str, Any]:
        """Only what user code before an inner loop may have changed."""
        return self._own({})

    def state_dicts(self) -> dict[str, Any]:
        """What the registered objects say of themselves."""
        return {name: value.state_dict() for name, value in self.objects.items()}

    def _own(self, run: Mapping[str, Any]) -> dict[str, Any]:
        return {**self.state_dicts(), RUN: {"version": VERSION, **run, "state": self.state}}

    def kinds(self, tensor_names: list[str]) -> dict[str, str]:
        """The kind of each tensor of `values`."""
        by_object: dict[str, list[str]] = {}
        for name in tensor_names:
            by_object.setdefault(name.split("/", 1)[0], []).append(name)
        found: dict[str, str] = {}
        for name, names in by_object.items():
            found.update(objects.kinds(name, self.objects.get(name), names))
        return found

    def load(self, stored: Stored) -> dict[str, Any]:
        """Put every object and `state` back in place; returns the `run` part. Raises StateMismatch, UnreadableState."""
        parts = _parts(stored)
        self._check_names([name for name in parts if not name.startswith("@")])
        for name, value in self.objects.items():
            if name in parts:
                objects.load(name, value, parts[name], stored.tensors, lenient=self._lenient)
        run: dict[str, Any] = decode(parts[RUN], Owned(stored.tensors))
        if run["version"] != VERSION:
            raise UnreadableState(
                f"the checkpoint's run part has version {run['version']}", hint="use a newer holdfast"
            )
        self.state.clear()
        self.state.update(run["state"])
        return run

    def _check_names(self, stored: Sequence[str]) -> None:
        unused = [name for name in stored if name not in self.objects and not allowed(name, self._lenient.unused)]
        if unused:
            raise objects.StateMismatch(
                f"the checkpoint holds {', '.join(map(repr, unused))}, which Run was not given",
                hint=f"Run({unused[0]}=…), or leave it behind with Run(allow_unused=[{unused[0]!r}])",
            )
        missing = [name for name in self.objects if name not in stored and not allowed(name, self._lenient.missing)]
        if missing:
            raise objects.StateMismatch(
                f"Run was given {', '.join(map(repr, missing))}, which the checkpoint does not hold",
                hint=f"begin with it as it is by Run(allow_missing=[{missing[0]!r}])",
            )


def part(stored: Stored, name: str) -> Any:
    """One of RNG, GRADIENTS, FEEDS, in memory of its own."""
    return decode(_parts(stored)[name], Owned(stored.tensors))


def _parts(stored: Stored) -> dict[str, Any]:
    tree = stored.table["state"]
    if not isinstance(tree, dict) or tree.get("$") != "dict":
        raise UnreadableState("the checkpoint's state is no dictionary")
    return dict(tree["items"])
