"""The store's own time: what is written there is dated by it, and no machine's clock is trusted."""

from __future__ import annotations

import secrets

from holdfast.stores import Store


def now_s(store: Store) -> float:
    """Unix seconds, asked by writing an object and removing it. Raises StoreRefused."""
    scratch = f"terms/clock-{secrets.token_hex(8)}"
    store.put(scratch, b"now")
    found = store.head(scratch)
    store.delete(scratch)
    return found.modified_s if found is not None else 0.0
