"""Storage for `torch.distributed.checkpoint`: tensors in boxes, everything else as typed JSON, no pickle anywhere.

    dcp.save(state, storage_writer=HoldfastWriter("/data/ckpts", "step-100"))
    dcp.load(state, storage_reader=HoldfastReader("/data/ckpts", "step-100"), planner=HoldfastLoadPlanner())

Each rank writes a part and tells the coordinator, by DCP's own collective, which one: so a checkpoint is bound to the
parts of one save, whatever else lies about. Where a tensor is cut depends on its place in the global tensor only, so
that shards that have not changed are not written again, however they are sharded now.
"""

from __future__ import annotations

import io
import math
import mmap
import os
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadItemType,
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    SavePlanner,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from holdfast.checkpoint import boxes, pack, reading, state
from holdfast.checkpoint.boxes import Box
from holdfast.checkpoint.canonical import Damaged
from holdfast.checkpoint.retention import LEAST
from holdfast.checkpoint.slots import align
from holdfast.checkpoint.snapshot import CHUNK_BYTES, ROW_BYTES, SMALL_BYTES, TENSOR_ALIGN
from holdfast.errors import UsageError
from holdfast.integrations import catalog, parts, places, publishing
from holdfast.integrations.catalog import TENSORS, Entry
from holdfast.integrations.parts import Part
from holdfast.integrations.publishing import Share, Torn

__all__ = ["HoldfastLoadPlanner", "HoldfastReader", "HoldfastWriter"]

_AT_ONCE_BYTES = 512 << 20  # of tensors on other devices, read into memory of our own first


class _Location:
    """Which checkpoint of which folder."""

    def __init__(self, root: str | os.PathLike[str], name: str | None) -> None:
        self._root, self._name = _path(root), name

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """checkpoint_id: a name in the folder, or the path or `holdfast://` URL of folder and name."""
        if checkpoint_id is None:
            return
        said = os.fspath(checkpoint_id)
        if "/" in said:
            self._root, self._name = _path(said).parent, _path(said).name
        else:
            self._name = said

    @property
    def checkpoint_id(self) -> str:
        """Folder and name, for DCP's log."""
        return f"{self._root}/{self._name}"

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether `reset` takes it."""
        return "://" not in os.fspath(checkpoint_id) or os.fspath(checkpoint_id).startswith("holdfast:///")

    def _named(self) -> str:
        if self._name is None:
            raise UsageError(f"which checkpoint of {self._root} is not said", hint="give name=… or checkpoint_id=…")
        return places.name_in(self._root, self._root / self._name)


def _path(said: str | os.PathLike[str]) -> Path:
    return Path(os.path.abspath(os.fspath(said).removeprefix("holdfast://")))  # noqa: PTH100 (links stay links)


class HoldfastWriter(_Location, StorageWriter):
    """Saves to the checkpoint folder `root` (path or URL). Picklable, so that DCP's background process can have it."""

    def __init__(self, root: str | os.PathLike[str], name: str | None = None, *, keep_last: int | None = None) -> None:
        """keep_last: after each save, remove all but the newest so many (two at least) that such writers made here."""
        super().__init__(root, name)
        self._keep_last = keep_last

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Raises UsageError for a save without collectives, in which nothing binds the ranks together."""
        if not kwargs.get("use_collectives", True):
            raise UsageError("without collectives nothing binds the ranks of a save together", hint="leave them on")

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """As it is. Raises UsageError when the folder holds other files."""
        self._named()
        if places.make(self._root) != self._root:
            raise UsageError(f"{self._root} lies in another checkpoint folder", hint="name that one, or one outside")
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """As they are."""
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """This rank's part, durable and read back. Raises CannotStore, OSError."""
        done: Future[list[WriteResult]] = Future()
        done.set_result(self._write(plan.items, planner) if plan.items else [])
        return done

    def _write(self, items: Sequence[WriteItem], planner: SavePlanner) -> list[WriteResult]:
        name = self._named()
        parts.release(self._root)
        values: dict[str, Any] = {}
        results = []
        with Part(self._root, name, is_shared=True) as part:
            cutter = _Cutter(part)
            for item in items:
                size = _add_value(cutter, item, planner, values) if _is_value(item) else _add(cutter, item, planner)
                results.append(WriteResult(index=item.index, size_in_bytes=size, storage_data=part.folder.name))
            cutter.finish()
            part.seal({"values": values})
        return results

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Commit what the ranks have written. On the coordinator only. Raises as `publishing.publish`."""
        name = self._named()
        shares = [_share(self._root, name, written) for written in results]
        values = {fqn: tree for share in shares for fqn, tree in share.table.get("values", {}).items()}
        shares[0].table.update(dcp=_described(metadata), state=_tree(metadata, values))
        publishing.publish(self._root, name, TENSORS, shares)
        parts.release(self._root)
        metadata.storage_data = {one.index: one.storage_data for written in results for one in written}
        if self._keep_last is not None:
            self._retain(max(self._keep_last, LEAST))

    def _retain(self, keep: int) -> None:
        ours = [entry for entry in catalog.of(self._root).entries().values() if entry.kind == TENSORS]
        publishing.remove(self._root, sorted(ours, key=lambda entry: entry.info.position)[:-keep])


def _share(root: Path, name: str, written: list[WriteResult]) -> Share:
    ids = {one.storage_data for one in written}
    sealed = [parts.read(parts.within(root, name) / one) for one in sorted(ids)]
    whole = [one for one in sealed if one is not None]
    if len(whole) != len(sealed):
        raise Torn(f"a rank's part of {name!r} was removed before it could be committed", hint="save again")
    return Share(whole, {"values": {fqn: tree for one in whole for fqn, tree in one.about["values"].items()}})


def _is_value(item: WriteItem) -> bool:
    return item.type == WriteItemType.BYTE_IO


def _add_value(cutter: _Cutter, item: WriteItem, planner: SavePlanner, values: dict[str, Any]) -> int:
    """What is no tensor, as typed JSON; tensors inside of it become tensors of the checkpoint."""
    if not hasattr(planner, "lookup_object"):
        raise UsageError(f"{type(planner).__name__} hands out pickles only", hint="derive it from DefaultSavePlanner")
    encoded = state.encode({item.index.fqn: planner.lookup_object(item.index)})
    for name, tensor in encoded.tensors.items():
        cutter.add(name, tensor, Box((0,) * tensor.dim(), tuple(tensor.shape)), tuple(tensor.shape), "other")
    values[item.index.fqn] = encoded.tree["items"][0][1]
    return 0


def _add(cutter: _Cutter, item: WriteItem, planner: SavePlanner) -> int:
    data, tensor = item.tensor_data, planner.resolve_data(item)
    if data is None or not isinstance(tensor, torch.Tensor):
        raise UsageError(f"{item.index.fqn} is planned as a tensor and is a {type(tensor).__name__}")
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.dtype != data.properties.dtype:
        raise UsageError(f"{item.index.fqn} is a {tensor.layout} tensor of {tensor.dtype}", hint="make it dense")
    box = Box(tuple(data.chunk.offsets), tuple(data.chunk.sizes))
    return cutter.add(item.index.fqn, tensor, box, tuple(data.size), _kind(item))


def _kind(item: WriteItem) -> str:
    if item.index.fqn.split(".")[0].startswith("optim"):
        return "optimizer"
    return "trainable" if item.tensor_data is not None and item.tensor_data.properties.requires_grad else "other"


@dataclass(slots=True)
class _Shared:
    """A chunk that still takes small tensors."""

    memory: memoryview
    end: int
    tensors: list[dict[str, Any]]


class _Cutter:
    """Cuts tensors into chunks: large ones on rows of the global tensor, small ones together."""

    def __init__(self, part: Part) -> None:
        self._part = part
        self._shared: dict[str, _Shared] = {}

    def add(self, name: str, tensor: torch.Tensor, box: Box, shape: tuple[int, ...], kind: str) -> int:
        """The box `box` of the tensor of global `shape`; returns its bytes."""
        plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
        if tuple(plain.shape) != box.shape:
            raise UsageError(f"{name} is planned with shape {box.shape} and has {tuple(plain.shape)}")
        raw, item = bytes_of(plain), plain.element_size()
        row = {"name": name, "dtype": str(plain.dtype).removeprefix("torch."), "global_shape": list(shape)}
        if raw.nbytes < SMALL_BYTES:
            self._share(raw, {**row, "index": list(box.index), "shape": list(box.shape)}, kind)
            return raw.nbytes
        at = 0
        for piece in boxes.cut(box, shape, item, most_bytes=CHUNK_BYTES, row_bytes=ROW_BYTES):
            size = piece.count * item
            placed = {**row, "index": list(piece.index), "shape": list(piece.shape), "offset": 0, "bytes": size}
            self._part.add(pack.padded(raw[at : at + size]), size, kind=kind, tensors=[placed])
            at += size
        return raw.nbytes

    def _share(self, raw: memoryview, row: dict[str, Any], kind: str) -> None:
        shared = self._shared.get(kind)
        if shared is not None and shared.end + raw.nbytes > CHUNK_BYTES:
            self._flush(kind)
            shared = None
        if shared is None:
            shared = self._shared[kind] = _Shared(memoryview(mmap.mmap(-1, CHUNK_BYTES)), 0, [])
        shared.memory[shared.end : shared.end + raw.nbytes] = raw
        shared.tensors.append({**row, "offset": shared.end, "bytes": raw.nbytes})
        shared.end = align(shared.end + raw.nbytes, TENSOR_ALIGN)

    def _flush(self, kind: str) -> None:
        shared = self._shared.pop(kind)
        size = max(shared.tensors[-1]["offset"] + shared.tensors[-1]["bytes"], TENSOR_ALIGN)
        self._part.add(shared.memory[: align(size)], size, kind=kind, tensors=shared.tensors)

    def finish(self) -> None:
        """Put away what waits for company."""
        for kind in list(self._shared):
            self._flush(kind)


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _described(metadata: Metadata) -> dict[str, Any]:
    """What DCP wants back, as JSON."""
    entries: dict[str, Any] = {}
    for fqn, one in metadata.state_dict_metadata.items():
        if isinstance(one, BytesStorageMetadata):
            entries[fqn] = None
            continue
        entries[fqn] = {
            "dtype": str(one.properties.dtype).removeprefix("torch."),
            "requires_grad": one.properties.requires_grad,
            "size": list(one.size),
            "shards": [[list(chunk.offsets), list(chunk.sizes)] for chunk in one.chunks],
        }
    return {"entries": entries, "planner_data": state.encode({"planner_data": metadata.planner_data}).tree}


def _metadata(described: dict[str, Any]) -> Metadata:
    """The inverse. Raises KeyError, TypeError and the like, UnreadableState."""
    found: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
    for fqn, one in described["entries"].items():
        if one is None:
            found[fqn] = BytesStorageMetadata()
            continue
        shards = [ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)) for offsets, sizes in one["shards"]]
        properties = TensorProperties(dtype=state.dtype_named(one["dtype"]), requires_grad=one["requires_grad"])
        found[fqn] = TensorStorageMetadata(properties, torch.Size(one["size"]), shards)
    return Metadata(found, planner_data=state.decode(described["planner_data"], {})["planner_data"])


def _tree(metadata: Metadata, values: Mapping[str, Any]) -> dict[str, Any]:
    """The whole state as a typed tree, for whoever reads the checkpoint without DCP; lists become dictionaries."""
    nested: dict[Any, Any] = {}
    for fqn in metadata.state_dict_metadata:
        node = values.get(fqn, {"$": "tensor", "ref": fqn})
        *above, last = _keys(metadata, fqn)
        within = nested
        for key in above:
            within = within.setdefault(key, {})
        within[last] = _Leaf(node)
    return _typed(nested)


@dataclass(frozen=True, slots=True)
class _Leaf:
    node: Any


def _typed(nested: Mapping[Any, Any]) -> dict[str, Any]:
    items = [[key, one.node if isinstance(one, _Leaf) else _typed(one)] for key, one in nested.items()]
    return {"$": "dict", "items": items}


def _keys(metadata: Metadata, fqn: str) -> Sequence[Any]:
    """The keys that lead to a value in the state dict."""
    mapped = metadata.planner_data.get(fqn) if isinstance(metadata.planner_data, dict) else None
    return mapped if isinstance(mapped, tuple) and mapped else (fqn,)


class HoldfastReader(_Location, StorageReader):
    """Loads from the checkpoint folder `root` (path or URL), each byte held against its hash."""

    def __init__(self, root: str | os.PathLike[str], name: str | None = None) -> None:
        super().__init__(root, name)
        self._entry: Entry | None = None
        self._described: Metadata | None = None

    def read_metadata(self) -> Metadata:
        """Raises FileNotFoundError, UsageError for a checkpoint written through `holdfast://`, Damaged, OSError."""
        entry = catalog.of(self._root).find(self._named())
        if entry.kind != TENSORS:
            raise UsageError(
                f"{self.checkpoint_id} holds files", hint=f"checkpoint_id='holdfast://{self.checkpoint_id}'"
            )
        with reading.open_checkpoint(self._root, entry.info) as found:
            head = found.manifest.head
        try:
            self._described = _metadata(head["dcp"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise Damaged(f"{self.checkpoint_id} has malformed metadata: {error!r}") from error
        self._entry = entry
        return self._described

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing to do."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """As it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """As they are. Warns of a part of the state that is loaded in part: a fresh optimizer loses its moments so."""
        assert self._described is not None
        for top, left in left_behind(self._described, plans).items():
            if top in _tops(self._described, plans):
                warnings.warn(f"{_left(top, left)}; HoldfastLoadPlanner makes this an error", stacklevel=2)
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Raises Damaged, OSError."""
        assert self._entry is not None
        with reading.open_checkpoint(self._root, self._entry.info) as found:
            tensors = [item for item in plan.items if item.type != LoadItemType.BYTE_IO]
            for batch in _batches(tensors):
                _read_tensors(found, batch, planner)
            for item in plan.items:
                if item.type == LoadItemType.BYTE_IO:
                    planner.load_bytes(item, _pickled(_value(found, item.storage_index.fqn)))
        done: Future[None] = Future()
        done.set_result(None)
        return done


def _batches(items: Iterable[ReadItem]) -> Iterator[list[ReadItem]]:
    batch: list[ReadItem] = []
    size = 0
    for item in items:
        batch.append(item)
        size += math.prod(item.lengths) * 8
        if size > _AT_ONCE_BYTES:
            yield batch
            batch, size = [], 0
    yield batch


def _read_tensors(found: reading.Checkpoint, items: Sequence[ReadItem], planner: LoadPlanner) -> None:
    wanted, targets = [], []
    for item in items:
        target = planner.resolve_tensor(item).detach()
        tensor = found.tensors[item.storage_index.fqn]
        straight = target.is_contiguous() and target.device.type == "cpu"
        straight = straight and str(target.dtype) == f"torch.{tensor.dtype}"
        memory = target if straight else torch.empty(tuple(item.lengths), dtype=state.dtype_named(tensor.dtype))
        start = item.storage_index.offset or (0,) * len(item.lengths)
        index = tuple(a + b for a, b in zip(start, item.storage_offsets, strict=True))
        if memory.numel():
            wanted.append(reading.Wanted(tensor, Box(index, tuple(item.lengths)), bytes_of(memory)))
        targets.append((item, target, memory))
    found.read(wanted)
    for item, target, memory in targets:
        if memory is not target:
            target.copy_(memory)
        planner.commit_tensor(item, target)


def _value(found: reading.Checkpoint, fqn: str) -> Any:
    """A value that is no tensor, from whichever rank wrote it."""
    for rank in found.manifest.ranks:
        if fqn in rank["table"].get("values", {}):
            tree = rank["table"]["values"][fqn]
            return state.decode(tree, _Tensors(found))
    raise Damaged(f"{found.info} has no value {fqn!r}")


class _Tensors(Mapping[str, torch.Tensor]):
    """Tensors inside of values, read when asked for."""

    def __init__(self, found: reading.Checkpoint) -> None:
        self._found = found

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor = self._found.tensors[name]
        memory = torch.empty(tensor.shape, dtype=state.dtype_named(tensor.dtype))
        if memory.numel():
            self._found.read_into(name, bytes_of(memory))
        return memory

    def __iter__(self) -> Iterator[str]:
        return iter(self._found.tensors)

    def __len__(self) -> int:
        return len(self._found.tensors)


def _pickled(value: Any) -> io.BytesIO:
    """What DCP's planners unpickle: made here and now of plain values, so nothing stored is ever executed."""
    made = io.BytesIO()
    torch.save(value, made)
    made.seek(0)
    return made


class HoldfastLoadPlanner(DefaultLoadPlanner):
    """Refuses to leave stored values behind that no rank asks for, as a fresh optimizer would leave its moments."""

    def __init__(self, *args: Any, leave: Sequence[str] = (), **kwargs: Any) -> None:
        """leave: top-level keys of the state that may be left behind; the rest is for `DefaultLoadPlanner`."""
        super().__init__(*args, **kwargs)
        self._leave = frozenset(leave)

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        """On the coordinator, which knows what every rank asks for. Raises UsageError."""
        assert self.metadata is not None
        for top, left in left_behind(self.metadata, global_plan).items():
            if top not in self._leave:
                raise UsageError(
                    _left(top, left),
                    hint=f"give the optimizer its state before loading, or HoldfastLoadPlanner(leave=[{top!r}])",
                )
        return super().create_global_plan(global_plan)


def left_behind(metadata: Metadata, plans: Iterable[LoadPlan]) -> dict[str, list[str]]:
    """Stored values that no plan asks for, by top-level key. Pure. Tensors without elements do not count."""
    asked = {item.storage_index.fqn for plan in plans for item in plan.items}
    found: dict[str, list[str]] = defaultdict(list)
    for fqn, one in metadata.state_dict_metadata.items():
        if fqn not in asked and not (isinstance(one, TensorStorageMetadata) and 0 in one.size):
            found[str(_keys(metadata, fqn)[0])].append(fqn)
    return dict(found)


def _tops(metadata: Metadata, plans: Iterable[LoadPlan]) -> set[str]:
    return {str(_keys(metadata, item.storage_index.fqn)[0]) for plan in plans for item in plan.items}


def _left(top: str, left: Sequence[str]) -> str:
    return f"{len(left)} stored values under {top!r} are not asked for by any rank, {left[0]!r} among them"
