"""Checkpoints as plain torch objects, without a run: `holdfast.load`, `holdfast.load_weights`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from holdfast.checkpoint.collector import at_rest
from holdfast.checkpoint.matching import STRICT, Described, Difference, Lenient, match
from holdfast.checkpoint.tensors import EXTRA_STATE, lacks_memory
from holdfast.errors import HoldfastError, UsageError

_BATCH_BYTES = 256 << 20  # of tensors that cannot be read straight into a module's memory


class WeightsMismatch(UsageError):
    """A checkpoint and the module it was to be loaded into do not belong together."""


class Loaded(NamedTuple):
    """What came of `load_weights`: the step of the checkpoint, and the entries left over because that was allowed."""

    step: int
    missing: tuple[str, ...]
    unused: tuple[str, ...]


def load(
    target: str | os.PathLike[str], *, map_location: str | torch.device = "cpu", names: Iterable[str] | None = None
) -> dict[str, Any]:
    """What was registered with `Run`, by name: `{"model": state_dict, "optimizer": state_dict, …}`. Never pickle.

    target: RUN, RUN@STEP, RUN@best, or a checkpoint folder in place of RUN.
    names: which of the registered objects; all by default. Only what they need is read, and all of that is verified.
    Raises RunNotFound, UsageError, NoValidCheckpoint, Damaged, OSError.
    """
    with _opened(target) as checkpoint:
        from holdfast.checkpoint import rebuild

        return rebuild.objects(checkpoint, names, device=map_location)


def load_weights(
    module: torch.nn.Module,
    target: str | os.PathLike[str],
    *,
    name: str = "model",
    allow_missing: Sequence[str] = (),
    allow_unused: Sequence[str] = (),
    allow_dtype: Sequence[str] = (),
) -> Loaded:
    """Read what was registered as `name` into the memory of `module`, on whatever device that is.

    Names are compared without what DDP, FSDP and torch.compile put before them. Nothing is loaded unless everything
    fits. allow_missing, allow_unused: shell patterns (`model/head.*`) of what one side may have alone; allow_dtype: of
    what is converted to the element type here.
    Raises WeightsMismatch with a list of the differences; Damaged, after which the module may be partly overwritten.
    """
    lenient = Lenient(missing=allow_missing, unused=allow_unused, dtype=allow_dtype)
    with at_rest(), _opened(target) as checkpoint:
        from holdfast.checkpoint import rebuild

        entries = entries_of(rebuild.tree_of(checkpoint, name), name)
        here = module.state_dict()
        _refuse_without_memory(name, here)
        stored = {key: _stored(checkpoint, node) for key, node in entries.items()}
        names, differs = match(stored, {key: _described(v) for key, v in here.items()}, lenient, prefix=f"{name}/")
        if differs:
            raise _mismatch(name, str(checkpoint.info), differs)
        _fill(module, here, checkpoint, {names[key]: node for key, node in entries.items() if key in names})
        there = set(names.values())
        return Loaded(
            checkpoint.info.step, tuple(k for k in here if k not in there), tuple(k for k in entries if k not in names)
        )


def begin(target: str | os.PathLike[str], objects: Mapping[str, Any], lenient: Lenient = STRICT) -> str:
    """Fill each module among `objects` that `target` holds under the same name; returns a sentence on what was done.

    Raises UsageError when it holds none of them, and as `load_weights`.
    """
    with _opened(target) as checkpoint:
        from holdfast.checkpoint import rebuild

        held = rebuild.registered(checkpoint)
        place = f"{checkpoint.root}@{checkpoint.info.term}-{checkpoint.info.sequence}"
    modules = {name: value for name, value in objects.items() if isinstance(value, torch.nn.Module) and name in held}
    if not modules:
        raise UsageError(
            f"{target} holds {', '.join(held) or 'nothing'}, and Run was given no module of such a name",
            hint=f"Run({next(iter(held), 'model')}=…)",
        )
    for name, module in modules.items():
        allow = {f"allow_{what}": patterns for what, patterns in lenient._asdict().items()}
        loaded = load_weights(module, place, name=name, **allow)
    fresh = [name for name in objects if name not in modules]
    return (
        f"{', '.join(modules)} begins with the weights of {target} (step {loaded.step})"
        f"{'; fresh: ' + ', '.join(fresh) if fresh else ''}"
    )


@contextlib.contextmanager
def _opened(target: str | os.PathLike[str]) -> Iterator[Any]:
    """The checkpoint meant, open. Raises HoldfastError where the interpreter lacks what verifying needs."""
    try:
        from holdfast.checkpoint import reading
        from holdfast.checkpoint import target as targets
    except ModuleNotFoundError as error:
        raise HoldfastError(
            f"reading a checkpoint here needs {error.name}, which this Python lacks", hint=f"pip install {error.name}"
        ) from error
    meant = targets.parse(os.fspath(target))
    with reading.open_checkpoint(meant.root, targets.find(meant)) as checkpoint:
        yield checkpoint


def entries_of(tree: Any, name: str) -> dict[str, Any]:
    """The entries of a stored state_dict, key → node. Raises WeightsMismatch when it is none."""
    if not isinstance(tree, dict) or tree.get("$") not in ("dict", "odict"):
        raise WeightsMismatch(f"what is stored as {name!r} is no state_dict of a module")
    strange = next((key for key, _ in tree["items"] if not isinstance(key, str)), None)
    if strange is not None:
        raise WeightsMismatch(f"what is stored as {name!r} has the key {str(strange)[:80]}, which no state_dict has")
    return dict(tree["items"])


def _described(value: Any) -> Described:
    if not isinstance(value, torch.Tensor):
        return Described(type(value).__name__, None)
    return Described(str(value.dtype).removeprefix("torch."), tuple(value.shape))


def _stored(checkpoint: Any, node: Any) -> Described:
    from holdfast.checkpoint import rebuild

    if rebuild.is_whole(node) and node.get("ref") in checkpoint.tensors:
        info = checkpoint.tensors[node["ref"]]
        return Described(info.dtype, info.shape)
    return _described(rebuild.rebuild(checkpoint, {"entry": node})["entry"])


def _mismatch(name: str, said: str, differs: Difference) -> WeightsMismatch:
    only_dtype = differs.dtype and not (differs.missing or differs.unused or differs.shape)
    allow = f"allow_dtype=['{name}/…']" if only_dtype else f"allow_missing=[…], allow_unused=['{name}/…']"
    return WeightsMismatch(f"{said} does not fit {name}: {differs}", hint=f"build the module as it was, or {allow}")


def _refuse_without_memory(name: str, here: Mapping[str, Any]) -> None:
    for key, value in here.items():
        why = lacks_memory(value)
        if why:
            raise WeightsMismatch(
                f"{name}/{key} {why}, so it cannot take weights",
                hint="module.to_empty(device=…), or a batch through it, gives it memory",
            )


def _fill(module: torch.nn.Module, here: Mapping[str, Any], checkpoint: Any, wanted: Mapping[str, Any]) -> None:
    """Straight into memory where it lies plain on the CPU; the rest in batches, by a copy."""
    from holdfast.checkpoint import rebuild

    if not _shows_itself(module, here):
        _give(module, rebuild.rebuild(checkpoint, wanted), strict=len(wanted) == len(here))
        return
    plain = {key: node for key, node in wanted.items() if rebuild.is_whole(node) and not _is_extra(key)}
    infos = {key: checkpoint.tensors[node["ref"]] for key, node in plain.items()}
    straight = {key for key in plain if _is_plain_memory(here[key]) and _described(here[key]).dtype == infos[key].dtype}
    checkpoint.read([rebuild.into(infos[key], here[key]) for key in straight])
    with torch.no_grad():
        for batch in _batches([key for key in plain if key not in straight], infos):
            held = rebuild.read(checkpoint, {infos[key].name for key in batch})
            for key in batch:
                here[key].copy_(held[infos[key].name])
    others = {key: node for key, node in wanted.items() if key not in plain}
    if others:
        _give(module, rebuild.rebuild(checkpoint, others), strict=False)


def _shows_itself(module: torch.nn.Module, here: Mapping[str, Any]) -> bool:
    """Whether the tensors of `state_dict()` are the module's own memory, and not copies that a hook of it made."""
    own = [*module.parameters(), *module.buffers()]
    places = {(tensor.device, tensor.data_ptr()) for tensor in own}
    shown = (value for key, value in here.items() if isinstance(value, torch.Tensor) and not _is_extra(key))
    return all((tensor.device, tensor.data_ptr()) in places for tensor in shown if tensor.numel())


def _is_extra(key: str) -> bool:
    return key.endswith(EXTRA_STATE)


def _give(module: torch.nn.Module, values: dict[str, Any], *, strict: bool) -> None:
    """Let the module load `values` itself. Raises WeightsMismatch for what it does not take."""
    try:
        refused = module.load_state_dict(values, strict=strict)
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        raise WeightsMismatch(f"the module does not take the weights: {error}") from error
    unexpected = getattr(refused, "unexpected_keys", None)
    if unexpected:
        raise WeightsMismatch(f"the module shows {unexpected[0]!r} in its state_dict and does not load it")


def _is_plain_memory(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()


def _batches(keys: list[str], infos: Mapping[str, Any]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for key in keys:
        if batch and size + infos[key].size_bytes > _BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(key)
        size += infos[key].size_bytes
    if batch:
        yield batch
