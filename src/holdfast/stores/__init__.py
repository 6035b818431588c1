"""Places that keep objects: a file a scheme, `Store` is what they have in common.

A module is named after its scheme and has `connect(url, environ, patience) -> Store`. Credentials come from the
environment and from the files that the provider's own tools use; they are never part of a URL, of a message or of a
file of ours.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from holdfast import urls
from holdfast.errors import StoreRefused
from holdfast.stores.base import Entry, Store, enforces_create
from holdfast.stores.retry import IMPATIENT, PATIENT, Patience

__all__ = ["IMPATIENT", "PATIENT", "Entry", "Patience", "Store", "connect", "enforces_create"]


def connect(url: str, environ: Mapping[str, str], patience: Patience = PATIENT) -> Store:
    """The store at `url`; nothing is sent yet. Raises UsageError, StoreRefused."""
    module = importlib.import_module(f"holdfast.stores.{urls.scheme_of(url)}")
    try:
        store: Store = module.connect(url, environ, patience)
    except ModuleNotFoundError as error:
        raise StoreRefused(f"{url} needs the package {error.name}", hint="pip install 'holdfast[s3]'") from error
    return store
