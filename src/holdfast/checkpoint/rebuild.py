"""What a checkpoint holds, as live objects: torch tensors by name, and the registered states they belong to."""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeAlias

import torch

from holdfast.checkpoint import boxes
from holdfast.checkpoint.contents import TensorInfo
from holdfast.checkpoint.reading import Checkpoint, Wanted
from holdfast.checkpoint.state import UnreadableState, decode, dtype_named
from holdfast.errors import HoldfastError, StoreRefused, UsageError
from holdfast.units import show_size

Allocate: TypeAlias = Callable[[Sequence[TensorInfo]], dict[str, torch.Tensor]]
_APART = 64  # bytes, as torch aligns what it allocates


def registered(checkpoint: Checkpoint) -> dict[str, Any]:
    """The typed tree of each registered object, by its name. Raises UnreadableState, UsageError for saved files."""
    tree = checkpoint.state()
    items = tree.get("items") if tree.get("$") == "dict" else None
    if not isinstance(items, list) or not all(isinstance(i, list) and len(i) == 2 for i in items):
        raise UnreadableState("the checkpoint's state is no dictionary")
    found = {name: node for name, node in items if isinstance(name, str) and not name.startswith("@")}
    if not found and any(not name.startswith("@") for name in checkpoint.tensors):
        raise UsageError(
            f"{checkpoint.info} holds files as they were saved by their URL, and no state by name",
            hint="open them as fsspec does: holdfast:///FOLDER/NAME",
        )
    return found


def tree_of(checkpoint: Checkpoint, name: str) -> Any:
    """The typed tree of one registered object. Raises UsageError when there is none of that name."""
    held = registered(checkpoint)
    if name not in held:
        raise UsageError(f"{checkpoint.info} holds no {name!r}", hint=f"it holds {', '.join(held) or 'nothing'}")
    return held[name]


def in_memory(infos: Sequence[TensorInfo]) -> dict[str, torch.Tensor]:
    """Tensors to read into, each in memory of its own. Raises HoldfastError where the machine has less."""
    _check_room(sum(info.size_bytes for info in infos))
    return {info.name: torch.empty(info.shape, dtype=dtype_named(info.dtype)) for info in infos}


def in_file(folder: Path) -> Allocate:
    """Tensors to read into whose memory is a file without a name in `folder`: the kernel takes back what it needs.

    They take memory from nobody then, and room of the disk for as long as they live. Raises StoreRefused.
    """

    def allocate(infos: Sequence[TensorInfo]) -> dict[str, torch.Tensor]:
        starts = list(accumulate((-(-info.size_bytes // _APART) * _APART for info in infos), initial=0))
        with tempfile.TemporaryFile(dir=folder) as file:
            try:
                os.posix_fallocate(file.fileno(), 0, starts[-1] + 1)  # a hole would be a SIGBUS on a full disk
            except OSError as error:
                raise StoreRefused(
                    f"{folder} has no room for {show_size(starts[-1])} to gather the state in: {error.strerror}",
                    hint="free space there: twice the size of what is written is needed meanwhile",
                ) from error
            memory = mmap.mmap(file.fileno(), 0)
        return {info.name: _tensor_at(memory, start, info) for info, start in zip(infos, starts, strict=False)}

    return allocate


def _tensor_at(memory: mmap.mmap, start: int, info: TensorInfo) -> torch.Tensor:
    dtype = dtype_named(info.dtype)
    if not info.size_bytes:
        return torch.empty(info.shape, dtype=dtype)
    flat = torch.frombuffer(memory, dtype=torch.uint8, count=info.size_bytes, offset=start)
    return flat.view(dtype).view(info.shape)


def objects(
    checkpoint: Checkpoint,
    names: Iterable[str] | None = None,
    *,
    device: str | torch.device = "cpu",
    allocate: Allocate = in_memory,
) -> dict[str, Any]:
    """The states of registered objects, of all by default. Tensors that were one stay one.

    allocate: where the tensors go that are read. Raises UsageError for a name that is not there, Damaged,
    UnreadableState, OSError.
    """
    wanted = list(registered(checkpoint)) if names is None else list(names)
    trees = {name: tree_of(checkpoint, name) for name in wanted}
    return rebuild(checkpoint, trees, device=device, allocate=allocate)


def rebuild(
    checkpoint: Checkpoint,
    trees: Mapping[str, Any],
    *,
    device: str | torch.device = "cpu",
    allocate: Allocate = in_memory,
) -> dict[str, Any]:
    """Objects of several trees of `checkpoint`, their tensors contiguous and read at once."""
    refs = {ref: tag for tree in trees.values() for ref, tag in references(tree)}
    held = read(checkpoint, refs, allocate)
    on_cpu = torch.device(device).type == "cpu"
    placed = {ref: t if on_cpu or refs[ref] == "nparray" else t.to(device) for ref, t in held.items()}
    try:
        tree = {"$": "dict", "items": [[name, _without_strides(node)] for name, node in trees.items()]}
        made: dict[str, Any] = decode(tree, placed)
    except (RuntimeError, OverflowError, AttributeError) as error:  # RecursionError is a RuntimeError
        raise UnreadableState(f"the state of {checkpoint.info} cannot be rebuilt: {str(error)[:200]}") from error
    return made


def _without_strides(node: Any) -> Any:
    """The same tree, whose tensors lie in C order: how a module laid them out is the module's affair."""
    if isinstance(node, list):
        return [_without_strides(member) for member in node]
    if not isinstance(node, dict):
        return node
    dropped = "stride" if node.get("$") == "tensor" else ""
    return {key: _without_strides(value) for key, value in node.items() if key != dropped}


def is_whole(node: Any) -> bool:
    """Whether a node of a tree is a tensor just as it is stored, but for the order of its memory."""
    return isinstance(node, dict) and node.get("$") == "tensor" and "view" not in node


def references(tree: Any) -> Iterator[tuple[str, str]]:
    """(name, kind of node) of every tensor a tree names."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            if isinstance(node.get("ref"), str):
                yield node["ref"], str(node.get("$"))
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node


def read(checkpoint: Checkpoint, names: Iterable[str], allocate: Allocate = in_memory) -> dict[str, torch.Tensor]:
    """Tensors by name, on the CPU. Raises UnreadableState, Damaged, OSError."""
    known = checkpoint.tensors
    infos = []
    for name in names:
        if name not in known:
            raise UnreadableState(f"stored state names a tensor {name[:100]!r} that the checkpoint does not hold")
        infos.append(known[name])
    made = allocate(infos)
    checkpoint.read([into(info, made[info.name]) for info in infos])
    return made


def into(info: TensorInfo, tensor: torch.Tensor) -> Wanted:
    """All of a stored tensor into the memory of `tensor`: contiguous, on the CPU, kept alive by the caller."""
    return Wanted(info, boxes.whole(info.shape), memory_of(tensor))


def memory_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, writable; the tensor must outlive the view."""
    size = math.prod(tensor.shape) * tensor.dtype.itemsize
    if not size:
        return memoryview(bytearray())
    return memoryview((ctypes.c_ubyte * size).from_address(tensor.data_ptr())).cast("B")


def _check_room(size_bytes: int) -> None:
    """A checkpoint may name one chunk a million times: what it says it needs has to fit the machine."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if size_bytes > machine:
        raise HoldfastError(
            f"the tensors asked for need {show_size(size_bytes)}, this machine has {show_size(machine)}",
            hint="ask for fewer names",
        )
