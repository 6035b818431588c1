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

from holdfast.checkpoint import tensors
from holdfast.errors import HoldfastError, UsageError

try:
    import numpy as np
except ImportError:  # the trainer's environment may be without it
    np = None  # type: ignore[assignment]

_STRIDED, _TENSOR = torch.strided, torch.Tensor
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


class _Where:
    """`path` is for people (`optimizer.state[3]['fn']`), `name` for tensors (`optimizer/state/3/fn`)."""

    __slots__ = ("above", "key", "name")

    def __init__(self, key: Any, above: _Where | None = None) -> None:
        self.key, self.above = key, above
        self.name: str = f"{above.name}/{key}" if above is not None else key

    @property
    def path(self) -> str:
        if self.above is None:
            return str(self.key)
        if self.above.above is None and isinstance(self.key, str) and self.key.isidentifier():
            return f"{self.above.path}.{self.key}"
        return f"{self.above.path}[{self.key!r}]"


def encode(values: Mapping[str, Any]) -> Encoded:
    """The tree of `values`, whose keys begin the paths and tensor names. Raises CannotStore.

    Nothing is remembered from one call to the next, so no tensor can be stale. What remains is some microseconds a
    tensor, two to three times what `state_dict()` takes to list it.
    """
    writer = _Writer()
    pairs = [[key, writer.tree(value, _Where(key))] for key, value in values.items()]
    writer.share()
    return Encoded({"$": "dict", "items": pairs}, writer.tensors, tuple(writer.notes))


def decode(tree: Any, tensors: Mapping[str, torch.Tensor], *, place: bool = False) -> Any:
    """The inverse of `encode`. Tensors come on the CPU, or with `place` on the device they were on where it exists.

    Raises UnreadableState for an unknown tag or a tensor that is missing.
    """
    return _Reader(tensors, place).value(tree)


class _Writer:
    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self.notes: list[str] = []
        self._at: dict[int, str] = {}  # address -> name of the first tensor there
        self._storages: dict[int, str] = {}  # address of the storage -> name of the first tensor kept of it
        self._together: dict[int, list[str]] = {}  # the same -> all names, where it is more than one
        self._nodes: list[dict[str, Any]] = []  # of all tensors
        self._open: set[int] = set()  # containers being written, against cycles

    def tree(self, value: Any, where: _Where) -> Any:
        kind = type(value)
        if kind is _TENSOR:  # what a large state is made of
            return _write_tensor(self, value, where)
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

    def reference(self, tensor: torch.Tensor, address: int, name: str) -> dict[str, Any]:
        """A node for dense `tensor`; the same memory seen the same way is kept once."""
        known = self._at.get(address) if address else None
        if known is None or not _is_same(tensor, self.tensors[known]):
            while name in self.tensors:
                name += "'"
            if address:
                self._at[address] = name
                storage = address - int(tensor.storage_offset()) * tensor.itemsize
                first = self._storages.setdefault(storage, name)
                if first is not name:
                    self._together.setdefault(storage, [first]).append(name)
            self.tensors[name] = tensor
            known = name
        node: dict[str, Any] = {"$": "tensor", "ref": known}
        self._nodes.append(node)
        return node

    def share(self) -> None:
        """Keep a tensor that is part of another one as a window on it."""
        found: dict[str, tensors.Window] = {}
        for names in self._together.values():
            seen, apart = tensors.windows([(name, self.tensors[name]) for name in names])
            found.update(seen)
            self.notes += [f"{one} and {other} share memory in part, and come back apart" for one, other in apart]
        for node in self._nodes if found else ():
            window = found.get(node["ref"])
            if window is not None:
                view = {"shape": list(window.shape), "stride": list(window.stride), "offset": window.offset}
                node.pop("stride", None)
                node.update(ref=window.base, view=view)
        for name in found:
            del self.tensors[name]


def _is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return (
        one.shape == other.shape
        and one.stride() == other.stride()
        and one.dtype == other.dtype
        and one.device == other.device
        and one.is_conj() == other.is_conj()
        and one.is_neg() == other.is_neg()
    )


def _write_sequence(tag: str) -> Callable[[_Writer, Any, _Where], Any]:
    def write(writer: _Writer, value: Any, where: _Where) -> Any:
        members = writer.inside(value, where, lambda: [writer.tree(v, _Where(i, where)) for i, v in enumerate(value)])
        return members if tag == "list" else {"$": tag, "v": members}

    return write


def _write_set(tag: str) -> Callable[[_Writer, Any, _Where], Any]:
    def write(writer: _Writer, value: Any, where: _Where) -> Any:
        return {"$": tag, "v": [_key(writer, v, where) for v in sorted(value, key=repr)]}

    return write


def _write_dict(tag: str) -> Callable[[_Writer, Any, _Where], Any]:
    def write(writer: _Writer, value: Any, where: _Where) -> Any:
        def pairs() -> list[list[Any]]:
            return [[_key(writer, k, where), writer.tree(v, _Where(k, where))] for k, v in value.items()]

        return {"$": tag, "items": writer.inside(value, where, pairs)}

    return write


def _write_defaultdict(writer: _Writer, value: Any, where: _Where) -> Any:
    writer.notes.append(f"{where.path} is a defaultdict and comes back as a dict")
    return _write_dict("dict")(writer, value, where)


def _key(writer: _Writer, key: Any, where: _Where) -> Any:
    if type(key) is str:
        return key
    members = key if type(key) is tuple else (key,)
    for member in members:
        if type(member) not in _STORABLE_KEYS and not (np is not None and isinstance(member, np.generic)):
            raise CannotStore(f"key {key!r} of {where.path}", _describe(key), "use strings, numbers or tuples of them")
    return writer.tree(key, where)


def _write_tensor(writer: _Writer, value: torch.Tensor, where: _Where) -> Any:
    if value.layout is not _STRIDED:
        return _write_sparse(writer, value, where)
    if value.is_quantized:
        return _write_quantised(writer, value, where)
    if value.is_nested or value.is_meta:
        raise CannotStore(where.path, _tensor_kind(value), "convert it to a dense tensor in state_dict()")
    address = value.data_ptr()
    if not address and value.numel():
        raise CannotStore(where.path, "a tensor without memory", "give back what resized it before the step ends")
    contiguous = value.is_contiguous()
    if not contiguous:
        inner = tensors.unexpanded(value)
        if inner is not None:
            return {"$": "expanded", "shape": list(value.shape), "of": _write_tensor(writer, inner, where)}
    node = writer.reference(value, address, where.name)
    if type(value) is torch.nn.Parameter:
        node["parameter"] = value.requires_grad
    elif value.requires_grad:
        node["requires_grad"] = True
    if not value.is_cpu:
        node["device"] = str(value.device)
    if not contiguous and tensors.fills_memory(value):
        node["stride"] = list(value.stride())
    return node


def _tensor_kind(value: torch.Tensor) -> str:
    layout = "nested" if value.is_nested else str(value.layout).removeprefix("torch.").lstrip("_")
    return f"a {layout} tensor of {str(value.dtype).removeprefix('torch.')} on {value.device}"


def _write_sparse(writer: _Writer, value: torch.Tensor, where: _Where) -> Any:
    def part(name: str, dense: torch.Tensor) -> Any:
        return _write_tensor(writer, dense.detach(), _Where(name, where))

    if value.layout is torch.sparse_coo:
        indices, values = value._indices(), value._values()  # noqa: SLF001 (the public ones refuse uncoalesced tensors)
        node = {"$": "sparse", "indices": part("indices", indices), "values": part("values", values)}
        node["coalesced"] = value.is_coalesced()
    elif tensors.is_compressed(value):
        parts = tensors.compressed_parts(value)
        names = ("compressed", "plain", "values")
        node = {"$": "compressed", "layout": parts["layout"], **{name: part(name, parts[name]) for name in names}}
    else:
        raise CannotStore(where.path, _tensor_kind(value), "convert it to a dense tensor in state_dict()")
    return {**node, "shape": list(value.shape), **_gradient(value)}


def _gradient(value: torch.Tensor) -> dict[str, Any]:
    if type(value) is torch.nn.Parameter:
        return {"parameter": value.requires_grad}
    return {"requires_grad": True} if value.requires_grad else {}


def _write_quantised(writer: _Writer, value: torch.Tensor, where: _Where) -> Any:
    try:
        by = tensors.quantisation(value)
    except RuntimeError as error:
        raise CannotStore(where.path, "a quantised tensor without scales", "quantise it, or leave it out") from error
    integers = _write_tensor(writer, tensors.stored_integers(value), where)
    parts = {name: writer.tree(part, _Where(name, where)) for name, part in by.items()}
    dtype = str(value.dtype).removeprefix("torch.")
    return {"$": "quantised", "dtype": dtype, "shape": list(value.shape), "integers": integers, **parts}


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
    return {**node, "ref": writer.reference(raw, raw.data_ptr(), where.name)["ref"]}


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
    _made: dict[Any, torch.Tensor] = field(default_factory=dict)  # so that tied tensors stay one

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
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UnreadableState(f"stored state has a damaged {node['$']} node: {error!r}") from error

    def tensor(self, node: Mapping[str, Any]) -> torch.Tensor:
        return self._once((str(node), "whole"), lambda: _finished(self._seen(node), node))

    def _seen(self, node: Mapping[str, Any]) -> torch.Tensor:
        """The memory of `node`, shared with every other node that names it."""
        kept = self._once((node["ref"], str(node.get("stride"))), lambda: self._strided(node))
        device = _here(torch.device(node["device"])) if self.place and "device" in node else kept.device
        there = self._once((node["ref"], str(node.get("stride")), device), lambda: kept.to(device))
        if "view" not in node:
            return there
        view = node["view"]
        if view["offset"] < 0 or min(view["stride"], default=0) < 0:
            raise ValueError(f"a window at {view['offset']} with strides {view['stride']}")
        return there.as_strided(view["shape"], view["stride"], there.storage_offset() + view["offset"])

    def _strided(self, node: Mapping[str, Any]) -> torch.Tensor:
        found = self.raw(node["ref"])
        return tensors.with_strides(found, node["stride"]) if "stride" in node else found

    def _once(self, key: Any, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def raw(self, name: str) -> torch.Tensor:
        if name not in self.tensors:
            raise UnreadableState(f"stored state names a tensor {name!r} that the checkpoint does not hold")
        return self.tensors[name]


def _finished(tensor: torch.Tensor, node: Mapping[str, Any]) -> torch.Tensor:
    if "parameter" in node:
        return torch.nn.Parameter(tensor, requires_grad=node["parameter"])
    return tensor.detach().requires_grad_() if node.get("requires_grad") else tensor


def _here(device: torch.device) -> torch.device:
    """`device` where this machine has it, else the current one of its type, else the CPU."""
    if device.type != "cuda":
        return device if _is_here(device) else torch.device("cpu")
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return device if (device.index or 0) < torch.cuda.device_count() else torch.device("cuda")


def _is_here(device: torch.device) -> bool:
    """Whether a tensor can lie there; on the meta device none does."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ImportError):
        return False
    return device.type != "meta"


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
    return _finished(made._coalesced_(True) if node["coalesced"] else made, node)


def _read_compressed(reader: _Reader, node: Mapping[str, Any]) -> torch.Tensor:
    indices = reader.value(node["compressed"]), reader.value(node["plain"])
    return _finished(tensors.compressed(node["layout"], indices, reader.value(node["values"]), node["shape"]), node)


def _read_quantised(reader: _Reader, node: Mapping[str, Any]) -> torch.Tensor:
    by = {name: reader.value(node[name]) for name in ("scale", "zero_point", "axis") if name in node}
    return tensors.quantised(dtype_named(node["dtype"]), node["shape"], reader.value(node["integers"]), by)


def _read_expanded(reader: _Reader, node: Mapping[str, Any]) -> torch.Tensor:
    made: torch.Tensor = reader.value(node["of"]).expand(node["shape"])
    return made


def _need_numpy() -> Any:
    if np is None:
        raise UnreadableState("the checkpoint holds NumPy values and NumPy is not installed", hint="pip install numpy")
    return np


def _read_array(reader: _Reader, node: Mapping[str, Any]) -> Any:
    raw = bytes(reader.raw(node["ref"]).numpy())
    flat = _need_numpy().frombuffer(raw, dtype=node["dtype"])
    return flat.reshape(node["shape"], order=node["order"]).copy(order="K")


def _read_numpy_scalar(_reader: _Reader, node: Mapping[str, Any]) -> Any:
    dtype = _need_numpy().dtype(node["dtype"])
    if not dtype.itemsize:
        return dtype.type()  # an empty text, of which NumPy makes no array
    return _need_numpy().frombuffer(base64.b64decode(node["v"]), dtype=dtype)[0]


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
    "compressed": _read_compressed,
    "quantised": _read_quantised,
    "expanded": _read_expanded,
    "npscalar": _read_numpy_scalar,
    "nparray": _read_array,
}
