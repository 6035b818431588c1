"""The lease: one live attempt may commit, and it says what it resumed from.

Taking it raises the term. The same claim (one attempt of the trainer) gets the same lease again, so that every rank
and every retry of one attempt continues from the same checkpoint. Exclusion on one machine is the shim's lock.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from holdfast.checkpoint import canonical
from holdfast.checkpoint.canonical import Damaged, NewerFormat, is_count
from holdfast.checkpoint.folder import Folder
from holdfast.checkpoint.lineage import Position

VERSION = 1
MAX_LEASE_BYTES = 64 << 10
_NAME = re.compile(r"(\d{6,15})-([0-9a-f]{64})\.json\Z", re.ASCII)
_FIELDS = {"attempt", "base", "claim", "owner", "term", "time_s", "version"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """The copy in memory that an attempt continued from, newer than or equal to the `base` of its lease."""

    term: int
    sequence: int
    save_id: str

    @property
    def position(self) -> Position:
        """Where the copy stands among the checkpoints."""
        return Position(self.term, self.sequence)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """`base`: the newest checkpoint of the line that is continued, None for none. `owner`: pid and host, for people.

    `memory` is set when the attempt continued from a copy in memory instead of `base` itself.
    """

    term: int
    claim: str
    attempt: int
    base: Position | None
    owner: dict[str, Any]
    time_s: float
    memory: Memory | None = None

    @property
    def raw(self) -> bytes:
        """The file's contents."""
        return canonical.encode(
            {
                "version": VERSION,
                "term": self.term,
                "claim": self.claim,
                "attempt": self.attempt,
                "base": self.base and self.base.to_json(),
                "owner": self.owner,
                "time_s": self.time_s,
                **({"memory": asdict(self.memory)} if self.memory is not None else {}),
            }
        )

    @property
    def file_name(self) -> str:
        """Under `leases/`."""
        return f"{self.term:06d}-{canonical.digest(self.raw)}.json"


def folder(root: Path) -> Path:
    """Where leases lie below the checkpoint folder."""
    return root / "leases"


def term_of(file_name: str) -> int | None:
    """The term in a lease's file name; None for a name that no lease has."""
    found = _NAME.match(file_name)
    return int(found[1]) if found else None


def parse(file_name: str, raw: bytes) -> Lease:
    """The lease called `file_name` with the contents `raw`. Raises Damaged, NewerFormat."""
    term, what = term_of(file_name), f"lease {file_name[:19]}"
    if term is None or f"-{canonical.digest(raw)}.json" not in file_name:
        raise Damaged(f"{what} does not match the hash in its name")
    found = canonical.decode(raw, what)
    if found.get("version") != VERSION and is_count(found.get("version"), least=1):
        raise NewerFormat(what, found["version"])
    if (
        set(found) - {"memory"} != _FIELDS
        or found["version"] != VERSION
        or found["term"] != term
        or not _is_sound(found)
    ):
        raise Damaged(f"{what} has other fields than a lease has")
    base = found["base"]
    return Lease(
        term=term,
        claim=found["claim"],
        attempt=found["attempt"],
        base=Position(base["term"], base["sequence"]) if base is not None else None,
        owner=found["owner"],
        time_s=found["time_s"],
        memory=Memory(**found["memory"]) if "memory" in found else None,
    )


def _is_sound(found: dict[str, Any]) -> bool:
    base = found["base"]
    return (
        isinstance(found["claim"], str)
        and is_count(found["attempt"])
        and isinstance(found["owner"], dict)
        and type(found["time_s"]) in (int, float)
        and ("memory" not in found or _is_memory(found["memory"]))
        and (base is None or (isinstance(base, dict) and all(is_count(base.get(k)) for k in ("term", "sequence"))))
    )


def _is_memory(found: Any) -> bool:
    return (
        isinstance(found, dict)
        and set(found) == {"term", "sequence", "save_id"}
        and is_count(found["term"])
        and is_count(found["sequence"])
        and isinstance(found["save_id"], str)
    )


def write(into: Folder, lease: Lease) -> None:
    """Make `lease` durable. Raises OSError, FileExistsError."""
    into.put(f"leases/{lease.file_name}", lease.raw)
