"""What the archiver does for a rank that begins: take the lease, and fill a slot with what it continues from.

Knows no socket. Runs on the thread of `Archive`, so it sees every save that was sealed before it was asked.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Any

from holdfast.checkpoint import load, survey
from holdfast.checkpoint.canonical import Damaged, is_count
from holdfast.checkpoint.lease import Lease
from holdfast.checkpoint.lease import write as write_lease
from holdfast.checkpoint.slots import Slot, State
from holdfast.checkpoint.survey import CheckpointInfo
from holdfast.errors import HoldfastError, StoreRefused
from holdfast.node.archive import Archive, Reply, sentence_of
from holdfast.node.eventlog import EventLog


class OtherWorld(HoldfastError):
    """A checkpoint of another number of ranks; nothing is resharded."""

    exit_code = 12


class Restoring:
    """Restores of one run, out of its `Archive`."""

    def __init__(self, archive: Archive, log: EventLog) -> None:
        self._archive, self._log = archive, log
        self._fell_back: dict[str, tuple[str, ...]] = {}  # claim → what its first rank was told

    def restore(self, request: Mapping[str, Any], now_s: float) -> Reply:
        """Take the lease for the request's claim and fill a slot of its rank; the answer as it goes over the socket."""
        try:
            return self._restore(_checked(request), now_s)
        except Exception as error:
            message = sentence_of(error)
            self._log.write("restore_failed", message=message, want=request.get("want"))
            store = StoreRefused.exit_code if isinstance(error, OSError) else HoldfastError.exit_code
            code = error.exit_code if isinstance(error, HoldfastError) else store
            return {"ok": False, "exit_code": code, "error": message, "hint": getattr(error, "hint", "")}

    def _restore(self, request: Mapping[str, Any], now_s: float) -> Reply:
        self._archive.open()
        self._archive.scan(now_s)
        found = survey.take(self._archive.folder.root)
        held = found.lease if found.lease is not None and found.lease.claim == request["claim"] else None
        if held is None:
            self._archive.fail_incomplete("the attempt that began this save is over")
        owner = self._archive.slots.newest(request["rank"])
        if owner is None:
            raise HoldfastError(f"rank {request['rank']} has no slots")
        index = owner.room()
        chosen = self._choose(request, held, owner.slots[index])
        lease = held or self._take_lease(request, found.newest_term + 1, chosen, now_s)
        if chosen.info is not None:
            info = chosen.info
            words = {"sequence": info.sequence, "step": info.step, "term": info.term}
            owner.slots[index].set(**words, state=State.RESTORED)
            owner.ring()
        fell_back = self._fell_back.get(lease.claim, ())
        return _answer(lease, chosen.info, index, fell_back, found)

    def _choose(self, request: Mapping[str, Any], held: Lease | None, slot: Slot) -> load.Chosen:
        want: load.Want = request["want"]
        if held is not None:
            want = {**held.base.to_json()} if held.base is not None else "nothing"

        def into_slot(info: CheckpointInfo) -> list[str]:
            if info.world != request["world"]:
                raise OtherWorld(f"{info} is of {info.world} ranks, this attempt has {request['world']}")
            slot.set(state=State.FILLING)
            try:
                load.fill(self._archive.folder.root, info, request["rank"], slot, whole=held is None)
            except (Damaged, OSError) as error:
                return [str(error)]
            return []

        slot.refresh()
        try:
            return load.choose(self._archive.folder.root, want, attempt=into_slot)
        except BaseException:
            slot.set(state=State.FREE)
            raise

    def _take_lease(self, request: Mapping[str, Any], term: int, chosen: load.Chosen, now_s: float) -> Lease:
        base = chosen.info.position if chosen.info is not None else None
        owner = {"pid": os.getpid(), "host": socket.gethostname()}
        lease = Lease(
            term=term, claim=request["claim"], attempt=request["attempt"], base=base, owner=owner, time_s=now_s
        )
        write_lease(self._archive.folder, lease)
        self._fell_back = {lease.claim: chosen.fell_back}
        for sentence in chosen.fell_back:
            self._log.write("fell_back", message=sentence)
        self._log.write("lease_taken", term=term, attempt=lease.attempt, base=base and base.to_json())
        return lease


def _checked(request: Mapping[str, Any]) -> Mapping[str, Any]:
    counts = all(is_count(request.get(name)) for name in ("rank", "world", "attempt"))
    want = request.get("want", "newest")
    sound = want in ("newest", "nothing") or (isinstance(want, dict) and all(is_count(one) for one in want.values()))
    if not counts or not sound or not isinstance(request.get("claim"), str):
        raise HoldfastError(f"a restore request needs rank, world, attempt, claim and want, not {str(request)[:200]}")
    return {**request, "want": want}


def _answer(
    lease: Lease, info: CheckpointInfo | None, index: int, fell_back: tuple[str, ...], found: survey.Survey
) -> Reply:
    """The reply to a restore. Sequences go on after the base, and after what the term has committed already."""
    used = [one.sequence for one in found.checkpoints if one.term == lease.term]
    base = info.sequence if info is not None else 0
    return {
        "ok": True,
        "term": lease.term,
        "next_sequence": max([base, *used]) + 1,
        "slot": index if info is not None else None,
        "step": info.step if info is not None else 0,
        "epoch": info.epoch if info is not None else 0,
        "time_s": info.time_s if info is not None else 0.0,
        "manifest": info.path.name if info is not None else "",
        "fell_back": [sentence[:1000] for sentence in fell_back[:20]],
    }
