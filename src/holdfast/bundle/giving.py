"""A machine without a Python gets one: had first, with the wheels for it, then sent."""

from __future__ import annotations

import sys

from holdfast.bundle import probing, standalone
from holdfast.bundle.closure import Bundle
from holdfast.bundle.making import Tell, first_made, made
from holdfast.bundle.places import Platform
from holdfast.bundle.probing import Facts
from holdfast.bundle.push import Progress, push_python
from holdfast.bundle.standalone import Standalone
from holdfast.errors import HoldfastError
from holdfast.link.client import Up
from holdfast.units import show_size


def give(up: Up, found: Facts, tell: Tell, progress: Progress) -> tuple[Platform, Bundle, str]:
    """What the machine is from now on, what it needs, and the path of its Python. Raises Unfit, HostUnreachable."""
    minors = dict.fromkeys([f"{sys.version_info[0]}.{sys.version_info[1]}", standalone.WITH_EVERY_WHEEL])
    wanted = [probing.platform(up.alias, found, minor) for minor in minors]
    try:
        probing.check_plain(found)
        platform, (bundle, python) = first_made(up.alias, wanted, tell, _had)
    except HoldfastError as error:
        raise probing.no_python(up.alias, found.pythons, error) from error
    probing.check_space(up.alias, found, python.size_bytes + python.unpacked_bytes)
    tell(f"{up.alias} has no Python 3.10 or newer: it gets one of its own ({python}, {show_size(python.size_bytes)})")
    halves = (half for half in found.halves if half.name.startswith(f".{python.name}."))
    half = max(halves, key=lambda each: each.size_bytes, default=None)
    return platform, bundle, push_python(up, python, found.bundles_folder, half, progress)


def _had(alias: str, platform: Platform, tell: Tell) -> tuple[Bundle, Standalone]:
    """Raises HoldfastError, OSError."""
    python = standalone.cached(platform)
    if python is None:
        tell(f"{alias}: fetching CPython {platform.python} for {platform.machine} with {platform.libc}")
        python = standalone.fetched(platform)
    return made(alias, platform, tell), python
