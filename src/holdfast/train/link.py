"""The conversation of one rank with shim and archiver, and the slots that came of it.

The connection to the shim stays open for as long as the rank lives: its end tells the shim, and the shim's end tells us
that a new one wants our descriptors.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from typing import Any

from holdfast.checkpoint import budget, room
from holdfast.checkpoint.room import Room
from holdfast.checkpoint.slots import HEADER_BYTES, SLOTS_PER_RANK, Slot, SlotSet, State, oldest_spare
from holdfast.errors import HoldfastError, LeaseHeld, NoValidCheckpoint, StoreRefused
from holdfast.process import identity, receive, request, send, start_shim
from holdfast.train.setting import Setting

DEADLINE_S = 60.0  # for one of ours to come back
_RETRY_S = 0.01
_CHECK_S = 1.0
_REPLY_S = 10.0


class Link:
    """Owns the descriptors of this rank's slots."""

    def __init__(self, setting: Setting) -> None:
        """Connect, starting the shim when alone. Raises LeaseHeld when another process holds the rank."""
        self._setting = setting
        self._runtime = setting.run.runtime
        self._socket = self._connect()
        self.room = Room(self._runtime / "slots.lock")
        self._set, self.warning = self._ask_slots()
        self.slots = [Slot(descriptor, self.room.growth) for descriptor in self._set.slots]
        self._checked_s = time.monotonic()

    def _connect(self) -> socket.socket:
        deadline_s = time.monotonic() + DEADLINE_S
        while True:
            try:
                return self._greet()
            except (ConnectionError, FileNotFoundError, TimeoutError) as error:
                if time.monotonic() > deadline_s:
                    raise HoldfastError(
                        f"no shim answers for {self._setting.run.root}: {error}",
                        hint=f"see {self._setting.run.node_log}",
                    ) from error
            if self._setting.alone:
                self._start_shim(deadline_s)
            time.sleep(_RETRY_S)

    def _start_shim(self, deadline_s: float) -> None:
        try:
            start_shim(self._setting.run, alone=True)
        except LeaseHeld:  # another rank has just started one, or the last one is about to leave
            if time.monotonic() > deadline_s:
                raise

    def _greet(self) -> socket.socket:
        me = identity(os.getpid())
        link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            link.settimeout(_REPLY_S)
            link.connect(str(self._runtime / "shim.sock"))
            facts = {"rank": self._setting.rank, "pid": os.getpid(), "start_ticks": me.start_ticks if me else 0}
            send(link, {"op": "hello", "role": "rank", **facts})
            reply, _ = receive(link)
            if not reply.get("ok"):
                if reply.get("exit_code") == LeaseHeld.exit_code:
                    raise LeaseHeld(str(self._setting.run.root), int(reply.get("pid", 0)))
                raise HoldfastError(f"the shim refused rank {self._setting.rank}: {reply.get('error')}")
        except BaseException:
            link.close()
            raise
        return link

    def _ask(self, message: dict[str, Any], descriptors: list[int] | None = None) -> tuple[dict[str, Any], list[int]]:
        send(self._socket, message, descriptors or [])
        return receive(self._socket)

    def _ask_slots(self, **more: Any) -> tuple[SlotSet, str]:
        reply, descriptors = self._ask({"op": "slots", "rank": self._setting.rank, **more})
        if not reply.get("ok") or len(descriptors) < 3:
            raise HoldfastError(
                f"the shim gave no slots: {reply.get('error', reply)}", hint=f"see {self._setting.run.node_log}"
            )
        return SlotSet.of(self._setting.rank, descriptors), str(reply.get("warning", ""))

    def leave_files(self, why: object) -> bool:
        """Take memory in place of files that could not grow to hold anything; False when they are not files.

        `warning` then says so. Nobody may hold one of our slots.
        """
        if not self._setting.memory.dir or self.slots_grown() or not os.fstat(self.slots[0].descriptor).st_nlink:
            return False
        given, _ = self._ask_slots(files=False)
        for slot in self.slots:
            slot.close()
        for descriptor in self._set.fds():
            os.close(descriptor)
        self._set, self.slots = given, [Slot(descriptor, self.room.growth) for descriptor in given.slots]
        self.warning = f"checkpoint.memory_dir cannot be used: {why}: {self._setting.memory.dir}"
        return True

    def restore(self) -> dict[str, Any]:
        """Take the lease and what was saved last; the answer is as architecture.md says. Raises NoValidCheckpoint.

        What a dead predecessor left half-written or half-read in our slots is dropped first.
        """
        for slot in self.slots:
            if slot.state in (State.WRITING, State.RESTORED):
                slot.set(state=State.FREE)
        s = self._setting
        message = {
            "op": "restore",
            "rank": s.rank,
            "world": s.world,
            "attempt": s.attempt,
            "claim": s.claim,
            "want": s.want,
        }
        reply = self._ask_archiver(message)
        if reply.get("ok"):
            return reply
        why = str(reply.get("error", reply))
        if reply.get("exit_code") == NoValidCheckpoint.exit_code:
            raise NoValidCheckpoint(s.run.id, said=why, hint=str(reply.get("hint", "")))
        if reply.get("exit_code") == StoreRefused.exit_code and self.leave_files(why):
            return self.restore()
        raise HoldfastError(f"the archiver did not restore: {why}", hint=f"see {s.run.node_log}")

    def _ask_archiver(self, message: dict[str, Any]) -> dict[str, Any]:
        deadline_s = time.monotonic() + DEADLINE_S
        while True:
            asked_s = time.monotonic()
            try:
                return request(self._runtime / "archiver.sock", message, timeout_s=self._setting.timeout_s)[0]
            except (ConnectionError, FileNotFoundError) as error:
                if time.monotonic() - asked_s > _REPLY_S:  # it was at work: another one gets all the time again
                    deadline_s = time.monotonic() + DEADLINE_S
                if time.monotonic() > deadline_s:
                    raise HoldfastError(
                        f"no archiver answers for {self._setting.run.root}: {error}",
                        hint=f"see {self._setting.run.node_log}",
                    ) from error
            time.sleep(_RETRY_S)

    def free_slot(self, *, for_memory: bool = False) -> Slot | None:
        """A slot that may be written, mapped at its present size; None while the archiver has them all.

        A FREE one if there is memory for it, else the oldest copy that a newer one has replaced. The only slot there
        is memory for may be taken for a save whatever it holds, but never for a copy that stays in memory. While copies
        are kept there, one save at a time is with the archiver, so that two slots are left for them to alternate.
        """
        if not for_memory and self._setting.memory.on and any(slot.get("state") == State.SEALED for slot in self.slots):
            return None
        slot = self._free() or oldest_spare(self.slots)
        if slot is None and not for_memory and self.slots_grown() == 1:
            slot = next((slot for slot in self.slots if slot.get("state") == State.HELD), None)
        if slot is not None:
            slot.refresh()
        return slot

    def _free(self) -> Slot | None:
        free = [slot for slot in self.slots if slot.get("state") == State.FREE]
        wanted = self.slot_bytes()
        for slot in sorted(free, key=_size, reverse=True):
            grown = 2 * _size(slot) > wanted
            if grown or not budget.refusal(wanted - _size(slot), room.limits(slot.descriptor)):
                return slot
        return None

    def slot_bytes(self) -> int:
        """How much memory the largest slot has, 0 when none has any."""
        largest = max(_size(slot) for slot in self.slots)
        return largest if largest > HEADER_BYTES else 0

    def slots_grown(self) -> int:
        """How many slots have memory for a state like those before."""
        return sum(2 * _size(slot) > self.slot_bytes() > 0 for slot in self.slots)

    def reduced(self) -> tuple[int, str]:
        """How many slots there is memory for, and what it means when that is not all of them."""
        grown = self.slots_grown()
        if grown == SLOTS_PER_RANK:
            return grown, ""
        limits = room.limits(self.slots[0].descriptor)
        count = budget.slots_for(self.slot_bytes(), limits, grown=grown)
        return count, budget.reduced(count, self.slot_bytes(), limits)

    def ring(self) -> None:
        """Tell the archiver that a slot changed hands."""
        os.eventfd_write(self._set.to_archiver, 1)

    def wait_ring(self, timeout_s: float) -> None:
        """Return when the archiver rang, or after `timeout_s`."""
        if _readable(self._set.to_rank, timeout_s):
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._set.to_rank)

    def check(self, now_s: float) -> str:
        """At most once a second: has the shim gone? Then offer the slots to the new one. Says what was done."""
        if now_s - self._checked_s < _CHECK_S:
            return ""
        self._checked_s = now_s
        if self._socket.fileno() >= 0 and self._is_open():
            return ""
        self._socket.close()
        try:
            self._socket = self._greet()
            self._ask({"op": "offer", "rank": self._setting.rank}, self._set.fds())
        except (ConnectionError, FileNotFoundError, TimeoutError):
            return ""  # not there yet: next time
        return "the shim was restarted and has the slots again"

    def _is_open(self) -> bool:
        if not _readable(self._socket.fileno(), 0.0):
            return True
        try:
            return bool(self._socket.recv(1, socket.MSG_PEEK))
        except ConnectionError:
            return False

    def forget(self) -> None:
        """In a forked child: the parent's connection and memory are none of its business."""
        self._socket.close()
        for descriptor in self._set.fds():
            os.close(descriptor)

    def close(self) -> None:
        """Let go of everything; the archiver finishes what is sealed."""
        self._socket.close()
        for slot in self.slots:
            slot.close()
        for descriptor in self._set.fds():
            os.close(descriptor)


def _size(slot: Slot) -> int:
    return os.fstat(slot.descriptor).st_size


def _readable(descriptor: int, timeout_s: float) -> bool:
    poll = select.poll()  # `select.select` ends at descriptor 1023
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))
