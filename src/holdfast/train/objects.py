"""What a script registers with `Run`: taken apart for a checkpoint, and put back in place."""

from __future__ import annotations

import fnmatch
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from holdfast.checkpoint.state import decode
from holdfast.errors import UsageError
from holdfast.train.indices import has_state

try:
    import numpy as np
except ImportError:
    np = None  # type: ignore[assignment]

_SHOWN = 10


class Lenient(NamedTuple):
    """Shell patterns (`ema`, `model/head.*`) of what may differ between a checkpoint and what `Run` was given."""

    missing: Sequence[str] = ()  # not in the checkpoint
    unused: Sequence[str] = ()  # in the checkpoint alone


class StateMismatch(UsageError):
    """A checkpoint and the objects given to `Run` do not belong together."""


class _Generator:
    """state_dict for the generators of torch, NumPy and Python."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def state_dict(self) -> dict[str, Any]:
        if isinstance(self.inner, torch.Generator):
            return {"state": self.inner.get_state()}
        if isinstance(self.inner, random.Random):
            return {"state": self.inner.getstate()}
        return {"state": self.inner.bit_generator.state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if isinstance(self.inner, torch.Generator):
            self.inner.set_state(state["state"])
        elif isinstance(self.inner, random.Random):
            self.inner.setstate(state["state"])
        else:
            self.inner.bit_generator.state = state["state"]


def adapted(name: str, value: Any) -> Any:
    """`value` as something with state_dict and load_state_dict. Raises UsageError when it is no such thing."""
    if has_state(value):
        return value
    if isinstance(value, (torch.Generator, random.Random)) or (
        np is not None and isinstance(value, np.random.Generator)
    ):
        return _Generator(value)
    raise UsageError(
        f"Run({name}=…) is a {type(value).__module__}.{type(value).__qualname__}, which has no state_dict and "
        "load_state_dict and is no JSON value",
        hint="add the two methods, or keep what matters in run.state",
    )


def is_json(value: Any) -> bool:
    """Whether `run.state` may hold it."""
    try:
        json.dumps(value, allow_nan=True)
    except (TypeError, ValueError):
        return False
    return True


def kinds(name: str, value: Any, tensor_names: Sequence[str]) -> dict[str, str]:
    """The kind of each of the object's stored tensors: frozen, trainable, optimizer or other."""
    if isinstance(value, torch.optim.Optimizer):
        return dict.fromkeys(tensor_names, "optimizer")
    if not isinstance(value, torch.nn.Module):
        return dict.fromkeys(tensor_names, "other")
    known = {f"{name}/{key}": "frozen" for key, _ in value.named_buffers(remove_duplicate=False)}
    for key, parameter in value.named_parameters(remove_duplicate=False):
        known[f"{name}/{key}"] = "trainable" if parameter.requires_grad else "frozen"
    return {tensor: known.get(tensor, "other") for tensor in tensor_names}


def parameters(objects: Mapping[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter that may carry a gradient, once, under a name that is the same in every process."""
    seen: set[int] = set()
    for name, value in objects.items():
        if isinstance(value, torch.nn.Module):
            named = [(f"{name}/{key}", parameter) for key, parameter in value.named_parameters()]
        elif isinstance(value, torch.optim.Optimizer):
            groups = enumerate(value.param_groups)
            named = [(f"{name}/{g}/{i}", p) for g, group in groups for i, p in enumerate(group["params"])]
        else:
            continue
        for key, parameter in named:
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield key, parameter


def gradients(objects: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Gradients in accumulation: those that nobody has cleared at the step boundary."""
    return {key: parameter.grad for key, parameter in parameters(objects) if parameter.grad is not None}


def put_gradients(objects: Mapping[str, Any], stored: Mapping[str, torch.Tensor]) -> None:
    """Give every parameter its stored gradient, or none."""
    for key, parameter in parameters(objects):
        found = stored.get(key)
        parameter.grad = None if found is None else found.to(parameter.device, copy=True)


def load(
    name: str, value: Any, tree: Any, tensors: Mapping[str, torch.Tensor], *, views: frozenset[str], lenient: Lenient
) -> None:
    """Put a stored object back. `views` are tensors whose memory will change: what could keep one gets a copy.

    Raises StateMismatch.
    """
    copies = isinstance(value, torch.nn.Module) and type(value).load_state_dict is torch.nn.Module.load_state_dict
    held = (
        tensors
        if copies
        else {key: t.clone() if key in views else t for key, t in tensors.items() if _belongs(key, name)}
    )
    place = not isinstance(value, (torch.nn.Module, torch.optim.Optimizer))
    state = decode(tree, held, place=place)
    try:
        if isinstance(value, torch.nn.Module):
            _load_module(name, value, state, lenient)
        else:
            value.load_state_dict(state)
        if isinstance(value, torch.optim.Optimizer):
            vars(value)["_opt_called"] = True  # else schedulers warn that they step before the optimizer ever did
    except StateMismatch:
        raise
    except (ValueError, KeyError, RuntimeError, TypeError) as error:
        raise StateMismatch(
            f"{name} does not take the stored state: {error}", hint="is it the same object as before?"
        ) from error


def _belongs(key: str, name: str) -> bool:
    return key.startswith(f"{name}/")


def _load_module(name: str, module: torch.nn.Module, state: dict[str, Any], lenient: Lenient) -> None:
    here = module.state_dict()
    lacking = [key for key in here if key not in state and not allowed(f"{name}/{key}", lenient.missing)]
    left = [key for key in state if key not in here and not allowed(f"{name}/{key}", lenient.unused)]
    missing = [f"{key} {_shape(here[key])}" for key in lacking]
    unused = [f"{key} {_shape(state[key])}" for key in left]
    other = [
        f"{key} {_shape(state[key])} instead of {_shape(here[key])}"
        for key in here
        if key in state and _shape(state[key]) != _shape(here[key])
    ]
    problems = [("not in the checkpoint", missing), ("only in the checkpoint", unused), ("of another shape", other)]
    said = "; ".join(f"{what}: {_first(names)}" for what, names in problems if names)
    if said:
        raise StateMismatch(
            f"{name} is not the module that was stored: {said}",
            hint=f"restore the old definition, or allow it with Run(allow_missing=[…], allow_unused=['{name}/…'])",
        )
    module.load_state_dict({key: state[key] for key in state if key in here}, strict=all(key in state for key in here))


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, torch.Tensor) else type(value).__name__


def _first(names: Sequence[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def allowed(name: str, patterns: Sequence[str]) -> bool:
    """Whether one of the shell patterns covers `name`."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
