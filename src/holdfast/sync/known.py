"""What is remembered of a folder from one sync to the next, in `$HOLDFAST_HOME/sync/<hash of its path>/`.

hashes.json   contents of files whose status has not changed since they were read; only a guess, and only saves time
brought.json  path → [content, coming, source] of `Brought`: what was made or changed there is told from it
source        16 hexadecimal digits: by this name the folder is known where it is brought to
lock          flock of the sync that writes to the folder
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from blake3 import blake3

from holdfast import fsio, runs
from holdfast.errors import HoldfastError, LeaseHeld
from holdfast.sync.tree import Tree

RECENT_NS = 2_000_000_000  # two writes this close may leave one time: no status younger than this is believed
LOCK_S = 75.0  # longer than a sync whose connection was cut goes on
_READ_BYTES = 1 << 20
_TRIES = 3
_VERSION = 1
FULL = (errno.ENOSPC, errno.EDQUOT)

Signature: TypeAlias = tuple[int, int, int, int]


class Changing(HoldfastError):
    """A file is written to while it is read."""


def signature(status: os.stat_result) -> Signature:
    """What changes when a file is written to: size, mtime, inode and ctime."""
    return status.st_size, status.st_mtime_ns, status.st_ino, status.st_ctime_ns


def place_of(root: Path) -> Path:
    """The folder with what is known of `root`, made if it must be."""
    place = runs.home() / "sync" / hashlib.blake2b(os.fsencode(root.resolve()), digest_size=8).hexdigest()
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    return place


def source_of(place: Path) -> str:
    """The name by which a folder is known where it is brought to; the same for ever."""
    path = place / "source"
    with contextlib.suppress(FileExistsError):
        fsio.create(path, secrets.token_hex(8).encode())
    return path.read_text()


@contextlib.contextmanager
def locked(place: Path, root: Path) -> Iterator[None]:
    """Nobody else writes to the folder. Raises LeaseHeld when somebody does for too long."""
    path = place / "lock"
    try:
        lock = fsio.lock_file(path, wait_s=LOCK_S)
    except BlockingIOError:
        raise LeaseHeld(str(root), fsio.signer(path), hint="another sync writes there: let it end") from None
    with lock:
        lock.sign()
        yield


class Hashes:
    """Contents by path, for as long as the status stays."""

    def __init__(self, place: Path) -> None:
        self._path = place / "hashes.json"
        self._known = _read(self._path)
        self._used: dict[str, Any] = {}

    def read(self, tree: Tree, path: str, status: os.stat_result) -> tuple[str, os.stat_result]:
        """BLAKE3 of a file, and the status it had all the while; opened only where its status tells nothing.

        Raises Changing, OSError.
        """
        known = self._known.get(path)
        if isinstance(known, list) and known[:4] == list(signature(status)):
            self._used[path] = known
            return str(known[4]), status
        descriptor = tree.open(path)
        try:
            for _ in range(_TRIES):
                before = os.fstat(descriptor)
                digest = _digest(descriptor)
                if signature(os.fstat(descriptor)) == signature(before):
                    self._note(path, before, digest)
                    return digest, before
        finally:
            os.close(descriptor)
        raise Changing(f"{path} is written to while it is read")

    def _note(self, path: str, status: os.stat_result, digest: str) -> None:
        if max(status.st_mtime_ns, status.st_ctime_ns) < time.time_ns() - RECENT_NS:
            self._used[path] = [*signature(status), digest]

    def save(self) -> None:
        """Keep what was of use now. On a full disk nothing new is kept: files are then read again the next time."""
        if self._used == self._known:
            return
        try:
            fsio.replace(self._path, _written(self._used))
        except OSError as error:
            if error.errno not in FULL:
                raise
        else:
            self._known = self._used


@dataclass(frozen=True, slots=True)
class Brought:
    """What was last agreed on for a path. Both contents are `Entry.token`s; "" for none."""

    content: str = ""
    coming: str = ""  # was about to be written when this was noted: perhaps it was
    source: str = ""  # who brought it; "" when it was there before, and the same

    def agrees(self, token: str) -> bool:
        """Whether that is what a sync has left there."""
        return token in (self.content, self.coming)


class Record:
    """What earlier syncs brought, by path. Raises HoldfastError when it cannot be read."""

    def __init__(self, place: Path) -> None:
        self._path = place / "brought.json"
        try:
            self.of = {path: Brought(*texts) for path, texts in _read(self._path, must=True).items()}
        except (TypeError, ValueError) as error:
            hint = f"remove {self._path}: what differs is kept then, and told"
            raise HoldfastError(f"{self._path} cannot be read: {error}", hint=hint) from error
        self._saved = dict(self.of)

    def save(self) -> None:
        """Durably."""
        if self.of != self._saved:
            texts = {path: (one.content, one.coming, one.source) for path, one in self.of.items()}
            fsio.replace(self._path, _written(texts))
            self._saved = dict(self.of)


def _digest(descriptor: int) -> str:
    os.lseek(descriptor, 0, os.SEEK_SET)
    hasher = blake3()
    while data := os.read(descriptor, _READ_BYTES):
        hasher.update(data)
    return hasher.hexdigest()


def _written(files: dict[str, Any]) -> bytes:
    return json.dumps({"version": _VERSION, "files": files}, separators=(",", ":")).encode()


def _read(path: Path, *, must: bool = False) -> dict[str, Any]:
    """`files` of one of ours; empty when there is none, or, unless it `must`, when it is damaged or not of our time."""
    try:
        known = json.loads(path.read_bytes())
        if known["version"] != _VERSION:
            raise ValueError(f"it has version {known['version']}, not {_VERSION}")
        return dict(known["files"])
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError):
        if must:
            raise
        return {}
