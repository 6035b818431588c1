"""The other side of a trainer's border, in a thread: shim.sock and archiver.sock, without a disk.

It makes real memfds and eventfds, keeps the bytes of each sealed slot as a checkpoint, frees the slot, and fills one on
restore.
"""

from __future__ import annotations

import json
import os
import selectors
import shutil
import socket
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from holdfast.checkpoint.slots import HEADER_BYTES, SLOTS_PER_RANK, Result, Slot, SlotSet, State, age, align
from holdfast.plan import CheckpointPlan, Every, LogsPlan, Memory, Plan
from holdfast.runs import RunDir, make_runtime


@dataclass
class Kept:
    """One checkpoint: the slot's bytes and its table."""

    table: dict[str, Any]
    raw: bytes


@dataclass
class FakeNode:
    """Serve `root` until `close`. `kept` holds every checkpoint, newest last."""

    root: Path
    every: Every = field(default_factory=lambda: Every(auto=False, steps=1))
    memory: Memory = field(default_factory=lambda: Memory(auto=False))
    keep_last: int = 1000
    timeout_s: float = 20.0
    world: int = 1
    kept: list[Kept] = field(default_factory=list)
    greeted: list[dict[str, Any]] = field(default_factory=list)
    offered: int = 0
    refuse: str = ""  # answer every save with this failure
    hold: bool = False  # leave sealed slots alone

    def __post_init__(self) -> None:
        self.run = RunDir(self.root)
        self.root.mkdir(parents=True, exist_ok=True)
        checkpoint = CheckpointPlan(
            dir=str(self.run.checkpoints), every=self.every, timeout_s=self.timeout_s, memory=self.memory
        )
        names = {"run": self.run.id, "name": self.run.id, "dir": str(self.root), "cwd": str(self.root)}
        plan = Plan(**names, argv=("python",), checkpoint=checkpoint, logs=LogsPlan())
        self.run.plan.write_text(json.dumps(plan.to_json()))
        self.term, self.sequence = 0, 0
        self.claims: dict[str, dict[str, Any]] = {}
        self.sets: dict[int, SlotSet] = {}
        self.selector = selectors.DefaultSelector()
        self.lock = threading.Lock()
        self.stopping, self.waker = os.pipe()
        self.selector.register(self.stopping, selectors.EVENT_READ, None)
        self.listeners: dict[str, socket.socket] = {}
        self.links: list[socket.socket] = []
        make_runtime(self.run)
        self.listen("shim")
        self.listen("archiver")
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def environ(self, **more: str) -> dict[str, str]:
        """What the trainer finds in its environment."""
        return {"HOLDFAST_RUN_DIR": str(self.root), "HOLDFAST_ATTEMPT": "1", "WORLD_SIZE": str(self.world), **more}

    def listen(self, name: str) -> None:
        path = self.run.runtime / f"{name}.sock"
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(str(path))
        listener.listen()
        self.listeners[name] = listener
        self.selector.register(listener, selectors.EVENT_READ, name)

    def restart_shim(self) -> None:
        """A shim that died and came back knowing nothing."""
        with self.lock:
            for link in self.links:
                self.selector.unregister(link)
                link.close()
            self.links.clear()
            self.sets.clear()

    def archive_now(self) -> None:
        """Take every sealed slot before returning, so that the next save finds one free."""
        with self.lock:
            self._archive()

    def close(self) -> None:
        os.write(self.waker, b"x")
        self.thread.join()
        for each in (*self.listeners.values(), *self.links):
            each.close()
        for slots in self.sets.values():
            for descriptor in slots.fds():
                os.close(descriptor)
        os.close(self.waker)
        os.close(self.stopping)
        self.selector.close()
        shutil.rmtree(self.run.runtime)

    def _serve(self) -> None:
        while True:
            for key, _ in self.selector.select(0.02):
                if key.fd == self.stopping:
                    return
                with self.lock:
                    self._ready(key.fileobj, key.data)
            with self.lock:
                self._archive()

    def _ready(self, sock: Any, what: Any) -> None:
        if isinstance(what, str) and sock in self.listeners.values():
            link, _ = sock.accept()
            self.selector.register(link, selectors.EVENT_READ, {"archiver": what == "archiver"})
            self.links.append(link)
            return
        if not isinstance(what, dict) or sock not in self.links:
            return
        raw, fds, _, _ = socket.recv_fds(sock, 1 << 18, 16)
        if not raw:
            self.selector.unregister(sock)
            self.links.remove(sock)
            sock.close()
            return
        reply, out = self._answer(json.loads(raw), list(fds))
        socket.send_fds(sock, [json.dumps(reply).encode()], out)

    def _answer(self, message: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], list[int]]:
        rank = message.get("rank", 0)
        if message["op"] == "hello":
            self.greeted.append(message)
            return {"ok": True}, []
        if message["op"] == "slots":
            return {"ok": True, "rank": rank}, self._slots(rank).fds()
        if message["op"] == "offer":
            self.offered += 1
            self.sets[rank] = SlotSet.of(rank, fds)
            return {"ok": True}, []
        if message["op"] == "restore":
            return self._restore(message), []
        return {"ok": False, "error": f"unknown {message['op']}"}, []

    def _slots(self, rank: int) -> SlotSet:
        if rank not in self.sets:
            doorbells = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(2)]
            slots = tuple(os.memfd_create(f"slot-{n}", os.MFD_CLOEXEC) for n in range(SLOTS_PER_RANK))
            self.sets[rank] = SlotSet(rank=rank, to_archiver=doorbells[0], to_rank=doorbells[1], slots=slots)
        return self.sets[rank]

    def _archive(self) -> None:
        for slots in self.sets.values() if not self.hold else ():
            mapped = [Slot(descriptor) for descriptor in slots.slots]
            while any(slot.state is State.SEALED for slot in mapped):  # what was sealed before it is seen at this look:
                sealed = (slot for slot in mapped if slot.state is State.SEALED)
                slot = min(sealed, key=lambda slot: slot.get("sequence"))
                slot.refresh()  # the rank may have let it grow since it was mapped
                self._archive_one(slot)
                os.eventfd_write(slots.to_rank, 1)
            for slot in mapped:
                slot.close()

    def _archive_one(self, slot: Slot) -> None:
        sequence = slot.get("sequence")
        if self.refuse:
            slot.write_message(self.refuse)
            slot.set(result=Result.FAILED, result_sequence=sequence, state=self._after)
            return
        table = slot.read_table()
        check_gaps(slot, table)
        kept = [*self.kept, Kept(table, bytes(slot.view[: slot.get("used_bytes")]))]  # sealed meanwhile: not in order
        self.kept = sorted(kept, key=lambda one: one.table["sequence"])[-self.keep_last :]
        self.sequence = max(self.sequence, sequence)
        slot.set(result=Result.COMMITTED, result_sequence=sequence, state=self._after)

    @property
    def _after(self) -> State:
        return State.HELD if self.memory.on else State.FREE

    def _from_memory(self, answer: dict[str, Any], rank: int) -> dict[str, Any] | None:
        """The rank's newest copy, as the archiver would tell it; a newer checkpoint is not looked for."""
        slots = [Slot(descriptor) for descriptor in self._slots(rank).slots]
        held = [(age(slot), index, slot.get("step")) for index, slot in enumerate(slots) if slot.state is State.HELD]
        for slot in slots:
            slot.close()
        if not held:
            return None
        (_, sequence), index, step = max(held)
        return {**answer, "next_sequence": sequence + 1, "slot": index, "tier": "memory", "step": step, "epoch": 0}

    def _restore(self, message: dict[str, Any]) -> dict[str, Any]:
        hold, self.hold = self.hold, False
        self._archive()
        self.hold = hold
        if message["claim"] not in self.claims:
            self.term += 1
            self.claims[message["claim"]] = {
                "ok": True,
                "term": self.term,
                "next_sequence": self.sequence + 1,
                "fell_back": [],
            }
        answer = self.claims[message["claim"]]
        from_memory = self._from_memory(answer, message["rank"])
        if from_memory is not None:
            return from_memory
        mine = [kept for kept in self.kept if kept.table["rank"] == message["rank"]]
        if not mine or message["want"] == "nothing":
            return {**answer, "slot": None, "step": 0, "epoch": 0}
        slot = Slot(self._slots(message["rank"]).slots[1])
        slot.reserve(len(mine[-1].raw))
        slot.set(state=State.FILLING)
        slot.view[HEADER_BYTES : len(mine[-1].raw)] = mine[-1].raw[HEADER_BYTES:]
        table = mine[-1].table
        slot.write_table(table, max((align(c["offset"] + c["bytes"]) for c in table["chunks"]), default=HEADER_BYTES))
        slot.set(state=State.RESTORED)
        slot.close()
        return {**answer, "slot": 1, "tier": "disk", "step": table["step"], "epoch": table["epoch"]}


def check_gaps(slot: Slot, table: dict[str, Any]) -> None:
    """Everything between header and table that no tensor fills must be zero."""
    at = HEADER_BYTES
    spans = [(c["offset"] + t["offset"], t["bytes"]) for c in table["chunks"] for t in c["tensors"]]
    for start, size in [*sorted(spans), (slot.get("table_offset"), 0)]:
        assert not any(bytes(slot.view[at:start])), f"bytes {at}..{start} are not zero"
        at = start + size
