"""Tensors as bytes: what lies in memory, what of it is shared, and quantised and sparse kinds made of dense parts."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

EXTRA_STATE = "_extra_state"  # how torch calls what a module adds by `get_extra_state`
_RAW = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}
_QUANTISED = {"quint8": torch.uint8, "qint8": torch.int8, "qint32": torch.int32}  # by name: torch will drop them
_COMPRESSED = {torch.sparse_csr: "csr", torch.sparse_csc: "csc", torch.sparse_bsr: "bsr", torch.sparse_bsc: "bsc"}
_BY_NAME = {name: layout for layout, name in _COMPRESSED.items()}


def raw(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as a dtype that every kernel can copy bit by bit; signs and conjugates still pending are done."""
    settled = tensor.detach().resolve_conj().resolve_neg()
    return settled.view(_RAW[settled.dtype.itemsize])


def empty(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Memory for a contiguous tensor on the CPU."""
    return torch.empty(tuple(shape), dtype=_RAW[dtype.itemsize]).view(dtype)


def lacks_memory(value: Any) -> str:
    """Why nothing can be read into a tensor, empty when something can: torch passes over one on the meta device."""
    if not isinstance(value, torch.Tensor):
        return ""
    if torch.nn.parameter.is_lazy(value):
        return "is not initialised yet"
    return "is on the meta device" if value.is_meta else ""


def fills_memory(tensor: torch.Tensor) -> bool:
    """Whether the strides are a permutation of contiguous ones: channels_last, a transposed matrix."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def with_strides(tensor: torch.Tensor, strides: Sequence[int]) -> torch.Tensor:
    """A copy of a contiguous tensor that lies in memory as `strides` say."""
    source = raw(tensor)
    return torch.empty_strided(source.shape, tuple(strides), dtype=source.dtype).copy_(source).view(tensor.dtype)


def unexpanded(tensor: torch.Tensor) -> torch.Tensor | None:
    """What `expand` made the tensor from: length 1 wherever the stride is 0. None when nothing is expanded."""
    keep = [slice(0, 1) if stride == 0 and size > 1 else slice(None) for stride, size in _axes(tensor)]
    return tensor[tuple(keep)] if any(part.stop == 1 for part in keep) and tensor.numel() else None


def _axes(tensor: torch.Tensor) -> Iterator[tuple[int, int]]:
    return zip(tensor.stride(), tensor.shape, strict=True)


@dataclass(frozen=True, slots=True)
class Window:
    """A tensor that is a part of a contiguous one: strides and offset count elements of `base`."""

    base: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


def windows(members: Sequence[tuple[str, torch.Tensor]]) -> tuple[dict[str, Window], list[tuple[str, str]]]:
    """Which of the tensors in one storage are parts of another, and the pairs that overlap in another way."""
    spans = sorted((_start(t), -_end(t), not t.is_contiguous(), index) for index, (_, t) in enumerate(members))
    found: dict[str, Window] = {}
    apart: list[tuple[str, str]] = []
    base: tuple[str, torch.Tensor] | None = None
    reach, last = -1, ""
    for start, negative_end, strided, index in spans:
        name, tensor = members[index]
        if base is not None and -negative_end <= _end(base[1]) and _alike(tensor, base[1]):
            offset = (start - _start(base[1])) // tensor.dtype.itemsize
            found[name] = Window(base[0], tuple(tensor.shape), tensor.stride(), offset)
            continue
        if start < reach:
            apart.append((last, name))
        if not strided and (base is None or -negative_end > _end(base[1])):
            base = name, tensor
        if -negative_end > reach:
            reach, last = -negative_end, name
    return found, apart


def _start(tensor: torch.Tensor) -> int:
    return int(tensor.storage_offset()) * tensor.dtype.itemsize


def _end(tensor: torch.Tensor) -> int:
    last = sum(stride * (size - 1) for stride, size in _axes(tensor))
    return _start(tensor) + (last + 1) * tensor.dtype.itemsize


def _alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    same = (one.dtype, one.is_conj(), one.is_neg()) == (other.dtype, other.is_conj(), other.is_neg())
    return same and (_start(one) - _start(other)) % one.dtype.itemsize == 0


# ---- quantised


def stored_integers(tensor: torch.Tensor) -> torch.Tensor:
    """The integers behind a quantised tensor, in its own memory; for dtypes below a byte the packed bytes, flat."""
    kind = _QUANTISED.get(str(tensor.dtype).removeprefix("torch."))
    alias = torch.empty(0, dtype=kind or torch.uint8, device=tensor.device)
    if kind is None:
        return alias.set_(tensor.contiguous().untyped_storage())
    return alias.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())


def quantisation(tensor: torch.Tensor) -> dict[str, Any]:
    """Scale and zero point, or tensors of them along `axis`."""
    if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return {"scale": tensor.q_scale(), "zero_point": tensor.q_zero_point()}
    return {
        "scale": tensor.q_per_channel_scales(),
        "zero_point": tensor.q_per_channel_zero_points(),
        "axis": tensor.q_per_channel_axis(),
    }


def quantised(dtype: torch.dtype, shape: Sequence[int], integers: torch.Tensor, by: dict[str, Any]) -> torch.Tensor:
    """The tensor that `stored_integers` and `quantisation` were taken from; it takes over the memory of `integers`."""
    options: dict[str, Any] = {"dtype": dtype, "device": integers.device}
    with _known("deprecated"):
        if "axis" in by:
            options.update(scales=by["scale"], zero_points=by["zero_point"], axis=by["axis"])
            made: torch.Tensor = torch._empty_per_channel_affine_quantized(shape, **options)  # noqa: SLF001 (torch.load's)
        else:
            options.update(scale=by["scale"], zero_point=by["zero_point"])
            made = torch._empty_affine_quantized(shape, **options)  # noqa: SLF001
    if integers.dtype == _QUANTISED.get(str(dtype).removeprefix("torch.")):
        return made.set_(integers.untyped_storage(), integers.storage_offset(), integers.shape, integers.stride())
    torch.empty(0, dtype=torch.uint8, device=made.device).set_(made.untyped_storage()).copy_(integers)
    return made


@contextlib.contextmanager
def _known(what: str) -> Iterator[None]:
    """Without a warning of torch that the script has had already, when it made its own tensor of the kind."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", f".*{what}", UserWarning)
        yield


# ---- sparse


def compressed_parts(tensor: torch.Tensor) -> dict[str, Any]:
    """`layout` (csr, csc, bsr, bsc) and its three dense tensors."""
    rows = tensor.layout in (torch.sparse_csr, torch.sparse_bsr)
    return {
        "layout": _COMPRESSED[tensor.layout],
        "compressed": tensor.crow_indices() if rows else tensor.ccol_indices(),
        "plain": tensor.col_indices() if rows else tensor.row_indices(),
        "values": tensor.values(),
    }


def is_compressed(tensor: torch.Tensor) -> bool:
    """Whether the layout is one of CSR, CSC, BSR, BSC."""
    return tensor.layout in _COMPRESSED


def compressed(
    layout: str, indices: tuple[torch.Tensor, torch.Tensor], values: torch.Tensor, shape: Sequence[int]
) -> torch.Tensor:
    """The inverse of `compressed_parts`; `indices` are compressed and plain. Raises KeyError, RuntimeError."""
    with _known("beta state"):
        return torch.sparse_compressed_tensor(
            *indices, values, tuple(shape), layout=_BY_NAME[layout], check_invariants=True
        )
