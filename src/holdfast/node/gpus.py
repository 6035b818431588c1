"""The book of a person and machine: which run has which device, and who waits. `gpus.json`, changed under a lock.

Runs that nothing carries any more are struck out by whoever looks, and a book of another boot is empty, so nobody has
to tidy up after the dead. What is lost with a cleaned /tmp is written again by the runs themselves.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from holdfast import fsio, process, runs
from holdfast.node import sweep
from holdfast.runs import RunDir
from holdfast.turn import Book, Waiting
from holdfast.units import BadQuantity, parse_accelerators, write_accelerators

VERSION = 1


def change(edit: Callable[[Book], Book], *, within_s: float = 5.0) -> Book:
    """Edit the book, the dead struck out beforehand; the book as it is then.

    Raises BlockingIOError when somebody has held it for `within_s`, NotOurs when the folder is another user's.
    """
    folder = runs.runtime_home()
    runs.make_private(folder)
    with fsio.lock_file(folder / "gpus.lock", wait_s=within_s):
        before = _read(folder / "gpus.json")
        after = edit(_living(before))
        if after != before:
            fsio.replace(folder / "gpus.json", json.dumps(_to_json(after), indent=1).encode())
        return after


def look() -> Book:
    """The book as it is, the dead struck out. Raises as `change`."""
    return change(lambda book: book)


def _living(book: Book) -> Book:
    named = {*book.claims.values(), *(one.dir for one in book.waiting)}
    for run in sorted(named):
        if not _lives(RunDir(Path(run))):
            book = book.without(run)
    return book


def _lives(run: RunDir) -> bool:
    """Whether any process of ours or of an attempt is left; an attempt also when the runtime folder is gone."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads((run.runtime / "processes.json").read_text())
        roles = [found.get(role) for role in ("shim", "supervisor", "archiver", "trainer")]
        if any(who and process.alive(process.Identity(who["pid"], who["start_ticks"])) for who in roles):
            return True
    return bool(sweep.members(run.root))


def _read(path: Path) -> Book:
    """The book of this boot; an empty one where there is none, or none that can be read."""
    try:
        raw = json.loads(path.read_text())
        if raw["version"] != VERSION or raw["boot"] != process.boot_id():
            return Book()
        waiting = [_waiting(one) for one in raw["waiting"]]
        return Book(claims={str(uuid): str(run) for uuid, run in raw["claims"].items()}, waiting=tuple(waiting))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, BadQuantity):
        return Book()


def _waiting(raw: dict[str, Any]) -> Waiting:
    return Waiting(dir=str(raw["dir"]), wants=parse_accelerators(raw["wants"]), since_s=float(raw["since_s"]))


def _to_json(book: Book) -> dict[str, Any]:
    waiting = [{"dir": one.dir, "wants": write_accelerators(one.wants), "since_s": one.since_s} for one in book.waiting]
    return {"version": VERSION, "boot": process.boot_id(), "claims": dict(book.claims), "waiting": waiting}
