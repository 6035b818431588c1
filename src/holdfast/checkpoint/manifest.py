"""The manifest: what one checkpoint consists of. Its presence under its final name is the commit.

Canonical JSON whose hash is part of its file name, `TTTTTT-SSSSSSSS-<blake3>.json`, so a manifest is whole or it is
told. Of every rank it holds the slot table as the rank wrote it, and for each chunk the pack and the offset it lies at.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from holdfast.checkpoint import canonical, pack
from holdfast.checkpoint.canonical import Damaged, NewerFormat, is_count, is_hash
from holdfast.checkpoint.lineage import Position
from holdfast.checkpoint.table import MAX_WORLD, check_chunk, check_head
from holdfast.fsio import BLOCK

VERSION = 1
MAX_MANIFEST_BYTES = 64 << 20
_FIELDS = {"base", "format", "packs", "parent", "ranks", "sequence", "term", "version"}
_NAME = re.compile(r"(\d{6,15})-(\d{8,15})-([0-9a-f]{64})\.json\Z", re.ASCII)


@dataclass(frozen=True, slots=True)
class PackEntry:
    """A pack that the checkpoint needs, and its exact length in bytes."""

    name: str
    size_bytes: int


@dataclass(frozen=True)
class Manifest:
    """One checkpoint. `ranks` in order: `{"table": slot table without chunks, "chunks": […]}`.

    A chunk is as in the slot table, except: `pack` is an index into `packs`, `offset` that of its record in there,
    `id` the BLAKE3 of its bytes.
    """

    position: Position
    parent: Position | None
    base: Position | None  # what its term resumed from: so that the line survives the loss of a lease
    packs: tuple[PackEntry, ...]
    ranks: tuple[dict[str, Any], ...]
    rewritten: int = 0  # how often it was repacked: of two manifests of one checkpoint the higher one stays

    @property
    def head(self) -> dict[str, Any]:
        """Rank 0's table: run, save_id, step, epoch, time_s, reason, metrics, world, final, state."""
        table: dict[str, Any] = self.ranks[0]["table"]
        return table

    @cached_property
    def raw(self) -> bytes:
        """The file's contents."""
        fields = {
            "format": "holdfast manifest",
            "version": VERSION,
            **self.position.to_json(),
            "parent": self.parent and self.parent.to_json(),
            "base": self.base and self.base.to_json(),
            "packs": [{"name": entry.name, "bytes": entry.size_bytes} for entry in self.packs],
            "ranks": list(self.ranks),
        }
        return canonical.encode({**fields, "rewritten": self.rewritten} if self.rewritten else fields)

    @cached_property
    def chunks_by_pack(self) -> list[list[dict[str, Any]]]:
        """For each of `packs` the chunks of all ranks that lie in it."""
        found: list[list[dict[str, Any]]] = [[] for _ in self.packs]
        for part in self.ranks:
            for chunk in part["chunks"]:
                found[chunk["pack"]].append(chunk)
        return found

    @property
    def file_name(self) -> str:
        """Under `manifests/`."""
        return f"{self.position.term:06d}-{self.position.sequence:08d}-{canonical.digest(self.raw)}.json"


def folder(root: Path) -> Path:
    """Where manifests lie below the checkpoint folder."""
    return root / "manifests"


def position_of(file_name: str) -> Position | None:
    """The position in a manifest's file name; None for a name that no manifest has."""
    found = _NAME.match(file_name)
    return Position(int(found[1]), int(found[2])) if found else None


def parse(file_name: str, raw: bytes) -> Manifest:
    """The manifest called `file_name` with the contents `raw`. Raises Damaged, NewerFormat."""
    position = position_of(file_name)
    what = f"manifest {file_name[:28]}"
    if position is None or f"-{canonical.digest(raw)}.json" not in file_name:
        raise Damaged(f"{what} does not match the hash in its name")
    found = canonical.decode(raw, what)
    if found.get("version") != VERSION and is_count(found.get("version"), least=1):
        raise NewerFormat(what, found["version"])
    rewritten = found.pop("rewritten", None)
    sound = is_count(found.get("version"), least=1) and (rewritten is None or is_count(rewritten, least=1))
    if set(found) != _FIELDS or found["format"] != "holdfast manifest" or not sound:
        raise Damaged(f"{what} has other fields than a manifest has")
    if _position(found, what) != position:
        raise Damaged(f"{what} belongs to another position")
    packs = _packs(found["packs"], what)
    _check_ranks(found["ranks"], packs, what)
    return Manifest(
        position=position,
        parent=_position(found["parent"], what) if found["parent"] is not None else None,
        base=_position(found["base"], what) if found["base"] is not None else None,
        packs=packs,
        ranks=tuple(found["ranks"]),
        rewritten=rewritten or 0,
    )


def _position(found: Any, what: str) -> Position:
    if not isinstance(found, dict) or not all(is_count(found.get(key)) for key in ("term", "sequence")):
        raise Damaged(f"{what} has a malformed position")
    return Position(found["term"], found["sequence"])


def _packs(found: Any, what: str) -> tuple[PackEntry, ...]:
    if not isinstance(found, list):
        raise Damaged(f"{what} has no list of packs")
    for entry in found:
        sound = isinstance(entry, dict) and set(entry) == {"name", "bytes"} and is_hash(entry["name"])
        if not sound or not is_count(entry["bytes"], least=BLOCK, most=pack.MAX_PACK_BYTES):
            raise Damaged(f"{what} names an impossible pack")
    return tuple(PackEntry(entry["name"], entry["bytes"]) for entry in found)


def _check_ranks(found: Any, packs: tuple[PackEntry, ...], what: str) -> None:
    if not isinstance(found, list) or not 1 <= len(found) <= MAX_WORLD:
        raise Damaged(f"{what} has no list of ranks")
    for rank, part in enumerate(found):
        if not isinstance(part, dict) or set(part) != {"table", "chunks"} or not isinstance(part["table"], dict):
            raise Damaged(f"{what} has a malformed part for rank {rank}")
        check_head(part["table"], what)
        if (part["table"]["rank"], part["table"]["world"]) != (rank, len(found)) or "chunks" in part["table"]:
            raise Damaged(f"{what} has rank {part['table']['rank']} in the place of rank {rank} of {len(found)}")
        if not isinstance(part["chunks"], list):
            raise Damaged(f"{what} has no list of chunks for rank {rank}")
        for chunk in part["chunks"]:
            _check_place(chunk, packs, what)


def _check_place(chunk: Any, packs: tuple[PackEntry, ...], what: str) -> None:
    check_chunk(chunk, what)
    if not is_hash(chunk.get("id")) or not is_count(chunk.get("pack"), most=len(packs) - 1):
        raise Damaged(f"{what} has a chunk without an id or a pack")
    offset = chunk.get("offset")
    if not is_count(offset) or offset % BLOCK or offset + BLOCK > packs[chunk["pack"]].size_bytes:
        raise Damaged(f"{what} has a chunk outside its pack")
