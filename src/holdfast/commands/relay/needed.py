"""What the verbs of `holdfast relay` need beside holdfast itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from holdfast.errors import UsageError


@contextmanager
def websockets_needed() -> Iterator[None]:
    """Say what to install where the package is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UsageError(f"the relay needs the package {error.name}", hint="pip install 'holdfast[relay]'") from error
