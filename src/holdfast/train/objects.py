"""What a script registers with `Run`: taken apart for a checkpoint, and put back in place."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from holdfast.checkpoint.matching import Described, Lenient, match
from holdfast.checkpoint.snapshot import Owned, SlotTensors
from holdfast.checkpoint.state import decode
from holdfast.checkpoint.tensors import EXTRA_STATE, lacks_memory
from holdfast.errors import UsageError
from holdfast.train.indices import has_state

try:
    import numpy as np
except ImportError:
    np = None  # type: ignore[assignment]


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
    named = value.named_parameters(remove_duplicate=False)
    known = {f"{name}/{key}": "trainable" if parameter.requires_grad else "frozen" for key, parameter in named}
    if any(tensor not in known for tensor in tensor_names):
        buffers = {f"{name}/{key}": "frozen" for key, _ in value.named_buffers(remove_duplicate=False)}
        known = {**buffers, **known}
    return {tensor: known.get(tensor, "other") for tensor in tensor_names}


def parameters(objects: Mapping[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter that may carry a gradient, once, under a name that is the same in every process."""
    seen: set[int] = set()
    for name, value in objects.items():
        if isinstance(value, torch.nn.Module):
            named = [(f"{name}/{key}", parameter) for key, parameter in value.named_parameters(remove_duplicate=False)]
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


def load(name: str, value: Any, tree: Any, tensors: SlotTensors, *, lenient: Lenient) -> None:
    """Put a stored object back. Raises StateMismatch.

    A module's tensors go straight from the slot into its own memory; what might keep one gets a copy.
    """
    try:
        if isinstance(value, torch.nn.Module):
            _load_module(name, value, tree, tensors, lenient)
        else:
            place = not isinstance(value, torch.optim.Optimizer)
            stored = decode(tree, Owned(tensors), place=place)
            value.load_state_dict(stored)
            if isinstance(value, torch.optim.Optimizer) and _loads_as_torch_does(value):
                _keep_dtypes(value, stored)
        if isinstance(value, torch.optim.Optimizer):
            vars(value)["_opt_called"] = True  # else schedulers warn that they step before the optimizer ever did
    except StateMismatch:
        raise
    except (ValueError, KeyError, RuntimeError, TypeError) as error:
        raise StateMismatch(
            f"{name} does not take the stored state: {error}", hint="is it the same object as before?"
        ) from error


def _loads_as_torch_does(optimizer: torch.optim.Optimizer) -> bool:
    """Whether nobody has a hand in what becomes of a stored state: who has may want other dtypes."""
    hooks = (name for name in vars(optimizer) if name.startswith("_optimizer_load_state_dict_"))
    own = type(optimizer).load_state_dict is torch.optim.Optimizer.load_state_dict
    return own and not any(vars(optimizer)[name] for name in hooks)


def _keep_dtypes(optimizer: torch.optim.Optimizer, stored: Mapping[str, Any]) -> None:
    """Put back what torch has rounded: it gives state the dtype of its parameter, float32 copies of bfloat16 too."""
    numbers = [number for group in stored["param_groups"] for number in group["params"]]
    owners = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, parameter in zip(numbers, owners, strict=True):
        if number in stored["state"]:
            optimizer.state[parameter] = _as_stored(optimizer.state[parameter], stored["state"][number])


def _as_stored(now: Any, stored: Any) -> Any:
    """`now`, but for tensors of another dtype than `stored`, which may be nested in dictionaries and lists."""
    if isinstance(now, torch.Tensor) and isinstance(stored, torch.Tensor):
        return now if now.dtype == stored.dtype else stored.to(now.device)
    if isinstance(now, dict) and isinstance(stored, dict):
        return type(now)(
            (key, _as_stored(value, stored[key]) if key in stored else value) for key, value in now.items()
        )
    if type(now) in (list, tuple) and type(stored) is type(now) and len(now) == len(stored):
        return type(now)(_as_stored(*pair) for pair in zip(now, stored, strict=True))
    return now


def _load_module(name: str, module: torch.nn.Module, tree: Any, tensors: SlotTensors, lenient: Lenient) -> None:
    here = module.state_dict()
    for key, value in here.items():
        if why := lacks_memory(value):
            raise StateMismatch(
                f"{name}/{key} {why}, so it cannot take its stored values",
                hint="give it memory before Run: module.to_empty(device=…), or a batch through it",
            )
    stored = {str(key): node for key, node in tree["items"]}
    names = _check(name, {key: _stored(node, tensors) for key, node in stored.items()}, here, lenient)
    owned, whole = Owned(tensors), []
    if _keeps_nothing(module):
        whole = [key for key in names if _is_whole(stored[key]) and not key.endswith(EXTRA_STATE)]
    straight = _Straight(tensors, {stored[key]["ref"]: here[names[key]] for key in whole})
    copied = frozenset(whole)
    state = type(here)(
        (names[key], decode(node, straight if key in copied else owned)) for key, node in stored.items() if key in names
    )
    vars(state)["_metadata"] = getattr(here, "_metadata", {})  # versions of the modules' formats, which are those here
    module.load_state_dict(state, strict=len(state) == len(here))


def _keeps_nothing(module: torch.nn.Module) -> bool:
    """Whether loading is torch's own, which copies tensors; other code may keep them, and the slot is used again."""
    return type(module).load_state_dict is torch.nn.Module.load_state_dict and all(
        type(part)._load_from_state_dict.__module__.startswith("torch.nn.modules.")  # noqa: SLF001 (what others override)
        and not part._load_state_dict_pre_hooks  # noqa: SLF001
        for part in module.modules()
    )


class _Straight(Mapping[str, torch.Tensor]):
    """Tensors of a slot; one that is scattered there is put together in the memory that it is meant for."""

    def __init__(self, tensors: SlotTensors, targets: Mapping[str, Any]) -> None:
        self._tensors, self._targets = tensors, targets

    def __getitem__(self, name: str) -> torch.Tensor:
        target = self._targets.get(name)
        if self._tensors.is_in_place(name) or target is None or _described(target) != self._tensors.described(name):
            return self._tensors[name]
        return self._tensors.put(name, target)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _check(name: str, stored: Mapping[str, Described], here: Mapping[str, Any], lenient: Lenient) -> dict[str, str]:
    """Stored key → key here, for what is to be loaded. Raises StateMismatch with all that differs."""
    names, differs = match(stored, {key: _described(v) for key, v in here.items()}, lenient, prefix=f"{name}/")
    if differs:
        only_dtype = differs.dtype and not (differs.missing or differs.unused or differs.shape)
        allow = "allow_dtype=[…]" if only_dtype else f"allow_missing=[…], allow_unused=['{name}/…']"
        raise StateMismatch(
            f"{name} is not the module that was stored: {differs}",
            hint=f"restore the old definition, or allow it with Run({allow})",
        )
    return names


def _stored(node: Any, tensors: SlotTensors) -> Described:
    return tensors.described(node["ref"]) if _is_whole(node) else _described(decode(node, tensors))


def _is_whole(node: Any) -> bool:
    """Whether a node of the tree is a tensor just as it lies in the slot."""
    return isinstance(node, dict) and node["$"] == "tensor" and "view" not in node and "stride" not in node


def _described(value: Any) -> Described:
    if isinstance(value, torch.Tensor):
        return Described(str(value.dtype).removeprefix("torch."), tuple(value.shape))
    return Described(type(value).__name__, None)
