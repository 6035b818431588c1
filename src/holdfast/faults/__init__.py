"""Ways to break a run on purpose: one file a fault, found by its file name. `holdfast drill` uses them."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from holdfast.faults.base import Fault


def names() -> list[str]:
    """Every fault, in alphabetical order; imports none."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base")


def load(name: str) -> Fault:
    """The fault of that name. Raises ModuleNotFoundError for a name that is not one of `names`."""
    return cast("Fault", importlib.import_module(f"{__name__}.{name}"))
