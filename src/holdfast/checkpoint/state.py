"""Python objects ⇄ a typed JSON tree, with tensors kept aside by name. Never pickle.

`None`, `bool`, `str`, small `int`, finite `float` and `list` are themselves in JSON; everything else is an object whose
`"$"` names its type. Dictionaries are lists of pairs, so that order and keys of any type survive canonical JSON. What
is not known is refused with its path; what is not known when reading is refused too.
"""

from __future__ import annotations

import base64
import math
import struct
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch

from holdfast.errors import HoldfastError, UsageError

try:
    import numpy as np
except ImportError:  # the trainer's environment may be without it
    np = None  # type: ignore[assignment]

_EXACT_INT = 1 << 53  # JSON readers other than Python's keep integers up to here
_STORABLE_KEYS = (type(None), bool, int, float, str, bytes, tuple, torch.dtype, torch.device)


class CannotStore(UsageError):
    """A registered object holds something that has no place in a checkpoint."""

    def __init__(self, path: str, what: str, hint: str) -> None:
        super().__init__(f"{path} is {what}, which a checkpoint cannot hold", hint=hint)


class UnreadableState(HoldfastError):
    """A stored tree is not of this version's making."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """`tree` is JSON, `tensors` maps each name in it to the live tensor, `notes` say what comes back otherwise."""

    tree: Any
    tensors: dict[str, torch.Tensor]
    notes: tuple[str, ...]


@dataclass(slots=True)
class _Where:
    """`path` is for people (`optimizer.state[3]['fn']`), `name` for tensors (`optimizer/state/3/fn`)."""

    path: str
    name: str
    depth: int = 0

    def at(self, key: Any) -> _Where:
        plain = self.depth == 0 and isinstance(key, str) and key.isidentifier()
        path = f"{self.path}.{key}" if plain else f"{self.path}[{key!r}]"
        return _Where(path, f"{self.name}/{key}", self.depth + 1)


def encode(values: Mapping[str, Any]) -> Encoded:
    """The tree of `values`, whose keys begin the paths and tensor names. Raises CannotStore."""
    writer = _Writer()
    pairs = [[key, writer.tree(value, _Where(key, key))] for key, value in values.items()]
    return Encoded({"$": "dict", "items": pairs}, writer.tensors, tuple(writer.notes))


def decode(tree: Any, tensors: Mapping[str, torch.Tensor], *, place: bool = False) -> Any:
    """The inverse of `encode`. Tensors come on the CPU, or with `place` on the device they were on where it exists.

    Raises UnreadableState for an unknown tag or a tensor that is missing.
    """
    return _Reader(tensors, place).value(tree)


@dataclass(slots=True)
class _Writer:
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    _names: dict[Any, str] = field(default_factory=dict)  # identity of a tensor's memory -> its name
    _open: set[int] = field(default_factory=set)  # containers being written, against cycles

    def tree(self, value: Any, where: _Where) -> Any:
        kind = type(value)
        if value is None or kind is bool or kind is str:
            return value
        if kind is int:
            return value if -_EXACT_INT <= value <= _EXACT_INT else {"$": "int", "v": hex(value)}
        if kind is float:
            return value if math.isfinite(value) else {"$": "float", "v": struct.pack(">d", value).hex()}
        write = _WRITERS.get(kind)
        if write is not None:
            return write(self, value, where)
        if np is not None and isinstance(value, np.generic):
            return _write_numpy_scalar(self, value, where)
        raise CannotStore(where.path, _describe(value), _hint(value))

    def inside(self, value: Any, where: _Where, write: Callable[[], Any]) -> Any:
        """Run `write` for the members of the container `value`, refusing a cycle."""
        if id(value) in self._open:
            raise CannotStore(where.path, "part of itself", "break the cycle in state_dict()")
        self._open.add(id(value))
        try:
            return write()
        finally:
            self._open.discard(id(value))

    def reference(self, tensor: torch.Tensor, where: _Where) -> str:
        """The name under which `tensor` is kept; the same memory seen the same way is kept once."""
        key: Any = id(tensor)
        if tensor.numel():
            key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, str(tensor.device))
            key += (tensor.is_conj(), tensor.is_neg())
        if key not in self._names:
            name = where.name
            while name in self.tensors:
                name += "'"
            self._names[key] = name
            self.tensors[name] = tensor
        return self._names[key]


def _write_sequence(tag: str) -> Callable[[_Writer, Any, _Where], Any]:
    def write(writer: _Writer, value: Any, where: _Where) -> Any:
        members = writer.inside(value, where, lambda: [writer.tree(v, where.at(i)) for i, v in enumerate(value)])
        return members if tag == "list" else {"$": tag, "v": members}

    return write


def _write_set(tag: str) -> Callable[[_Writer, Any, _Where], Any]:
    def write(writer: _Writer, value: Any, where: _Where) -> Any:
        return {"$": tag, "v": [_key(writer, v, where) for v in sorted(value, key=repr)]}

    return write


def _write_dict(tag: str) -> Callable[[_Writer, Any, _Where], Any]:
    def write(writer: _Writer, value: Any, where: _Where) -> Any:
        def pairs() -> list[list[Any]]:
            return [[_key(writer, k, where), writer.tree(v, where.at(k))] for k, v in value.items()]

        return {"$": tag, "items": writer.inside(value, where, pairs)}

    return write


def _write_defaultdict(writer: _Writer, value: Any, where: _Where) -> Any:
    writer.notes.append(f"{where.path} is a defaultdict and comes back as a dict")
    return _write_dict("dict")(writer, value, where)


def _key(writer: _Writer, key: Any, where: _Where) -> Any:
    members = key if type(key) is tuple else (key,)
    for member in members:
        if type(member) not in _STORABLE_KEYS and not (np is not None and isinstance(member, np.generic)):
            raise CannotStore(f"key {key!r} of {where.path}", _describe(key), "use strings, numbers or tuples of them")
    return writer.tree(key, where)


def _write_tensor(writer: _Writer, value: torch.Tensor, where: _Where) -> Any:
    if value.layout == torch.sparse_coo:
        return _write_sparse(writer, value, where)
    if value.layout != torch.strided or value.is_quantized or value.is_nested or value.device.type == "meta":
        what = f"a {value.layout} tensor of {value.dtype} on {value.device}"
        raise CannotStore(where.path, what, "convert it to a dense tensor in state_dict()")
    node: dict[str, Any] = {"$": "tensor", "ref": writer.reference(value, where)}
    if type(value) is torch.nn.Parameter:
        node["parameter"] = value.requires_grad
    elif value.requires_grad:
        node["requires_grad"] = True
    if value.device.type != "cpu":
        node["device"] = str(value.device)
    if not value.is_contiguous() and _fills_its_memory(value):
        node["stride"] = list(value.stride())
    return node


def _write_sparse(writer: _Writer, value: torch.Tensor, where: _Where) -> Any:
    indices, values = value._indices(), value._values()  # noqa: SLF001 (the public ones refuse uncoalesced tensors)
    return {
        "$": "sparse",
        "indices": writer.tree(indices.detach(), where.at("indices")),
        "values": writer.tree(values.detach(), where.at("values")),
        "shape": list(value.shape),
        "coalesced": value.is_coalesced(),
    }


def _fills_its_memory(tensor: torch.Tensor) -> bool:
    """Whether the strides are a permutation of contiguous ones: channels_last, a transposed matrix."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def _write_numpy_scalar(writer: _Writer, value: Any, where: _Where) -> Any:
    if value.dtype.kind in "OV":
        raise CannotStore(where.path, f"a NumPy {value.dtype} value", "store plain numbers")
    return {"$": "npscalar", "dtype": value.dtype.str, "v": base64.b64encode(value.tobytes()).decode()}


def _write_array(writer: _Writer, value: Any, where: _Where) -> Any:
    if value.dtype.kind in "OV":
        raise CannotStore(where.path, f"a NumPy array of {value.dtype}", "store arrays of plain numbers")
    order = "F" if value.flags.f_contiguous and not value.flags.c_contiguous else "C"
    raw = (
        torch.frombuffer(bytearray(value.tobytes(order)), dtype=torch.uint8)
        if value.nbytes
        else torch.empty(0, dtype=torch.uint8)
    )
    node = {"$": "nparray", "dtype": value.dtype.str, "shape": list(value.shape), "order": order}
    return {**node, "ref": writer.reference(raw, where)}


_WRITERS: dict[type, Callable[[_Writer, Any, _Where], Any]] = {
    list: _write_sequence("list"),
    tuple: _write_sequence("tuple"),
    torch.Size: lambda _w, v, _p: {"$": "size", "v": list(v)},
    set: _write_set("set"),
    frozenset: _write_set("frozenset"),
    dict: _write_dict("dict"),
    OrderedDict: _write_dict("odict"),
    defaultdict: _write_defaultdict,
    complex: lambda _w, v, _p: {"$": "complex", "v": struct.pack(">dd", v.real, v.imag).hex()},
    bytes: lambda _w, v, _p: {"$": "bytes", "v": base64.b64encode(v).decode()},
    torch.dtype: lambda _w, v, _p: {"$": "dtype", "v": str(v).removeprefix("torch.")},
    torch.device: lambda _w, v, _p: {"$": "device", "v": str(v)},
    torch.Tensor: _write_tensor,
    torch.nn.Parameter: _write_tensor,
}
if np is not None:
    _WRITERS[np.ndarray] = _write_array


def _describe(value: Any) -> str:
    if callable(value) and hasattr(value, "__qualname__"):
        return f"a function or class ({value.__qualname__})"
    if isinstance(value, Enum):
        return f"the enum member {value}"
    return f"a {type(value).__module__}.{type(value).__qualname__}"


def _hint(value: Any) -> str:
    if isinstance(value, Enum):
        return "store its .value"
    if isinstance(value, torch.Generator):
        return "store its get_state(), or give the generator to Run by name"
    if isinstance(value, torch.Tensor):
        return "return a plain dense tensor from state_dict()"
    if isinstance(value, (dict, list, tuple, str, int, float)):
        return f"convert it to a plain {type(value).__mro__[-2].__name__} in state_dict()"
    return "leave it out of state_dict(), and make it again when the script starts"


@dataclass(slots=True)
class _Reader:
    tensors: Mapping[str, torch.Tensor]
    place: bool
    _made: dict[str, torch.Tensor] = field(default_factory=dict)  # so that tied tensors stay one

    def value(self, node: Any) -> Any:
        if node is None or isinstance(node, (bool, str, int, float)):
            return node
        if isinstance(node, list):
            return [self.value(member) for member in node]
        read = _READERS.get(str(node.get("$"))) if isinstance(node, dict) else None
        if read is None:
            raise UnreadableState(
                f"stored state has a node of unknown kind {str(node)[:80]}", hint="use a newer holdfast"
            )
        try:
            return read(self, node)
        except (KeyError, TypeError, ValueError) as error:
            raise UnreadableState(f"stored state has a damaged {node['$']} node: {error!r}") from error

    def tensor(self, node: Mapping[str, Any]) -> torch.Tensor:
        key = f"{node['ref']} {node.get('parameter')}"
        if key not in self._made:
            self._made[key] = self._finish(self.raw(node["ref"]), node)
        return self._made[key]

    def raw(self, name: str) -> torch.Tensor:
        if name not in self.tensors:
            raise UnreadableState(f"stored state names a tensor {name!r} that the checkpoint does not hold")
        return self.tensors[name]

    def _finish(self, tensor: torch.Tensor, node: Mapping[str, Any]) -> torch.Tensor:
        if "stride" in node:
            tensor = torch.empty_strided(tensor.shape, node["stride"], dtype=tensor.dtype).copy_(tensor)
        if self.place and "device" in node:
            tensor = tensor.to(_here(torch.device(node["device"])))
        if "parameter" in node:
            return torch.nn.Parameter(tensor, requires_grad=node["parameter"])
        return tensor.requires_grad_() if node.get("requires_grad") else tensor


def _here(device: torch.device) -> torch.device:
    """`device` where this machine has it, else the current one of its type, else the CPU."""
    if device.type != "cuda":
        return device
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return device if (device.index or 0) < torch.cuda.device_count() else torch.device("cuda")


def _read_dtype(_reader: _Reader, node: Mapping[str, Any]) -> torch.dtype:
    return dtype_named(node["v"])


def dtype_named(name: str) -> torch.dtype:
    """`float32` → torch.float32. Raises UnreadableState for a name this torch does not know."""
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise UnreadableState(
            f"this torch ({torch.__version__}) has no dtype {name!r}", hint="use the torch that wrote it"
        )
    return found


def _read_float(_reader: _Reader, node: Mapping[str, Any]) -> float:
    value: float = struct.unpack(">d", bytes.fromhex(node["v"]))[0]
    return value


def _read_sparse(reader: _Reader, node: Mapping[str, Any]) -> torch.Tensor:
    indices, values = reader.value(node["indices"]), reader.value(node["values"])
    made = torch.sparse_coo_tensor(indices, values, node["shape"], check_invariants=True)
    return made._coalesced_(True) if node["coalesced"] else made


def _need_numpy() -> Any:
    if np is None:
        raise UnreadableState("the checkpoint holds NumPy values and NumPy is not installed", hint="pip install numpy")
    return np


def _read_array(reader: _Reader, node: Mapping[str, Any]) -> Any:
    raw = bytes(reader.raw(node["ref"]).numpy())
    flat = _need_numpy().frombuffer(raw, dtype=node["dtype"])
    return flat.reshape(node["shape"], order=node["order"]).copy(order="K")


def _read_numpy_scalar(_reader: _Reader, node: Mapping[str, Any]) -> Any:
    return _need_numpy().frombuffer(base64.b64decode(node["v"]), dtype=node["dtype"])[0]


def _members(reader: _Reader, node: Mapping[str, Any]) -> list[Any]:
    return [reader.value(member) for member in node["v"]]


def _pairs(reader: _Reader, node: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    return [(reader.value(key), reader.value(value)) for key, value in node["items"]]


_READERS: dict[Any, Callable[[_Reader, Mapping[str, Any]], Any]] = {
    "int": lambda _r, n: int(n["v"], 16),
    "float": _read_float,
    "complex": lambda _r, n: complex(*struct.unpack(">dd", bytes.fromhex(n["v"]))),
    "bytes": lambda _r, n: base64.b64decode(n["v"]),
    "tuple": lambda r, n: tuple(_members(r, n)),
    "size": lambda _r, n: torch.Size(n["v"]),
    "set": lambda r, n: set(_members(r, n)),
    "frozenset": lambda r, n: frozenset(_members(r, n)),
    "dict": lambda r, n: dict(_pairs(r, n)),
    "odict": lambda r, n: OrderedDict(_pairs(r, n)),
    "dtype": _read_dtype,
    "device": lambda _r, n: torch.device(n["v"]),
    "tensor": lambda r, n: r.tensor(n),
    "sparse": _read_sparse,
    "npscalar": _read_numpy_scalar,
    "nparray": _read_array,
}
