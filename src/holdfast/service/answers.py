"""What is asked about runs, from their supervisors and files. Runs in a child: a disk may hang, or a supervisor.

The child hands its answer over as a line of JSON, {"code", "headers"}, and the body.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from holdfast import runs
from holdfast.errors import HoldfastError, RunNotFound, UsageError
from holdfast.journal import page
from holdfast.output import Output
from holdfast.runs import RunDir

Status: TypeAlias = Callable[[RunDir], dict[str, Any]]

OUTPUT_BYTES = 1 << 20
_JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True, slots=True)
class Answer:
    """To one request."""

    code: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=lambda: _JSON)

    def packed(self) -> bytes:
        return json.dumps({"code": self.code, "headers": dict(self.headers)}).encode() + b"\n" + self.body

    @staticmethod
    def unpacked(raw: bytes) -> Answer:
        """Raises ValueError, KeyError where a child has left before it was done."""
        head, _, body = raw.partition(b"\n")
        told = json.loads(head)
        return Answer(told["code"], body, told["headers"])


def told(value: object, code: int = 200) -> Answer:
    """JSON."""
    return Answer(code, json.dumps(value).encode())


def refused(error: HoldfastError, code: int | None = None) -> Answer:
    """An error as JSON, with a status that fits."""
    fitting = 404 if isinstance(error, RunNotFound) else 400 if isinstance(error, UsageError) else 409
    return told({"error": str(error), "hint": error.hint, "exit_code": error.exit_code}, code or fitting)


def nothing_at(path: str) -> Answer:
    """404."""
    return refused(UsageError(f"there is no {path[:100]!r} here", hint="/ping, /runs, /runs/ID/status or /calls"), 404)


def answer(path: str, query: Mapping[str, str], status: Status) -> Answer:
    """GET of `/runs` and what lies below it."""
    try:
        words = path.split("/")[2:]
        if not words:
            return told({"runs": [_standing(run, status) for run in runs.every()]})
        if len(words) != 2 or not words[0]:
            return nothing_at(path)
        return _of(runs.find(words[0]), words[1], query, status) or nothing_at(path)
    except HoldfastError as error:
        return refused(error)
    except (OSError, ValueError) as error:
        return refused(HoldfastError(f"{path} cannot be answered: {error}"))


def hand_over(found: Answer) -> int:
    """On stdout of a child."""
    sys.stdout.buffer.write(found.packed())
    return 0


def _of(run: RunDir, what: str, query: Mapping[str, str], status: Status) -> Answer | None:
    if what == "status":
        return told(status(run))
    if what == "journal":
        return told(page(run.journal, _offset(query)))
    if what == "output":
        return _output(run, _offset(query))
    return None


def _standing(run: RunDir, status: Status) -> dict[str, Any]:
    """One unreadable run must not hide the others."""
    try:
        return status(run)
    except HoldfastError as error:
        return {"run": run.id, "state": "unreadable", "dir": str(run.root), "reason": str(error)}


def _output(run: RunDir, start: int) -> Answer:
    """Bytes that follow one another, from `start` or, where that was rotated away, from the end of the hole."""
    found, at = bytearray(), start
    with Output(run.output) as output:
        for piece in output.pieces(start):
            if found and (piece.data is None or len(found) >= OUTPUT_BYTES):
                break
            if piece.data is None:
                at = piece.offset + piece.length
            else:
                found += piece.data
    headers = {"Content-Type": "application/octet-stream", "X-From": str(at), "X-Next": str(at + len(found))}
    return Answer(200, bytes(found), headers)


def _offset(query: Mapping[str, str]) -> int:
    given = query.get("from", "0")
    if not given.isdecimal() or len(given) > 18:
        raise UsageError(f"from={given[:20]!r} is not a byte offset")
    return int(given)
