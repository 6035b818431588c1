"""What the archiver does with a checkpoint folder besides saving: what it is asked for, and what it does when idle.

Knows no socket. Runs on the thread of `Archive`. When idle it reads one pack or manifest after the other, the one whose
last reading is longest ago first, and says what has changed on the medium since; and it writes anew what is left of
packs that are mostly not needed any more.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from holdfast.checkpoint import collect, manifest, pins, repack, survey
from holdfast.checkpoint.canonical import Damaged, is_count
from holdfast.checkpoint.lineage import Position
from holdfast.checkpoint.manifest import PackEntry
from holdfast.checkpoint.survey import CheckpointInfo, Survey
from holdfast.errors import HoldfastError, UsageError
from holdfast.fsio import get
from holdfast.node.archive import Archive, Reply, sentence_of
from holdfast.node.eventlog import EventLog

OPERATIONS = frozenset({"pin", "unpin", "remove", "retain", "prune"})
AGAIN_S = 3600.0  # what was read so recently is not read again


class Upkeep:
    """The care of one run's folder, out of its `Archive`."""

    def __init__(self, archive: Archive, log: EventLog) -> None:
        self._archive, self._log = archive, log
        self._manifests_s: dict[str, float] = {}  # file name → when it was read last, `time.monotonic()`
        self._told: set[str] = set()
        self._seen: frozenset[str] | None = None  # the manifests there were when nothing was left to repack

    # -- asked for

    def asked(self, request: Mapping[str, Any]) -> Reply:
        """Do one of `OPERATIONS`; the answer as it goes over the socket."""
        try:
            self._archive.open()
            return {"ok": True, **self._do(request)}
        except Exception as error:
            code = error.exit_code if isinstance(error, HoldfastError) else HoldfastError.exit_code
            return {"ok": False, "exit_code": code, "error": sentence_of(error), "hint": getattr(error, "hint", "")}

    def _do(self, request: Mapping[str, Any]) -> Reply:
        op, folder, keep = request["op"], self._archive.folder, self._archive.plan.keep
        if op == "retain":
            return self._removed(collect.retain(folder, keep, now_s=time.time()))
        if op == "prune":
            dry_run = request.get("dry_run") is True
            found = collect.prune(folder, keep, than_s=_number(request, "than_s"), dry_run=dry_run)
            return self._removed(found, told=not dry_run)
        position = _position(request)
        if op == "remove":
            return self._removed([collect.remove(folder, position)])
        if op == "unpin":
            pins.unpin(folder, position)
            return {}
        collect.pin(folder, position, str(request.get("reason", "")), time.time())
        return {}

    def _removed(self, removed: list[CheckpointInfo], *, told: bool = True) -> Reply:
        if told:
            self._archive.tell_removed(removed)
        return {"removed": [{**one.position.to_json(), "step": one.step} for one in removed]}

    # -- idle

    def idle(self) -> None:
        """One short piece of work, if there is any."""
        try:
            self._archive.open()
            found = survey.of(self._archive.folder)
            if not self._read_oldest(found, time.monotonic()):
                self._repack(found)
            self._tell_damage(found)
        except Exception as error:
            self._tell("no-upkeep", sentence_of(error))

    def _read_oldest(self, found: Survey, now_s: float) -> bool:
        """Read what was not read for longest; False when all of it was read lately."""
        known = self._archive.folder.known
        known.notice(survey.packs(found))
        due: list[tuple[float, CheckpointInfo | PackEntry]] = [
            (self._manifests_s.get(info.path.name, -AGAIN_S), info) for info in found.checkpoints
        ]
        packs = (entry for entry in set(survey.packs(found)) if entry.name not in known.damaged)
        due += [(known.verified_s(entry.name) or -AGAIN_S, entry) for entry in packs]
        if not due:
            return False
        oldest_s, what = min(due, key=lambda one: one[0])
        if now_s - oldest_s < AGAIN_S:
            return False
        if isinstance(what, CheckpointInfo):
            self._read_manifest(what, now_s)
        else:
            with suppress(Damaged, OSError):  # `known` remembers, and `_tell_damage` says so
                known.verify(what)
        return True

    def _read_manifest(self, info: CheckpointInfo, now_s: float) -> None:
        folder = self._archive.folder
        self._manifests_s[info.path.name] = now_s
        try:
            raw = get(folder.disk, info.path, limit_bytes=manifest.MAX_MANIFEST_BYTES, cached=False)
            manifest.parse(info.path.name, raw)
        except (Damaged, OSError, OverflowError) as error:
            folder.parsed.pop(info.path.name, None)
            self._tell("damage-found", f"{error}: {info} cannot be restored")

    def _tell_damage(self, found: Survey) -> None:
        for name, sentence in self._archive.folder.known.damaged.items():
            steps = ", ".join(str(info.step) for info in found.checkpoints if name in info.needs)
            self._tell("damage-found", f"{sentence}: a part of the checkpoints of step {steps} cannot be restored")

    def _tell(self, kind: str, message: str) -> None:
        """Once, however often it is met."""
        if message not in self._told:
            self._told.add(message)
            self._log.write("warning", id=kind, message=message)

    def _repack(self, found: Survey) -> None:
        names = frozenset(info.path.name for info in found.checkpoints)
        if names == self._seen:
            return
        done = repack.repack(self._archive.folder)
        if done is None:
            self._seen = names
        else:
            self._log.write("repacked", packs=done.packs, copied_bytes=done.copied_bytes, freed_bytes=done.freed_bytes)


def _position(request: Mapping[str, Any]) -> Position:
    if not all(is_count(request.get(name)) for name in ("term", "sequence")):
        raise UsageError(f"{request['op']} needs term and sequence")
    return Position(request["term"], request["sequence"])


def _number(request: Mapping[str, Any], name: str) -> float:
    value = request.get(name)
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise UsageError(f"{request['op']} needs {name}, a number")
    return float(value)
