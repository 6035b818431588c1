"""A family of classes, a file each."""

from __future__ import annotations

from types import ModuleType
from typing import Any


def made(module: ModuleType, kind: type[Any]) -> Any:
    """An instance of the one subclass of `kind` that `module` defines. Raises TypeError when that is not one."""
    classes = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, kind) and value.__module__ == module.__name__
    ]
    if len(classes) != 1:
        raise TypeError(f"{module.__name__} holds {len(classes)} classes of {kind.__name__} instead of one")
    return classes[0]()
