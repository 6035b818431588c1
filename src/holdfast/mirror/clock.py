"""The store's own time: what is written there is dated by it, and no machine's clock is trusted."""

from __future__ import annotations

import secrets

from holdfast.errors import StoreRefused
from holdfast.stores import Store


def now_s(store: Store) -> float:
    """Unix seconds, asked by writing an object and removing it. Raises StoreRefused."""
    scratch = f"terms/clock-{secrets.token_hex(8)}"
    store.put(scratch, b"now")
    found = store.head(scratch)
    store.delete(scratch)
    if found is None:  # 1970 would make everything old enough to be removed
        raise StoreRefused(f"{store.url} does not show what was just put there, so its clock is not known")
    return found.modified_s
