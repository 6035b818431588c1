"""What a machine is sent, made or fetched here beforehand: for the first platform that there is every wheel for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from holdfast.bundle import closure
from holdfast.bundle.closure import Bundle, NoWheel
from holdfast.bundle.places import Platform

T = TypeVar("T")
Tell = Callable[[str], None]  # a sentence for a person


def first_made(
    alias: str, platforms: Sequence[Platform], tell: Tell, make: Callable[[str, Platform, Tell], T]
) -> tuple[Platform, T]:
    """The first of them for which there is every wheel, and what `make` gives for it.

    Raises NoWheel, of the last, where there is none, and what `make` raises.
    """
    first, *others = platforms
    try:
        return first, make(alias, first, tell)
    except NoWheel as error:
        if not others:
            raise
        tell(f"{alias}: {error}")
    return first_made(alias, others, tell, make)


def made(alias: str, platform: Platform, tell: Tell) -> Bundle:
    """What is pushed to `platform`, from the cache or a registry. Raises NoWheel, HoldfastError, OSError."""
    bundle = closure.cached(platform)
    if bundle is None:
        tell(f"{alias}: fetching wheels for {platform}")
        bundle = closure.bundle(platform)
    return bundle
