"""Copy a working directory: what the ignore files leave, up to a bound.

Files share their blocks with the originals where the file system can (reflink), so a snapshot costs next to nothing
there. Links stay links: one that points inside keeps its text, a relative one that points outside is made absolute, so
that it still leads to the same place. Sockets, pipes and devices are not code and are counted as skipped.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from holdfast.errors import UsageError
from holdfast.units import show_size
from holdfast.workspace.walking import Found, walk

MAX_BYTES = 2 << 30
MAX_FILES = 100_000
_FICLONE = 0x40049409  # linux/fs.h: _IOW(0x94, 9, int)


class TooBig(UsageError):
    """More than a snapshot of code should hold; the message names the biggest folders."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """What a snapshot holds."""

    files: int
    size_bytes: int
    skipped: tuple[str, ...] = ()  # neither file, folder nor link


def snapshot(
    workdir: Path, into: Path, *, avoid: Path, max_bytes: int = MAX_BYTES, max_files: int = MAX_FILES
) -> Copied:
    """Copy `workdir` to the new folder `into`, leaving out the folder `avoid` (where runs are kept).

    Raises TooBig before anything is copied, UsageError when a file cannot be read, OSError when one cannot be written.
    """
    found: list[Found] = []
    skipped: list[Found] = []
    for each in _guarded(walk(workdir, avoid.resolve()), workdir, max_bytes, max_files):
        kept = stat.S_ISREG(each.mode) or stat.S_ISDIR(each.mode) or stat.S_ISLNK(each.mode)
        (found if kept else skipped).append(each)
    into.mkdir(mode=0o700)
    files = [each for each in found if not stat.S_ISDIR(each.mode)]
    for each in found:
        _copy(workdir, each, into)
    return Copied(
        files=len(files),
        size_bytes=sum(each.size_bytes for each in files),
        skipped=tuple(each.path for each in skipped),
    )


def _guarded(found: Iterator[Found], root: Path, max_bytes: int, max_files: int) -> Iterator[Found]:
    """Pass everything on, unless it is too much; then count on a while to name the culprits."""
    sizes: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for each in found:
        first = each.path.partition("/")[0]
        sizes[first] += each.size_bytes
        counts[first] += 1
        if counts.total() > 2 * max_files:
            break
        if sizes.total() <= max_bytes and counts.total() <= max_files:
            yield each
    if sizes.total() > max_bytes or counts.total() > max_files:
        raise _too_big(root, sizes, counts, max_bytes, max_files)


def _too_big(root: Path, sizes: Counter[str], counts: Counter[str], max_bytes: int, max_files: int) -> TooBig:
    by = sizes if sizes.total() > max_bytes else counts
    biggest = [name for name, _ in by.most_common(3)]
    named = ", ".join(f"{name} ({show_size(sizes[name])}, {counts[name]} files)" for name in biggest)
    return TooBig(
        f"{root} is too big for a snapshot of code: {show_size(sizes.total())} in {counts.total()} files, "
        f"the bounds are {show_size(max_bytes)} and {max_files}; biggest: {named}",
        hint=f"add {'/ or '.join(biggest)}/ to .holdfastignore and give data by an absolute path",
    )


def _copy(root: Path, found: Found, into: Path) -> None:
    source, target = root / found.path, into / found.path
    if stat.S_ISDIR(found.mode):
        target.mkdir(mode=0o700)
        return
    try:
        if stat.S_ISLNK(found.mode):
            target.symlink_to(_link_text(root, source))
        else:
            _copy_file(source, target)
    except PermissionError as error:
        raise UsageError(f"{source} cannot be read", hint="add it to .holdfastignore") from error
    except FileNotFoundError:
        return  # gone since it was listed


def _link_text(root: Path, link: Path) -> str:
    pointed = link.readlink()
    text = str(pointed)
    if pointed.is_absolute():
        return text
    target = os.path.normpath(link.parent / pointed)
    inside = target == str(root) or target.startswith(f"{root}/")
    return text if inside else target


def _copy_file(source: Path, target: Path) -> None:
    with source.open("rb") as reading, target.open("xb") as writing:
        try:
            fcntl.ioctl(writing.fileno(), _FICLONE, reading.fileno())
        except OSError:
            shutil.copyfileobj(reading, writing, 1 << 20)
    shutil.copystat(source, target, follow_symlinks=False)
    target.chmod((target.stat().st_mode & 0o700) | 0o600)
