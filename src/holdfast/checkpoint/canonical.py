"""JSON with one spelling, so that its hash can be its name; and what is wrong with a stored file, in a sentence.

Canonical: ASCII, keys sorted, no white space, no NaN or infinity, each key once. Whatever is read is hostile: its size
is bounded by the caller before it comes here, and anything but the one spelling is `Damaged`.
"""

from __future__ import annotations

import json
import re
from typing import Any

from blake3 import blake3

from holdfast.errors import HoldfastError

_HASH = re.compile(r"[0-9a-f]{64}\Z")


class Damaged(HoldfastError):
    """A stored file is not what was written; the message names the file and what is wrong."""

    exit_code = 12


class NewerFormat(HoldfastError):
    """A file is whole, and written by a later version of holdfast."""

    exit_code = 12

    def __init__(self, what: str, version: object) -> None:
        super().__init__(f"{what} has format version {version}, this holdfast reads 1", hint="upgrade holdfast")


def encode(value: Any) -> bytes:
    """The one spelling of `value`. Raises ValueError on what JSON cannot say."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode("ascii")


def decode(raw: bytes, what: str) -> dict[str, Any]:
    """The object spelled by `raw`; `what` names the file in the error. Raises Damaged."""
    try:
        value = json.loads(raw.decode("ascii"))
        canonical = encode(value)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{what} is not JSON: {str(error)[:100]}") from error
    if canonical != raw or not isinstance(value, dict):
        raise Damaged(f"{what} is not a JSON object in canonical form")
    return value


def digest(raw: bytes) -> str:
    """BLAKE3-256 of `raw`, 64 hex digits."""
    return blake3(raw).hexdigest()


def is_hash(text: object) -> bool:
    """Whether `text` is what `digest` returns: safe as a part of a file name, too."""
    return isinstance(text, str) and _HASH.match(text) is not None


def is_count(value: object, *, least: int = 0, most: int = 1 << 53) -> bool:
    """Whether `value` is an int, not a bool, from `least` to `most`."""
    return type(value) is int and least <= value <= most


def encode_checked(fields: dict[str, Any]) -> bytes:
    """A small document that carries its own hash, for files whose name cannot."""
    return encode({**fields, "blake3": digest(encode(fields))})


def decode_checked(raw: bytes, what: str) -> dict[str, Any]:
    """The fields given to `encode_checked`. Raises Damaged."""
    fields = decode(raw, what)
    if fields.pop("blake3", None) != digest(encode(fields)):
        raise Damaged(f"{what} does not match the hash it carries")
    return fields
