"""Places that keep objects: a file a scheme, `Store` is what they have in common.

A module is named after its scheme and has `connect(url, environ, patience) -> Store`. Credentials come from the
environment and from the files that the provider's own tools use; they are never part of a URL, of a message or of a
file of ours.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from urllib.parse import urlsplit

from holdfast.errors import StoreRefused, UsageError
from holdfast.stores.base import Entry, Store, enforces_create
from holdfast.stores.retry import IMPATIENT, PATIENT, Patience

__all__ = ["IMPATIENT", "PATIENT", "SCHEMES", "Entry", "Patience", "Store", "check", "connect", "enforces_create"]

SCHEMES = ("s3", "oss", "gs", "az", "file")


def check(url: str) -> str:
    """The scheme of `url`. Raises UsageError for one that no module knows, for credentials in it, for no bucket."""
    if url.startswith("/"):
        return "file"
    parts = urlsplit(url)
    if not parts.scheme:
        raise UsageError(f"{url!r} is neither a URL nor an absolute path", hint="s3://BUCKET/PATH, or /mnt/nas/PATH")
    if parts.scheme not in SCHEMES:
        near = difflib.get_close_matches(parts.scheme, SCHEMES, n=1, cutoff=0.5)
        said = f"; did you mean {near[0]}://?" if near else ""
        raise UsageError(
            f"no store is called {parts.scheme}://{said}", hint=f"one of {', '.join(f'{one}://' for one in SCHEMES)}"
        )
    if "@" in parts.netloc or parts.query:
        raise UsageError(
            f"the {parts.scheme}:// URL holds more than a bucket and a path", hint="credentials go into the environment"
        )
    if parts.scheme == "file" and (parts.netloc or not parts.path.startswith("/")):
        raise UsageError(f"{url} needs an absolute path: file:///mnt/nas/PATH")
    if parts.scheme != "file" and not parts.netloc:
        raise UsageError(f"{url} names no bucket", hint=f"{parts.scheme}://BUCKET/PATH")
    return parts.scheme


def connect(url: str, environ: Mapping[str, str], patience: Patience = PATIENT) -> Store:
    """The store at `url`; nothing is sent yet. Raises UsageError, StoreRefused."""
    module = importlib.import_module(f"holdfast.stores.{check(url)}")
    try:
        store: Store = module.connect(url, environ, patience)
    except ModuleNotFoundError as error:
        raise StoreRefused(f"{url} needs the package {error.name}", hint="pip install 'holdfast[s3]'") from error
    return store
