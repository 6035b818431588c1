"""Which stored name belongs to which name here, and what differs between the two sides. Pure; knows no tensors.

Wrappers put a word into the names of what they wrap: DistributedDataParallel `module.`, torch.compile `_orig_mod.`. A
name that only one side has is compared without such words.
"""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_SHOWN = 10


class Lenient(NamedTuple):
    """Shell patterns (`ema`, `model/head.*`) of what may differ between a checkpoint and what it is loaded into.

    A tensor may be of another shape where both `missing` and `unused` cover it: it stays as it is here.
    """

    missing: Sequence[str] = ()  # not in the checkpoint
    unused: Sequence[str] = ()  # in the checkpoint alone
    dtype: Sequence[str] = ()  # converted to the dtype here


STRICT = Lenient()


class Described(NamedTuple):
    """A tensor by dtype (`float32`) and shape; of anything else the type's name, and no shape."""

    dtype: str
    shape: tuple[int, ...] | None

    def __str__(self) -> str:
        return self.dtype if self.shape is None else f"{self.dtype} {self.shape}"


def bare(name: str) -> str:
    """`module.encoder._orig_mod.weight` → `encoder.weight`."""
    return ".".join(word for word in name.split(".") if word not in WRAPPERS)


def align(stored: Iterable[str], here: Iterable[str]) -> dict[str, str]:
    """Stored name → name here, for all that belong together: equal, or equal without the words of wrappers.

    A bare name that two names on one side share decides nothing.
    """
    left, right = list(stored), list(here)
    known, there = set(left), set(right)
    found = {name: name for name in left if name in there}
    free_here = _by_bare_name(name for name in right if name not in known)
    free_stored = _by_bare_name(name for name in left if name not in there)
    found.update({name: free_here[short] for short, name in free_stored.items() if short in free_here})
    return found


def _by_bare_name(names: Iterable[str]) -> dict[str, str]:
    listed = [(bare(name), name) for name in names]
    count = Counter(short for short, _ in listed)
    return {short: name for short, name in listed if count[short] == 1}


@dataclass(frozen=True, slots=True)
class Difference:
    """What keeps a stored state from fitting: sentences' ends, one for each name."""

    missing: tuple[str, ...] = ()  # not stored
    unused: tuple[str, ...] = ()  # only stored
    shape: tuple[str, ...] = ()
    dtype: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return any((self.missing, self.unused, self.shape, self.dtype))

    def __str__(self) -> str:
        """How many of each kind, to end a sentence, and below it a line for each name."""
        kinds = {
            "not in the checkpoint": self.missing,
            "only in the checkpoint": self.unused,
            "of another shape": self.shape,
            "of another dtype": self.dtype,
        }
        told = [(what, names) for what, names in kinds.items() if names]
        counts = ", ".join(f"{len(names)} {what}" for what, names in told)
        return "\n".join([counts, *(line for kind in told for line in _listed(*kind))])


def match(
    stored: Mapping[str, Described], here: Mapping[str, Described], lenient: Lenient = STRICT, *, prefix: str = ""
) -> tuple[dict[str, str], Difference]:
    """Stored name → name here for all that is to be loaded, and what differs beyond what `lenient` allows.

    prefix: what stands before the names in the patterns of `lenient`, such as `model/`.
    """
    aligned = align(stored, here)
    names, shape, dtype = {}, [], []
    for name, other in aligned.items():
        there, mine = stored[name], here[other]
        text = f"{other} {there} instead of {mine}"
        if there.shape != mine.shape:
            if not (allowed(prefix + name, lenient.unused) and allowed(prefix + other, lenient.missing)):
                shape.append(text)
            continue
        if there.dtype != mine.dtype and not allowed(prefix + other, lenient.dtype):
            dtype.append(text)
        names[name] = other
    taken = set(aligned.values())
    missing = [f"{n} {here[n]}" for n in here if n not in taken and not allowed(prefix + n, lenient.missing)]
    unused = [f"{n} {stored[n]}" for n in stored if n not in aligned and not allowed(prefix + n, lenient.unused)]
    return names, Difference(tuple(missing), tuple(unused), tuple(shape), tuple(dtype))


def _listed(what: str, names: Sequence[str]) -> Iterator[str]:
    yield f"  {what}:"
    yield from (f"    {name}" for name in names[:_SHOWN])
    if len(names) > _SHOWN:
        yield f"    and {len(names) - _SHOWN} more"


def allowed(name: str, patterns: Sequence[str]) -> bool:
    """Whether one of the shell patterns covers `name`."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
