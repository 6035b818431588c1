"""Random states: what a training loop draws from, kept, put back, and kept apart from what a sampler draws.

Covered are the global generators of Python, NumPy and torch (the CPU and every CUDA device). A generator that a
script makes for itself is covered when it is given to `Run` by name.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import Any

import torch

try:
    import numpy as np
except ImportError:
    np = None  # type: ignore[assignment]


def derive(seed: int, *parts: Any) -> int:
    """A 63-bit seed that belongs to `parts` (strings and integers) under `seed`."""
    digest = hashlib.blake2b(repr((seed, *parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_globals(seed: int) -> None:
    """Begin the global CPU generators of Python, NumPy and torch at `seed`. Some 20 µs."""
    random.seed(seed)
    torch.default_generator.manual_seed(seed)
    if np is not None:
        np.random.seed([seed & 0xFFFFFFFF, seed >> 32])


def capture() -> dict[str, Any]:
    """Every global random state, as values that `checkpoint.state` can hold."""
    version, words, gauss = random.getstate()
    state: dict[str, Any] = {
        "python": {"version": version, "words": torch.tensor(words, dtype=torch.int64), "gauss": gauss},
        "torch": torch.get_rng_state(),
    }
    if np is not None:
        state["numpy"] = np.random.get_state(legacy=False)
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore(state: dict[str, Any]) -> list[str]:
    """Put back what `capture` returned; says, a sentence each, what this machine cannot take."""
    python = state["python"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    torch.set_rng_state(state["torch"])
    if np is not None and "numpy" in state:
        np.random.set_state(state["numpy"])
    stored = state.get("cuda", [])
    here = torch.cuda.device_count() if stored else 0
    for index, device_state in enumerate(stored[:here]):
        torch.cuda.set_rng_state(device_state, index)
    if here < len(stored):
        return [f"random states of {len(stored)} CUDA devices are stored and {here} devices are here"]
    return []


class Stream:
    """A random stream of its own. Inside `with stream:` the global CPU generators and `generators` belong to it.

    Outside they are as they were before, so that drawing from the stream is invisible to the training loop.
    Entering and leaving costs some 100 µs each with NumPy.
    """

    def __init__(self, seed: int, generators: Sequence[torch.Generator] = ()) -> None:
        self._generators = tuple(generators)
        self._seed: int | None = seed  # until it is entered for the first time
        self._own: tuple[Any, ...] = ()
        self._others: list[tuple[Any, ...]] = []

    def __enter__(self) -> None:
        self._others.append(self._get())
        if self._seed is None:
            self._set(self._own)
            return
        seed_globals(self._seed)
        for number, generator in enumerate(self._generators):
            generator.manual_seed(derive(self._seed, "generator", number))
        self._seed = None

    def __exit__(self, *_error: object) -> None:
        self._own = self._get()
        self._set(self._others.pop())

    def _get(self) -> tuple[Any, ...]:
        numpy = np.random.get_state(legacy=False) if np is not None else None
        own = [generator.get_state() for generator in self._generators]
        return random.getstate(), torch.get_rng_state(), numpy, own

    def _set(self, states: tuple[Any, ...]) -> None:
        python, cpu, numpy, own = states
        random.setstate(python)
        torch.set_rng_state(cpu)
        if np is not None:
            np.random.set_state(numpy)
        for generator, state in zip(self._generators, own, strict=True):
            generator.set_state(state)
