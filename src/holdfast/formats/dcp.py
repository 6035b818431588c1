"""A folder of `torch.distributed.checkpoint`: written by it, and read without running its pickled metadata.

`.metadata` is a pickle. It is read with stand-ins for the few classes that belong there, so nothing in it can name
code; what it says is then checked like any other hostile file. Tensors are read by `weights_only=True`.
"""

from __future__ import annotations

import io
import os
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from holdfast.checkpoint import boxes
from holdfast.checkpoint.boxes import Box
from holdfast.checkpoint.dtypes import KNOWN
from holdfast.checkpoint.reading import Checkpoint
from holdfast.formats.base import Choice, Unreadable
from holdfast.formats.pt import load

SAYS = "a folder for torch.distributed.checkpoint.load"
SUFFIXES: tuple[str, ...] = ()
_MAX_METADATA_BYTES = 256 << 20
_MAX_DEPTH = 100
_CLASSES = {
    "torch.distributed.checkpoint.metadata": (
        "Metadata", "MetadataIndex", "TensorStorageMetadata", "BytesStorageMetadata", "TensorProperties",
        "ChunkStorageMetadata", "StorageMeta", "_MEM_FORMAT_ENCODING",
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo", "_StoragePrefix"),
    "torch.serialization": ("_get_layout",),
    "pathlib": ("PosixPath", "PurePosixPath", "Path"),
    "pathlib._local": ("PosixPath",),
}  # fmt: skip


def export(checkpoint: Checkpoint, into: Path, choice: Choice) -> list[str]:
    """The registered objects by name, gathered in a file beside `into`. Raises StoreRefused."""
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    from holdfast.checkpoint import rebuild

    state = rebuild.objects(checkpoint, choice.names or None, allocate=rebuild.in_file(into.parent))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no process group, which is as it should be
        save(state, storage_writer=FileSystemWriter(into), no_dist=True)
    return []


def read(source: Path) -> dict[str, Any]:
    """The nested state, tensors put together from their shards. Raises Unreadable, OSError."""
    metadata = _metadata(source / ".metadata")
    metadata["room"] = _Room(source)
    flat = {name: _entry(source, name, held, metadata) for name, held in metadata["state_dict_metadata"].items()}
    paths = metadata.get("planner_data")
    try:
        return _nested(flat, paths if isinstance(paths, dict) else {})
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise Unreadable(f"{source}: the names in its metadata contradict each other") from error


class _Record:
    """Stands for an object of the metadata: its constructor's arguments, and its fields once they are set."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __hash__(self) -> int:
        return id(self)

    @property
    def fields(self) -> Mapping[str, Any]:
        """The fields of a dataclass as it was pickled."""
        return self.state if isinstance(self.state, dict) else {}


class _Dtype(str):
    """`torch.float32` by its name."""


def _record_class(name: str) -> type[_Record]:
    return type(name, (_Record,), {})


def _member(kind: object, name: object) -> _Record:
    """A member of an enumeration, as Python 3.11.0 to 3.11.3 pickle it: getattr(kind, name). Nothing is looked up."""
    if not (isinstance(kind, type) and issubclass(kind, _Record)):
        raise Unreadable(".metadata asks for a part of something that is no enumeration")
    return kind(name)


_STAND_INS = {(module, name): _record_class(name) for module, names in _CLASSES.items() for name in names}


class _Inert(pickle.Unpickler):
    """Builds stand-ins; raises for every name that is not in the table."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _STAND_INS:
            return _STAND_INS[module, name]
        if (module, name) in (("torch", "Size"), ("builtins", "tuple")):
            return tuple
        if (module, name) in (("collections", "OrderedDict"), ("builtins", "dict")):
            return dict
        if (module, name) == ("builtins", "getattr"):
            return _member
        if module == "torch" and name in KNOWN:
            return _Dtype(name)
        raise Unreadable(
            f".metadata asks for {module[:60]}.{name[:60]}, which has no place there and is not loaded",
            hint="load it where it comes from and save its state_dict anew",
        )

    def persistent_load(self, pid: Any) -> Any:
        raise Unreadable(".metadata asks for an object from outside it")


def _metadata(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_METADATA_BYTES + 1)
    except FileNotFoundError as error:
        raise Unreadable(
            f"{path.parent} has no .metadata: it is no DCP checkpoint, or one that was not finished"
        ) from error
    if len(raw) > _MAX_METADATA_BYTES:
        raise Unreadable(f"{path} is larger than {_MAX_METADATA_BYTES} bytes")
    try:
        found = _Inert(io.BytesIO(raw)).load()
    except Unreadable:
        raise
    except Exception as error:  # a hostile pickle may make it raise anything
        raise Unreadable(f"{path} cannot be read: {type(error).__name__}: {str(error)[:100]}") from error
    fields = dict(found.fields) if isinstance(found, _Record) else {}
    if not isinstance(fields.get("state_dict_metadata"), dict) or not isinstance(fields.get("storage_data"), dict):
        raise Unreadable(f"{path} lacks the list of tensors, or of where they lie")
    fields["places"] = _places(fields["storage_data"])
    return fields


def _places(storage: Mapping[Any, Any]) -> dict[tuple[str, Any], Mapping[str, Any]]:
    """(name, offsets) → where its bytes lie."""
    found = {}
    for index, info in storage.items():
        if isinstance(index, _Record) and isinstance(info, _Record):
            name, offset = index.fields.get("fqn"), index.fields.get("offset")
            if isinstance(name, str) and (offset is None or _is_shape(offset)):
                found[name, offset] = info.fields
    return found


def _is_shape(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) <= 64 and all(type(n) is int and 0 <= n < 1 << 48 for n in value)


def _entry(source: Path, name: Any, held: Any, metadata: Mapping[str, Any]) -> Any:
    what = f"{source.name}: {str(name)[:100]!r}"
    if not isinstance(name, str) or not isinstance(held, _Record):
        raise Unreadable(f"{what} is no entry of a DCP checkpoint")
    if type(held).__name__ == "BytesStorageMetadata":
        return _load(source, metadata, (name, None), what)
    properties = held.fields.get("properties")
    dtype = properties.state[0] if isinstance(properties, _Record) and isinstance(properties.state, tuple) else None
    chunks = held.fields.get("chunks")
    if not isinstance(dtype, _Dtype) or not isinstance(chunks, list):
        raise Unreadable(f"{what} is described as no tensor is")
    parts = [_box(_fields(chunk).get("offsets"), _fields(chunk).get("sizes"), what) for chunk in chunks]
    shape = _shape(held.fields.get("size"), what)
    return _tensor(source, name, dtype, boxes.whole(shape), parts, metadata, what)


def _fields(record: Any) -> Mapping[str, Any]:
    return record.fields if isinstance(record, _Record) else {}


def _shape(value: Any, what: str) -> tuple[int, ...]:
    if not _is_shape(value):
        raise Unreadable(f"{what} has an impossible shape")
    return tuple(value)


def _box(index: Any, shape: Any, what: str) -> Box:
    box = Box(_shape(index, what), _shape(shape, what))
    if len(box.index) != len(box.shape):
        raise Unreadable(f"{what} has a shard whose place and shape disagree")
    return box


def _tensor(
    source: Path, name: str, dtype: str, whole: Box, parts: list[Box], metadata: Mapping[str, Any], what: str
) -> Any:
    import torch

    kind = getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype) or any(len(part.index) != len(whole.shape) for part in parts):
        raise Unreadable(f"{what} is of a type or shape that this torch does not know")
    ends = [end for part in parts for end in zip(part.index, part.shape, whole.shape, strict=True)]
    if not boxes.fill(parts, whole) or any(start + length > size for start, length, size in ends):
        raise Unreadable(f"{what} is not whole: its shards leave gaps, overlap or stand out")
    metadata["room"].take("tensors", whole.count * kind.itemsize, f"{what} of {whole.shape}")
    made = torch.empty(whole.shape, dtype=kind)
    for part in parts:
        found = _load(source, metadata, (name, part.index), what)
        if not isinstance(found, torch.Tensor) or found.dtype != kind or tuple(found.shape) != part.shape:
            raise Unreadable(f"{what} has a shard of another shape or type than described")
        window = made
        for axis, (start, length) in enumerate(zip(part.index, part.shape, strict=True)):
            window = window.narrow(axis, start, length)
        window.copy_(found)
    return made


class _Room:
    """What the files hold, which no entry shares with another: a thousand that name one place would fill memory."""

    def __init__(self, source: Path) -> None:
        held = sum(path.stat().st_size for path in source.iterdir() if path.is_file())
        self._left = {"tensors": held, "files": held}

    def take(self, kind: str, size_bytes: int, what: str) -> None:
        """Raises Unreadable."""
        self._left[kind] -= size_bytes
        if self._left[kind] < 0:
            raise Unreadable(f"{what} and what comes before it are larger than all files together")


def _load(source: Path, metadata: Mapping[str, Any], index: tuple[str, Any], what: str) -> Any:
    """What lies at the place of `index`, in a file of the folder itself, by weights_only. Raises Unreadable."""
    place = metadata["places"].get(index, {})
    name, offset, length = place.get("relative_path"), place.get("offset"), place.get("length")
    if not isinstance(name, str) or not name or name in (".", "..") or {"/", "\0"} & set(name):
        raise Unreadable(f"{what} lies at {str(name)[:100]!r}, which is no file of that folder")
    if (
        type(offset) is not int
        or type(length) is not int
        or min(offset, length) < 0
        or place.get("transform_descriptors")
    ):
        raise Unreadable(f"{what} has no sound place in {name!r}, or is compressed")
    try:
        descriptor = os.open(source / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise Unreadable(f"{what} lies in {name[:100]!r}, which cannot be opened: {error.strerror}") from error
    with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor has no path
        if offset + length > os.fstat(descriptor).st_size:
            raise Unreadable(f"{what} reaches past the end of {name!r}")
        metadata["room"].take("files", length, what)
        file.seek(offset)
        raw = file.read(length)
    return load(io.BytesIO(raw), what)


class _Branch(dict[Any, Any]):
    """A dictionary or list that was flattened, not one that was stored as it is."""


def _nested(flat: Mapping[str, Any], paths: Mapping[str, Any]) -> dict[str, Any]:
    """Undo DCP's flattening: each entry goes to its path of keys and list positions. Raises what a bad path does."""
    made = _Branch()
    for name, value in flat.items():
        path = paths.get(name, (name,))
        if not isinstance(path, tuple) or not 1 <= len(path) <= _MAX_DEPTH:
            raise ValueError("a path is none")
        at = made
        for key in path[:-1]:
            at = at.setdefault(key, _Branch())
        at[path[-1]] = value
    found: dict[str, Any] = {str(key): _with_lists(value) for key, value in made.items()}
    return found


def _with_lists(node: Any) -> Any:
    """DCP writes keys of dictionaries as text, so whole numbers are positions in a list."""
    if not isinstance(node, _Branch):
        return node
    made = {key: _with_lists(value) for key, value in node.items()}
    return [made[index] for index in range(len(made))] if all(type(key) is int for key in made) and made else made
