"""What is done with each entry of a manifest, given what is there. Pure.

What a sync has left may be replaced by a later one. What somebody else made or changed there is kept, and told, unless
the user says otherwise; a folder is never replaced with all that it holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from holdfast.sync.known import Brought, Signature
from holdfast.sync.manifest import FILE, FOLDER, LINK, Entry, folded

OTHER = "o"  # a device, a socket, a pipe


class Do(Enum):
    """With one entry."""

    NOTHING = "nothing"
    BRING = "bring"  # the bytes of a file
    MAKE = "make"  # a folder
    LINK = "link"
    MEND = "mend"  # permissions and time
    KEEP = "keep"  # what is there


@dataclass(frozen=True, slots=True)
class Here:
    """What lies at a path now. content: as of an Entry, "" for a file whose size alone shows that it is another."""

    kind: str
    mode: int
    mtime_ns: int
    signature: Signature
    content: str = ""

    @property
    def token(self) -> str:
        """Equal to that of an Entry where kind and content are."""
        return f"{self.kind}:{self.content}"


@dataclass(frozen=True, slots=True)
class Step:
    """One entry and what is done with it; `here` is what that was decided on."""

    entry: Entry
    do: Do
    here: Here | None = None
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the user allows to happen to the folder that is written to."""

    delete: bool = False  # what an earlier sync brought, and is gone where it came from
    overwrite: bool = False  # files and links that were made or changed there
    dry_run: bool = False


def decide(
    entries: Sequence[Entry],
    here: Mapping[str, Here],
    brought: Mapping[str, Brought],
    options: Options,
    twins: Mapping[str, str],
) -> list[Step]:
    """One step an entry. twins: paths that would be one with another here, and which."""
    steps = []
    kept: set[str] = set()  # what is no folder, though it should be one: nothing goes below
    for entry in entries:
        there = here.get(entry.path)
        if entry.path in twins:
            step = Step(entry, Do.KEEP, there, f"here it would be one with {twins[entry.path]}")
        elif entry.above in kept:
            step = Step(entry, Do.KEEP, there)  # its folder is told
        else:
            step = _step(entry, there, brought.get(entry.path, Brought()), options)
        if step.do is Do.KEEP:
            kept.add(entry.path)
        steps.append(step)
    return steps


def twins(entries: Sequence[Entry]) -> dict[str, str]:
    """Paths that a file system without regard to case or Unicode form takes for an earlier one, and which."""
    first: dict[str, str] = {}
    found = {}
    for entry in entries:
        one = first.setdefault(folded(entry.path), entry.path)
        if one != entry.path:
            found[entry.path] = one
    return found


def _step(entry: Entry, there: Here | None, known: Brought, options: Options) -> Step:
    fresh = {FILE: Do.BRING, FOLDER: Do.MAKE, LINK: Do.LINK}[entry.kind]
    if there is None:
        return Step(entry, fresh)
    if there.token == entry.token:
        return Step(entry, Do.MEND if _differs(entry, there, known) else Do.NOTHING, there)
    if there.kind == FOLDER:
        if options.delete and known.agrees(there.token):
            return Step(entry, fresh, there)  # if all that it holds is deleted
        return Step(entry, Do.KEEP, there, "a folder is there")
    if known.agrees(there.token) or (options.overwrite and there.kind != OTHER):
        return Step(entry, fresh, there)
    return Step(entry, Do.KEEP, there, _why(there, known))


def _differs(entry: Entry, there: Here, known: Brought) -> bool:
    if entry.kind == FILE:
        return (entry.mode, entry.mtime_ns) != (there.mode, there.mtime_ns)
    return (
        entry.kind == FOLDER and entry.mode != there.mode and bool(known.source)
    )  # a folder of somebody's stays as it is


def _why(there: Here, known: Brought) -> str:
    if there.kind == OTHER:
        return "neither file, folder nor link is there"
    return "it was changed there" if known.content else "it was there before, and is another"
