"""What a folder holds, as one end tells the other. What comes from there is hostile until an `Intake` has taken it."""

from __future__ import annotations

import functools
import os
import string
import unicodedata
from dataclasses import dataclass
from typing import Any

from holdfast.errors import HoldfastError
from holdfast.workspace.ignore import ALWAYS

FILE, FOLDER, LINK = "f", "d", "l"


MOST_ENTRIES = 250_000
MOST_PATHS_BYTES = 64 << 20  # of all paths and links of a manifest
_MOST_PATH_BYTES, _MOST_NAME_BYTES, _MOST_DEPTH = 4096, 255, 200
_MOST_SIZE = 1 << 60
_MOST_MTIME_NS = 1 << 62
_HEX = frozenset(string.hexdigits.lower())


class Hostile(HoldfastError):
    """The other end said what no honest one says. Nothing of its manifest, or of that file, was used."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One file, folder or link. content: a file's BLAKE3, 64 hexadecimal digits; a link's text."""

    path: str  # relative, with /; bytes that are no UTF-8 as os.fsdecode has them
    kind: str
    mode: int = 0o700  # permission bits
    size_bytes: int = 0
    mtime_ns: int = 0
    content: str = ""

    @property
    def token(self) -> str:
        """Equal where kind and content are."""
        return f"{self.kind}:{self.content}"

    @property
    def above(self) -> str:
        """The folder it lies in; "" for the root."""
        return self.path.rpartition("/")[0]

    def encoded(self) -> list[Any]:
        """As `Intake.take` reads it."""
        return [self.path, self.kind, self.mode, self.size_bytes, self.mtime_ns, self.content]


class Intake:
    """A manifest as it comes, each entry checked alone and against those before it."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self._paths: set[str] = set()
        self._folders = {""}
        self._bytes = 0

    def take(self, told: object) -> None:
        """One more. Raises Hostile, naming it."""
        entry = _entry(told)
        why = why_not(entry.path) or _fault(entry)
        if why:
            raise Hostile(f"the other end names {entry.path!r}: {why}")
        if entry.path in self._paths:
            raise Hostile(f"the other end names {entry.path!r} twice")
        if entry.above not in self._folders:
            raise Hostile(f"the other end names {entry.path!r}, and no folder that it lies in")
        self._bytes += len(entry.path) + len(entry.content)
        if len(self.entries) >= MOST_ENTRIES or self._bytes > MOST_PATHS_BYTES:
            raise Hostile(f"the other end names more than {MOST_ENTRIES} files", hint="sync a smaller folder")
        self._paths.add(entry.path)
        if entry.kind == FOLDER:
            self._folders.add(entry.path)
        self.entries.append(entry)


def why_not(path: str) -> str:
    """Why nothing can be brought under this name; "" when it can."""
    if not _is_name(path):
        return "that is no file name"
    if len(os.fsencode(path)) > _MOST_PATH_BYTES:
        return f"that is longer than {_MOST_PATH_BYTES} bytes"
    if path.count("/") >= _MOST_DEPTH:
        return f"that lies more than {_MOST_DEPTH} folders deep"
    return next((why for part in path.split("/") if (why := _why_not_part(part))), "")


@functools.lru_cache(maxsize=1 << 14)
def _why_not_part(part: str) -> str:
    if part in ("", ".", ".."):
        return "that leads elsewhere"
    if len(os.fsencode(part)) > _MOST_NAME_BYTES:
        return f"a name in it is longer than {_MOST_NAME_BYTES} bytes"
    if _plain(part) in _NEVER:
        return f"{part!r} is never synced"
    return ""


def leads_out(path: str, text: str) -> bool:
    """Whether a link at `path` could lead out of the folder, through whatever other such links.

    Its `..` must come first, and may be as many as there are folders above it: those are real ones. A `..` that comes
    later could follow a link, and then nobody knows where it is.
    """
    parts = [part for part in text.split("/") if part not in ("", ".")]
    ups = next((at for at, part in enumerate(parts) if part != ".."), len(parts))
    return text.startswith("/") or ups > path.count("/") or ".." in parts[ups:]


def folded(path: str) -> str:
    """Equal for names that a file system without regard to case or Unicode form takes for one."""
    if path.isascii():
        return path.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def _plain(name: str) -> str:
    """As the most careless file system reads a name: without case, and without what cannot be seen (as git has it)."""
    return folded(name if name.isascii() else "".join(c for c in name if unicodedata.category(c) != "Cf"))


_NEVER = frozenset(_plain(name) for name in ALWAYS)


def _entry(told: object) -> Entry:
    if not isinstance(told, list) or len(told) != 6:
        raise Hostile("the other end sends a manifest that nobody can read")
    path, kind, mode, size, mtime, content = told
    texts, numbers = (path, kind, content), (mode, size, mtime)
    if not all(type(text) is str for text in texts) or not all(type(number) is int for number in numbers):
        raise Hostile("the other end sends a manifest that nobody can read")
    return Entry(path, kind, mode, size, mtime, content)


def _fault(entry: Entry) -> str:
    if entry.kind not in (FILE, FOLDER, LINK):
        return f"{entry.kind[:20]!r} is neither file, folder nor link"
    if not 0 <= entry.mode <= 0o777:
        return f"mode {entry.mode:#o} is more than permissions"
    if not 0 <= entry.size_bytes <= _MOST_SIZE:
        return f"{entry.size_bytes} bytes are no size"
    if abs(entry.mtime_ns) > _MOST_MTIME_NS:
        return "nothing was changed then"
    if entry.kind == FILE and (len(entry.content) != 64 or not _HEX.issuperset(entry.content)):
        return "its hash is none"
    if entry.kind == LINK and (not _is_name(entry.content) or len(os.fsencode(entry.content)) >= _MOST_PATH_BYTES):
        return "it points to what is no name"
    if entry.kind == LINK and leads_out(entry.path, entry.content):
        return f"it points out of the folder, to {entry.content!r}"
    return ""


def _is_name(text: str) -> bool:
    """Whether it is how os.fsdecode writes some bytes that a file could be called by: two spellings are two names."""
    try:
        raw = os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return bool(text) and "\0" not in text and os.fsdecode(raw) == text
