"""The element types that a checkpoint names, and how many bytes an element takes. Without torch."""

from __future__ import annotations

from holdfast.checkpoint.canonical import Damaged

_BYTES = {
    1: (
        "bool", "uint8", "int8", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz",
        "float8_e8m0fnu", "float4_e2m1fn_x2", "bits8", "bits1x8", "bits2x4", "bits4x2",
    ),
    2: ("int16", "uint16", "float16", "bfloat16", "bits16"),
    4: ("int32", "uint32", "float32", "complex32"),
    8: ("int64", "uint64", "float64", "complex64"),
    16: ("complex128",),
}  # fmt: skip
_SUB_BYTE = {f"{sign}int{bits}": 1 for sign in ("", "u") for bits in range(1, 8)}  # torch gives each a byte
_ITEM_BYTES = {name: size for size, names in _BYTES.items() for name in names} | _SUB_BYTE
KNOWN = frozenset(_ITEM_BYTES)


def item_bytes(dtype: str) -> int:
    """Bytes of one element of `float32`, `bfloat16` and so on. Raises Damaged for a name that is none."""
    if dtype not in _ITEM_BYTES:
        raise Damaged(f"no version of holdfast stores elements of type {dtype[:40]!r}")
    return _ITEM_BYTES[dtype]
