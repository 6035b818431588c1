"""What there is to bring: a manifest of a folder, and what cannot be part of one."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from holdfast.errors import UsageError
from holdfast.sync.known import Changing, Hashes
from holdfast.sync.manifest import FILE, FOLDER, LINK, Entry, leads_out, why_not
from holdfast.sync.tree import Tree
from holdfast.workspace.walking import Found, walk


@dataclass(frozen=True, slots=True)
class Line:
    """What became of one path: `brought`, `made`, `deleted`, `kept`, `skipped` or `changing`; perhaps why."""

    what: str
    path: str
    why: str = ""


def scan(tree: Tree, hashes: Hashes, avoid: Path) -> Iterator[Entry | Line]:
    """Entries, folders before what they hold; a line for each thing that is left out though no rule says so.

    Raises UsageError for what cannot be read.
    """
    skipped: set[str] = set()
    for found in walk(tree.root, avoid.resolve()):
        if found.path.rpartition("/")[0] in skipped:
            each: Entry | Line | None = None  # its folder was told
        else:
            each = _entry(tree, found, hashes)
        if not isinstance(each, Entry):
            skipped.add(found.path)
        if each is not None:
            yield each


def _entry(tree: Tree, found: Found, hashes: Hashes) -> Entry | Line | None:
    """None: gone since it was listed."""
    why = why_not(found.path)
    if why:
        return Line("skipped", found.path, why)
    try:
        if stat.S_ISDIR(found.mode):
            return Entry(found.path, FOLDER, found.mode & 0o777 | 0o700)  # so that it can be written to there
        if stat.S_ISLNK(found.mode):
            return _link(found.path, tree.points_to(found.path))
        if stat.S_ISREG(found.mode):
            return _file(tree, found, hashes)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as error:
        raise UsageError(f"{tree.root / found.path} cannot be read", hint="add it to .holdfastignore") from error
    except Changing:
        return Line("changing", found.path, "it is written to while it is read")
    return Line("skipped", found.path, "it is neither file, folder nor link")


def _link(path: str, text: str) -> Entry | Line:
    if leads_out(path, text):
        return Line("skipped", path, f"it points out of the folder, to {text}")
    return Entry(path, LINK, 0o777, content=text)


def _file(tree: Tree, found: Found, hashes: Hashes) -> Entry:
    digest, status = hashes.read(tree, found.path, found.status)
    return Entry(found.path, FILE, status.st_mode & 0o777, status.st_size, status.st_mtime_ns, digest)
