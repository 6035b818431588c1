"""What the archiver does for a rank that begins: take the lease, and name or fill the slot that it continues from.

The newest copy in memory that all ranks hold comes first, unless the disk has a newer checkpoint.

Knows no socket. Runs on the thread of `Archive`, so it sees every save that was sealed before it was asked.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.checkpoint import load, survey
from holdfast.checkpoint.canonical import Damaged, is_count
from holdfast.checkpoint.folder import Folder
from holdfast.checkpoint.lease import Lease, Memory
from holdfast.checkpoint.lease import write as write_lease
from holdfast.checkpoint.lineage import Position
from holdfast.checkpoint.slots import Slot, State
from holdfast.checkpoint.survey import CheckpointInfo
from holdfast.errors import HoldfastError, NoValidCheckpoint, StoreRefused
from holdfast.node import copies
from holdfast.node.archive import Archive, Reply, sentence_of
from holdfast.node.copies import Copy
from holdfast.node.eventlog import EventLog
from holdfast.node.slotsets import RankSlots

if TYPE_CHECKING:
    from holdfast.node.mirroring import Mirroring

_TRIED = f"{copies.MOST_TRIES} attempts that began from it did not complete a step"


class OtherWorld(HoldfastError):
    """A checkpoint of another number of ranks; nothing is resharded."""

    exit_code = 12


class Restoring:
    """Restores of one run, out of its `Archive`."""

    def __init__(self, archive: Archive, log: EventLog, mirroring: Mirroring | None = None) -> None:
        self._archive, self._log, self._mirroring = archive, log, mirroring
        self._fell_back: dict[str, tuple[str, ...]] = {}  # claim → what its first rank was told

    def restore(self, request: Mapping[str, Any], now_s: float) -> Reply:
        """Take the lease for the request's claim and fill a slot of its rank; the answer as it goes over the socket."""
        try:
            return self._with_mirror(_checked(request), now_s)
        except Exception as error:
            message = sentence_of(error)
            self._log.write("restore_failed", message=message, want=request.get("want"))
            store = StoreRefused.exit_code if isinstance(error, OSError) else HoldfastError.exit_code
            code = error.exit_code if isinstance(error, HoldfastError) else store
            return {"ok": False, "exit_code": code, "error": message, "hint": getattr(error, "hint", "")}

    def _with_mirror(self, request: Mapping[str, Any], now_s: float) -> Reply:
        """From here, or where nothing here is left or intact, from what the mirror has."""
        if self._mirroring is None or request["want"] == "nothing":
            return self._restore(request, now_s)
        self._archive.open()
        folder, brought = self._archive.folder, False
        if _lost(folder.root, request["attempt"]):
            brought = self._mirroring.bring(folder, request["want"], request["world"])
        try:
            answer = self._restore(request, now_s)
        except NoValidCheckpoint:
            if brought or not self._mirroring.bring(folder, request["want"], request["world"]):
                raise
            brought, answer = True, self._restore(request, now_s)
        return {**answer, "tier": "mirror"} if brought else answer

    def _restore(self, request: Mapping[str, Any], now_s: float) -> Reply:
        self._archive.open()
        self._archive.scan()
        found = survey.of(self._archive.folder)
        held = found.lease if found.lease is not None and found.lease.claim == request["claim"] else None
        if held is None:
            self._archive.fail_incomplete("the attempt that began this save is over")
        owner = self._archive.slots.newest(request["rank"])
        if owner is None:
            raise HoldfastError(f"rank {request['rank']} has no slots")
        if held is not None and held.memory is not None:
            return self._from_memory(_same(owner, held.memory), held, found)
        parts = copies.newest(self._archive.slots, request["world"], found) if held is None else None
        if parts is None or request["want"] != "newest":
            return self._from_disk(request, owner, held, found, (), now_s)
        if any(part.tries >= copies.MOST_TRIES for part in parts):
            return self._from_disk(request, owner, held, found, (f"{parts[0]} was passed over: {_TRIED}",), now_s)
        lease = self._take_lease(request, found, max(found.line(), default=None), now_s, memory=parts[0].name)
        return self._from_memory(parts[request["rank"]], lease, found)

    def _from_memory(self, copy: Copy, lease: Lease, found: survey.Survey) -> Reply:
        """The copy stays where it is: the rank reads it in place."""
        table = copy.table
        told = {name: table[name] for name in ("step", "epoch", "time_s")}
        return {
            **_answer(lease, found, table["sequence"]), **told, "slot": copy.index, "tier": "memory", "manifest": "",
            "fell_back": [],
        }  # fmt: skip

    def _from_disk(
        self, request: Mapping[str, Any], owner: RankSlots, held: Lease | None, found: survey.Survey,
        untrusted: tuple[str, ...], now_s: float,
    ) -> Reply:  # fmt: skip
        index = owner.room()
        slot = owner.slots[index]
        chosen = self._choose(request, held, slot)
        info = chosen.info
        lease = held
        if lease is None:
            if info is None and request["want"] == "newest" and not (found.checkpoints or found.unreadable):
                self._refuse_if_emptied()
            lease = self._take_lease(request, found, info.position if info is not None else None, now_s)
            self._tell_fell_back(lease, (*untrusted, *chosen.fell_back))
        if info is not None:
            slot.set(sequence=info.sequence, step=info.step, term=info.term, state=State.RESTORED)
        return {
            **_answer(lease, found, info.sequence if info is not None else 0),
            "slot": index if info is not None else None,
            "tier": "mirror" if chosen.brought else "disk",
            "step": info.step if info is not None else 0,
            "epoch": info.epoch if info is not None else 0,
            "time_s": info.time_s if info is not None else 0.0,
            "manifest": info.path.name if info is not None else "",
            "fell_back": [sentence[:1000] for sentence in self._fell_back.get(lease.claim, ())[:20]],
        }

    def _refuse_if_emptied(self) -> None:
        """Raises NoValidCheckpoint where this run has committed and nothing is left: it must not begin anew unasked."""
        committed = self._log.last("committed")
        if committed is not None:
            root = self._archive.folder.root
            raise NoValidCheckpoint(
                root.name,
                said=f"step {committed['step']} was committed to {root}, where no checkpoint is any more",
                hint="is its disk mounted? To begin at the first step, start a run of another name",
            )

    def _choose(self, request: Mapping[str, Any], held: Lease | None, slot: Slot) -> load.Chosen:
        want: load.Want = request["want"]
        if held is not None:
            want = {**held.base.to_json()} if held.base is not None else "nothing"

        def into_slot(info: CheckpointInfo) -> list[str]:
            if info.world != request["world"]:
                raise OtherWorld(f"{info} is of {info.world} ranks, this attempt has {request['world']}")
            slot.set(state=State.FILLING)
            try:
                known = self._archive.folder.known
                load.fill(self._archive.folder.root, info, request["rank"], slot, whole=held is None, known=known)
            except (Damaged, OSError) as error:
                return [str(error)]
            return []

        try:
            folder, other = self._archive.folder, _Copies(self._archive.folder, self._mirroring)
            chosen = load.choose(
                folder.root, want, attempt=into_slot, another=other.at, parsed=folder.parsed, disk=folder.disk
            )
            return replace(chosen, fell_back=(*chosen.fell_back, *other.said))
        except BaseException:
            slot.set(state=State.FREE)
            raise

    def _take_lease(
        self, request: Mapping[str, Any], found: survey.Survey, base: Position | None, now_s: float,
        memory: Memory | None = None,
    ) -> Lease:  # fmt: skip
        owner = {"pid": os.getpid(), "host": socket.gethostname()}
        lease = Lease(
            term=found.newest_term + 1, claim=request["claim"], attempt=request["attempt"], base=base, owner=owner,
            time_s=now_s, memory=memory,
        )  # fmt: skip
        write_lease(self._archive.folder, lease)
        told = {"base": base and base.to_json(), "memory": memory and asdict(memory)}
        self._log.write("lease_taken", term=lease.term, attempt=lease.attempt, **told)
        return lease

    def _tell_fell_back(self, lease: Lease, sentences: tuple[str, ...]) -> None:
        self._fell_back = {lease.claim: sentences}
        for sentence in sentences:
            self._log.write("fell_back", message=sentence)


class _Copies:
    """The mirror's copies of what is damaged here, until it does not answer."""

    def __init__(self, folder: Folder, mirroring: Mirroring | None) -> None:
        self.said: list[str] = []
        self._folder, self._mirroring = folder, mirroring

    def at(self, position: Position) -> CheckpointInfo | None:
        """Bring that one."""
        if self._mirroring is None:
            return None
        named = f"the mirror's copy of term {position.term}, sequence {position.sequence}"
        try:
            brought = self._mirroring.replace(self._folder, position)
        except (Damaged, FileNotFoundError) as error:
            self.said.append(f"{named} was passed over: {error}")
            return None
        except (HoldfastError, OSError) as error:
            self.said.append(f"{named} was not had: {sentence_of(error)}")
            self._mirroring = None
            return None
        if brought is None:
            self.said.append(f"{named} was never sent")
        return brought


def _lost(root: Path, attempt: int) -> bool:
    """Whether a folder that an earlier attempt used is empty now: nothing in it, not even a lease."""
    found = survey.take(root)
    return attempt > 1 and found.lease is None and not found.checkpoints and not found.unreadable


def _same(owner: RankSlots, memory: Memory) -> Copy:
    """Raises HoldfastError: another attempt is due then, which takes a lease of its own."""
    copy = copies.named(owner, memory)
    if copy is None:
        raise HoldfastError(f"rank {owner.rank} no longer holds the copy in memory that this attempt began from")
    return copy


def _answer(lease: Lease, found: survey.Survey, sequence: int) -> Reply:
    """What every answer says. Sequences go on after what is restored, and after what the term has committed already."""
    used = [one.sequence for one in found.checkpoints if one.term == lease.term]
    return {"ok": True, "term": lease.term, "next_sequence": max([sequence, *used]) + 1}


def _checked(request: Mapping[str, Any]) -> Mapping[str, Any]:
    counts = all(is_count(request.get(name)) for name in ("rank", "world", "attempt"))
    want = request.get("want", "newest")
    sound = want in ("newest", "nothing") or (isinstance(want, dict) and all(is_count(one) for one in want.values()))
    if not counts or not sound or not isinstance(request.get("claim"), str):
        raise HoldfastError(f"a restore request needs rank, world, attempt, claim and want, not {str(request)[:200]}")
    return {**request, "want": want}
