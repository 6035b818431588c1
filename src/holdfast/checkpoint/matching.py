"""Which stored entry belongs to which entry of a module, and in what the two differ.

Pure. DDP, `torch.compile`, FSDP and activation checkpointing put parts of their own into names; an entry is looked for
under its exact name first, then under its name without them.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

_ANYWHERE = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_LEADING = "module"  # DDP's; further inside a name it may be the user's own
_SHOWN = 10


class Form(NamedTuple):
    """What an entry looks like: `dtype` without `torch.`, or the type of what is no tensor, then without a shape."""

    dtype: str
    shape: tuple[int, ...] | None = None

    def __str__(self) -> str:
        return self.dtype if self.shape is None else f"{self.dtype} {self.shape}"


@dataclass(frozen=True, slots=True)
class Matched:
    """`pairs`: name in the module → name in the checkpoint. `missing` and `unused` are what is left on either side."""

    pairs: dict[str, str]
    missing: tuple[str, ...]
    unused: tuple[str, ...]
    problems: tuple[str, ...]  # a phrase for each kind of difference that was not allowed


def plain(name: str) -> str:
    """`module._orig_mod.layers.0.weight` → `layers.0.weight`."""
    parts = [part for part in name.split(".") if part not in _ANYWHERE]
    while len(parts) > 1 and parts[0] == _LEADING:
        del parts[0]
    return ".".join(parts)


def plain_names(names: Sequence[str]) -> dict[str, str]:
    """Each name → the one without what wrappers put in; the names stay where two would become one."""
    made = {name: plain(name) for name in names}
    return made if len(set(made.values())) == len(made) else {name: name for name in names}


def allowed(name: str, patterns: Sequence[str]) -> bool:
    """Whether one of the shell patterns covers `name`."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def match(
    here: Mapping[str, Form],
    stored: Mapping[str, Form],
    *,
    name: str,
    allow_missing: Sequence[str] = (),
    allow_unused: Sequence[str] = (),
) -> Matched:
    """Bring the entries of a module called `name` and those stored for it together."""
    pairs = _pairs(list(here), list(stored))
    used = set(pairs.values())
    missing = [key for key in here if key not in pairs]
    unused = [key for key in stored if key not in used]
    lacking = [f"{key} {here[key]}" for key in missing if not _is_allowed(name, key, allow_missing)]
    left = [f"{key} {stored[key]}" for key in unused if not _is_allowed(name, key, allow_unused)]
    other = {key: f"{key} {stored[pairs[key]]} instead of {here[key]}" for key in pairs}
    shapes = [said for key, said in other.items() if stored[pairs[key]].shape != here[key].shape]
    dtypes = [
        said
        for key, said in other.items()
        if stored[pairs[key]].shape == here[key].shape is not None and stored[pairs[key]].dtype != here[key].dtype
    ]
    differences = {
        "not in the checkpoint": lacking,
        "only in the checkpoint": left,
        "of another shape": shapes,
        "of another type": dtypes,
    }
    problems = tuple(f"{what}: {_first(names)}" for what, names in differences.items() if names)
    return Matched(pairs, tuple(missing), tuple(unused), problems)


def _pairs(here: Sequence[str], stored: Sequence[str]) -> dict[str, str]:
    exact = {key: key for key in set(here) & set(stored)}
    ours = plain_names([key for key in here if key not in exact])
    theirs = {made: key for key, made in plain_names([key for key in stored if key not in exact]).items()}
    found = {key: theirs[made] for key, made in ours.items() if made in theirs}
    return {key: (exact | found)[key] for key in here if key in exact or key in found}


def _is_allowed(name: str, key: str, patterns: Sequence[str]) -> bool:
    return allowed(f"{name}/{key}", patterns) or allowed(f"{name}/{plain(key)}", patterns)


def _first(names: Sequence[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
