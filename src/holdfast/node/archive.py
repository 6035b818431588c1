"""What the archiver does with sealed slots: save them, and apply retention. `restoring.py` has the way back.

Knows no socket. Everything runs on one thread, one thing after the other. Nothing here is fatal: a save that fails
says so in its slot and in archiver.jsonl.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from holdfast.checkpoint import collect, commit, naming, survey, table
from holdfast.checkpoint.canonical import is_count
from holdfast.checkpoint.folder import Folder
from holdfast.checkpoint.room import Room
from holdfast.checkpoint.slots import Result, Slot, SlotSet, State
from holdfast.checkpoint.survey import CheckpointInfo
from holdfast.errors import HoldfastError
from holdfast.node.eventlog import EventLog
from holdfast.node.slotsets import Sealed, SlotSets
from holdfast.plan import CheckpointPlan

Reply = dict[str, Any]


class Archive:
    """One run's checkpoints, and the slots they come from."""

    def __init__(self, plan: CheckpointPlan, log: EventLog, room: Room, project: str) -> None:
        self.folder = Folder(Path(plan.dir))
        self.plan = plan
        self.slots = SlotSets(room.growth, after=State.HELD if plan.memory.on else State.FREE)
        self.last: Reply | None = None
        self.failed: Reply | None = None
        self._log, self._project = log, project
        self._opened = False
        self._since_s: dict[str, float] = {}  # save id → when it was first seen sealed, `time.monotonic()`

    def add_slots(self, given: SlotSet) -> None:
        """Hold a rank's slots from now on."""
        self.slots.add(given)

    def begin(self) -> None:
        """Ready the folder and remember the newest checkpoint; what does not work now is tried again when needed."""
        try:
            self.open()
            live = [info for info in survey.of(self.folder).checkpoints if info.live]
        except (HoldfastError, OSError) as error:
            self._log.write("warning", id="checkpoint-folder", message=sentence_of(error))
            return
        if live:
            self.last = _told(live[-1])

    # -- saving

    def scan(self) -> int:
        """Save what is sealed by every rank; fail what waited too long. Returns how many slots still wait."""
        while True:
            waiting, now_s = self._waiting(), time.monotonic()
            for save_id in waiting:
                self._since_s.setdefault(save_id, now_s)
            self._since_s = {save_id: since_s for save_id, since_s in self._since_s.items() if save_id in waiting}
            ready = [parts for parts in waiting.values() if len(parts) == parts[0].table["world"]]
            if not ready:
                break
            chosen = min(ready, key=_order)
            self.fail(
                [one for one in waiting.values() if _order(one) < _order(chosen)], "a later save was complete first"
            )
            self._save(chosen)
        self.fail(abandoned := _abandoned(list(waiting.values())), "a rank went on without it")
        waiting = {name: parts for name, parts in waiting.items() if parts not in abandoned}
        late = [parts for name, parts in waiting.items() if now_s - self._since_s[name] > self.plan.timeout_s]
        self.fail(late, f"not every rank came within {self.plan.timeout_s:g} s")
        self.slots.drop_unused()
        return sum(len(parts) for parts in waiting.values()) - sum(len(parts) for parts in late)

    def fail_incomplete(self, why: str) -> None:
        """Give up saves whose missing ranks cannot come any more."""
        self.fail(list(self._waiting().values()), why)

    def fail(self, saves: list[list[Sealed]], why: str) -> None:
        """Tell every rank that was there that its save did not commit."""
        for parts in saves:
            head = parts[0].table
            ranks = sorted(part.owner.rank for part in parts)
            self._tell_failed(head, f"{why}: {len(parts)} of {head['world']} ranks, {ranks[:20]}")
            for part in parts:
                part.finish(Result.FAILED, why)

    def _waiting(self) -> dict[str, list[Sealed]]:
        """Sealed slots by save id, ranks in order; one whose table cannot be read is failed here."""
        found: dict[str, dict[int, Sealed]] = {}
        for owner in self.slots.every():
            for slot in owner.sealed():
                part = _read(owner, slot)
                if isinstance(part, str):
                    self._tell_failed({"step": slot.get("step")}, part)
                    Sealed(owner, slot, {}).finish(Result.FAILED, part)
                else:
                    found.setdefault(part.table["save_id"], {})[owner.rank] = part
        return {save_id: [parts[rank] for rank in sorted(parts)] for save_id, parts in found.items()}

    def _save(self, parts: list[Sealed]) -> None:
        head, begun_s, archived_s = parts[0].table, time.monotonic(), 0.0
        try:
            self.open()
            made = commit.commit(
                self.folder,
                [commit.Part(part.table, part.slot.view) for part in parts],
                name=self._name(head),
                until_s=begun_s + self.plan.timeout_s,
            )
        except Exception as error:
            message = sentence_of(error)
            self._sweep()
            self._tell_failed(head, message)
            result = Result.FAILED
        else:
            message, result = "", Result.COMMITTED
            archived_s = time.monotonic() - self._since_s.get(head["save_id"], begun_s)
            self._tell_committed(made, archived_s)
        for part in parts:
            part.finish(result, message, archived_s=archived_s)
        if result is Result.COMMITTED:
            self.retain()

    def _tell_committed(self, made: commit.Committed, seconds: float) -> None:
        self.last = _told(survey.info_of(made.manifest, self.folder.root / "manifests" / made.file_name))
        timing = {"write_seconds": made.write_seconds, "verify_seconds": made.verify_seconds}
        self.failed = None
        self._log.write("committed", **self.last, seconds=seconds, written_bytes=made.written_bytes, **timing)

    def _tell_failed(self, head: Mapping[str, Any], message: str) -> None:
        told = {name: head.get(name, 0) for name in ("step", "term", "sequence")}
        self.failed = {**told, "reason": head.get("reason", ""), "message": message}
        self._log.write("save_failed", **self.failed)

    def _sweep(self) -> None:
        """Give back the room that a failed save took."""
        try:
            collect.sweep(self.folder)
        except (HoldfastError, OSError) as error:
            self._log.write("warning", id="not-swept", message=sentence_of(error))

    def retain(self) -> None:
        """Apply `checkpoint.keep` now; what cannot be done is said and tried again after the next save."""
        try:
            self.open()
            self.tell_removed(collect.retain(self.folder, self.plan.keep, now_s=time.time()))
        except (HoldfastError, OSError) as error:
            self._log.write("warning", id="not-retained", message=sentence_of(error))

    def tell_removed(self, removed: Sequence[CheckpointInfo]) -> None:
        """Write down what retention or a person took away."""
        if removed:
            self._log.write("retained", removed=[{**one.position.to_json(), "step": one.step} for one in removed])

    def _name(self, head: Mapping[str, Any]) -> str:
        table.check_head(dict(head), "slot table of rank 0")
        best = self.plan.keep.best
        return naming.render(self.plan.name, self._project, head, best.metric if best is not None else None)

    def open(self) -> None:
        """Ready the folder, at the first use that succeeds: it may be full or away at the start."""
        if not self._opened:
            self.folder.own()
            for sentence in self.folder.open():
                self._log.write("warning", id="checkpoint-folder-damaged", message=sentence)
            self._opened = True


def _told(info: CheckpointInfo) -> Reply:
    """A checkpoint in the words of `status` and archiver.jsonl."""
    return {
        "step": info.step,
        "epoch": info.epoch,
        **info.position.to_json(),
        "size_bytes": info.size_bytes,
        "name": info.name,
        "reason": info.reason,
        "time_s": info.time_s,
        "manifest": info.path.name,
    }


def _order(parts: list[Sealed]) -> tuple[int, int]:
    return (parts[0].table["term"], parts[0].table["sequence"])


def _abandoned(waiting: list[list[Sealed]]) -> list[list[Sealed]]:
    """Saves that lack a rank which has sealed a later moment already: it will not come."""
    newest: dict[int, tuple[int, int, int]] = {}
    for part in (part for parts in waiting for part in parts):
        newest[part.owner.rank] = max(_moment(part), newest.get(part.owner.rank, _moment(part)))

    def is_lost(parts: list[Sealed]) -> bool:
        missing = set(range(parts[0].table["world"])) - {part.owner.rank for part in parts}
        return any(newest[rank] > _moment(parts[0]) for rank in missing & set(newest))

    return [parts for parts in waiting if is_lost(parts)]


def _moment(part: Sealed) -> tuple[int, int, int]:
    """What a save is of, comparable between ranks: their sequences are not."""
    later = part.table["save_id"].split("-")[2:]
    return part.table["term"], part.table["step"], int(later[0]) if later and later[0].isdecimal() else 0


def _read(owner: Any, slot: Slot) -> Sealed | str:
    """The slot with its table, or what is wrong with that: enough of it is checked to group and sort."""
    try:
        table = slot.read_table()
    except (ValueError, RecursionError) as error:
        return f"the slot's table cannot be read: {str(error)[:200]}"
    numbers = ("rank", "world", "term", "sequence", "step")
    if not all(is_count(table.get(name)) for name in numbers) or not isinstance(table.get("save_id"), str):
        return "the slot's table lacks rank, world, term, sequence, step or save_id"
    if table["rank"] != owner.rank or table["world"] <= table["rank"]:
        return f"the slot of rank {owner.rank} holds a table of rank {table['rank']} of {table['world']}"
    return Sealed(owner, slot, table)


def sentence_of(error: Exception) -> str:
    """What went wrong, for a person; the trace of what nobody foresaw goes to node.log."""
    if isinstance(error, HoldfastError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
    traceback.print_exception(error, file=sys.stderr)
    return f"{type(error).__name__}: {error}"
