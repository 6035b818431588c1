"""What a mirror needs of a place that keeps objects: six calls, each whole or not at all.

A key is text with `/` in it. Nothing is ever appended to or changed in place. What `put` says is kept is kept: it was
compared with what was sent, by us.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from holdfast.fsio import Bytes


@dataclass(frozen=True, slots=True)
class Entry:
    """One object. `modified_s`: unix seconds by the store's own clock."""

    size_bytes: int
    modified_s: float


class Store(Protocol):
    """A bucket and a prefix, or a folder. Every method raises StoreRefused when retrying did not help either."""

    url: str  # without credentials, as people know it
    parts: bool  # False once it was seen to send whole objects only: then `get` costs no more than `get_range`

    def put(self, key: str, data: Bytes, *, create: bool = False) -> None:
        """Keep `data` under `key`, verified. `create`: raises FileExistsError when something is there.

        Some stores take `create` and overwrite all the same: ask `enforces_create` before relying on it.
        """
        ...

    def get(self, key: str) -> bytes:
        """All of an object. Raises FileNotFoundError."""
        ...

    def get_range(self, key: str, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on, fewer at the end of the object. Raises FileNotFoundError."""
        ...

    def list(self, prefix: str) -> dict[str, int]:
        """Every key below the folder `prefix` (which ends in `/`), sorted, and its length in bytes."""
        ...

    def head(self, key: str) -> Entry | None:
        """Length and time of an object, None when there is none."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is fine."""
        ...


def enforces_create(store: Store, scratch: str) -> bool:
    """Whether `put(create=True)` really refuses what exists, tried on the key `scratch`, which is gone afterwards.

    Never assumed: `rclone serve s3` answers 200 to If-None-Match and overwrites, others answer 501.
    """
    from holdfast.errors import StoreRefused

    store.put(scratch, b"first")
    try:
        store.put(scratch, b"second", create=True)
    except FileExistsError:
        return store.get(scratch) == b"first"
    except StoreRefused:
        return False
    finally:
        store.delete(scratch)
    return False
