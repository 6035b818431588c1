"""The archiver: slots to checkpoints and back, whatever becomes of trainer, supervisor or shim.

An event loop answers sockets and doorbells; a worker thread does what takes long, in the order it was asked for. See
docs/concepts/architecture.md for the messages, `archive.py` for what is done with them.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import selectors
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast import fsio, process
from holdfast.checkpoint.room import Room
from holdfast.checkpoint.slots import SlotSet
from holdfast.errors import LeaseHeld
from holdfast.node.archive import Archive
from holdfast.node.archiver_link import ShimLink, close_all, connect, ranks_live, reply
from holdfast.node.eventlog import EventLog
from holdfast.node.mishaps import Mishaps
from holdfast.node.place import ephemeral
from holdfast.node.restoring import Restoring
from holdfast.node.upkeep import OPERATIONS, Upkeep
from holdfast.node.worker import Worker
from holdfast.plan import Plan
from holdfast.runs import RunDir, make_runtime

if TYPE_CHECKING:
    from holdfast.node.mirroring import Mirroring

TICK_S = 1.0  # a doorbell that was lost costs no more than this
SHIM_GONE_S = 30.0  # without a shim and without a trainer for so long, nobody will come back
SLOTS_S = 20.0  # how long a restore waits for its rank's slots to arrive from the shim
UPKEEP_S = 10.0  # a pack is read, or some are written anew, this often at most: 6.4 MB/s
NICENESS = 10
AUTOGROUP = Path("/proc/self/autogroup")
UNKNOWN = 1  # how many slots wait when the look at them failed: the next tick looks again

Message = dict[str, Any]


class Archiver:
    """One run's archiver; `serve` is its life."""

    def __init__(self, run: RunDir, plan: Plan) -> None:
        self._run, self._alone = run, plan.alone
        self._root = plan.checkpoint.dir
        log = EventLog(run.archiver_log)
        self._archive = Archive(plan.checkpoint, log, Room(run.runtime / "slots.lock"), plan.name)
        self._upkeep = Upkeep(self._archive, log)
        mishaps = Mishaps(log)
        self._mirroring: Mirroring | None = None
        if plan.checkpoint.mirror is not None:
            from holdfast.node.mirroring import Mirroring  # a third of the time to start: not for a run without one

            self._mirroring = Mirroring(run, plan, log, mishaps)
        self._restoring = Restoring(self._archive, log, self._mirroring)
        self._worker, self._linker = Worker("archive", mishaps.tell), Worker("link", mishaps.tell)
        self._selector = selectors.DefaultSelector()
        self._link: ShimLink | None = None
        self._shim_lost_s = time.monotonic()
        self._given: dict[int, list[int]] = {}  # rank → our own descriptors of its slots, the doorbell first
        self._held: set[int] = set()  # ranks whose slots the archive has taken; the others it gets once more
        self._complete = False  # the shim has handed out every set it has
        self._restores: list[tuple[socket.socket, Message, float]] = []  # wait for slots until
        self._drains: list[socket.socket] = []
        self._scanning = self._rescan = False
        self._scan_due_s = 0.0
        self._mirrored: Message | None = None  # the last checkpoint that the mirror was told of
        self._upkeep_due_s = time.monotonic() + UPKEEP_S
        self._leaving = self._left = False

    def serve(self, listener: socket.socket) -> None:
        """Until told to finish, or nobody is left to work for; every sealed slot is saved by then."""
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ, lambda: self._accept(listener))
        helpers = self._mirroring.workers if self._mirroring is not None else ()
        for worker in (self._worker, self._linker, *helpers):
            self._selector.register(worker.wake, selectors.EVENT_READ, worker.collect)
        for worker in (self._worker, *helpers):
            worker.submit(_be_modest, lambda _: None)
        _be_modest_among_sessions()
        self._worker.submit(self._archive.begin, lambda _: None)
        self._reconnect()
        while not self._left:
            self._tick()
            for key, _ in self._selector.select(TICK_S):
                key.data()

    def _tick(self) -> None:
        now_s = time.monotonic()
        if now_s >= self._scan_due_s:
            for rank in self._given.keys() - self._held if self._worker.outstanding == 0 else ():
                self._hand_over(rank)
            self._scan()
        if now_s >= self._upkeep_due_s and self._worker.outstanding == 0:
            self._upkeep_due_s = now_s + UPKEEP_S
            self._worker.submit(self._upkeep.idle, lambda _: None)
        for waiting in self._restores[:]:
            client, request, until_s = waiting
            if (self._complete and request.get("rank") in self._held) or now_s > until_s:
                self._restores.remove(waiting)
                self._restore_now(client, request)
        if self._mirroring is not None and self._link is not None and not self._leaving:
            self._mirroring.tick(now_s)
        if self._link is None and self._linker.outstanding == 0:
            if now_s - self._shim_lost_s > SHIM_GONE_S and not ranks_live(self._run):
                self._leave()
            else:
                self._reconnect()

    def _scan(self) -> None:
        """Look for sealed slots, and once more if one may have been sealed behind a look that is under way."""
        self._rescan = self._scanning
        if not self._scanning:
            self._scanning = True
            self._scan_due_s = time.monotonic() + TICK_S
            self._worker.submit(self._archive.scan, self._looked, failed=UNKNOWN)

    def _looked(self, waiting: int) -> None:
        self._scanning = False
        if self._archive.last != self._mirrored and self._mirroring is not None:
            self._mirrored = self._archive.last
            self._mirroring.wake()
        self._scanned(waiting)
        if self._rescan:
            self._scan()

    def _scanned(self, waiting: int) -> None:
        if waiting == 0:
            drains, self._drains = self._drains, []
            for client in drains:
                reply(client, {"ok": True})

    def _drained(self, client: socket.socket, waiting: int) -> None:
        self._drains.append(client)
        self._scanned(waiting)

    def _leave(self) -> None:
        """Save what can be saved, then stop serving."""
        if not self._leaving:
            self._leaving = True
            self._worker.submit(self._last_scan, self._gone)

    def _last_scan(self) -> None:
        self._archive.scan()
        self._archive.fail_incomplete("the run ended before every rank had sealed")

    def _gone(self, _: None) -> None:
        if self._mirroring is not None:
            self._mirroring.finish(self._mirror_gone)
        else:
            self._left = True

    def _mirror_gone(self, _: None) -> None:
        self._left = True

    # -- the shim

    def _reconnect(self) -> None:
        given = dict(self._given)  # unchanged until there is a link
        self._linker.submit(lambda: connect(self._run, given, alone=self._alone), self._connected)

    def _connected(self, link: ShimLink | None) -> None:
        if link is None:
            return
        self._link = link
        self._take_secrets(link.hello)
        self._selector.register(link.sock, selectors.EVENT_READ, self._from_shim)

    def _from_shim(self) -> None:
        while self._link is not None:
            try:
                received = self._link.receive()
            except OSError:
                self._lost_shim()
                return
            if received is None:
                return
            self._pushed(*received)

    def _lost_shim(self) -> None:
        if self._link is not None:
            self._selector.unregister(self._link.sock)
            self._link.close()
            self._link = None
            self._complete = False
            self._shim_lost_s = time.monotonic()
            self._reconnect()

    def _pushed(self, message: Message, fds: list[int]) -> None:
        event = message.get("event")
        if event == "slots" and len(fds) > 2:
            self._hold(int(message["rank"]), fds)
            return
        close_all(fds)
        if event == "finish":
            self._leave()
        elif event == "trainer":  # pushed after all sets, and again whenever one starts or ends
            self._complete = True
        elif event == "secrets":
            self._take_secrets(message)
        elif event is None and not message.get("ok"):
            print(f"archiver: the shim said {message}", file=sys.stderr)

    def _take_secrets(self, message: Message) -> None:
        if self._mirroring is not None:
            self._mirroring.secrets = dict(message.get("secrets", {}))

    def _hold(self, rank: int, fds: list[int]) -> None:
        """Keep a rank's slots: these descriptors for doorbell and next shim, others of the same for the worker."""
        old = self._given.pop(rank, [])
        if old:
            self._selector.unregister(old[0])
            close_all(old)
        self._given[rank] = fds
        self._held.discard(rank)
        self._selector.register(fds[0], selectors.EVENT_READ, lambda: self._rung(fds[0]))
        self._hand_over(rank)

    def _hand_over(self, rank: int) -> None:
        fds = [os.dup(descriptor) for descriptor in self._given[rank]]

        def take() -> bool:
            try:
                self._archive.add_slots(SlotSet.of(rank, fds))
            except BaseException:
                close_all(fds)
                raise
            return True

        self._worker.submit(take, lambda taken: self._taken(rank) if taken else None, failed=False)

    def _taken(self, rank: int) -> None:
        self._held.add(rank)
        self._scan()

    def _rung(self, bell: int) -> None:
        os.eventfd_read(bell)
        self._scan()

    # -- clients

    def _accept(self, listener: socket.socket) -> None:
        try:
            client, _ = listener.accept()
        except OSError:  # gone again before we came to it
            return
        client.setblocking(False)
        self._selector.register(client, selectors.EVENT_READ, lambda: self._from_client(client))

    def _from_client(self, client: socket.socket) -> None:
        try:
            request, fds = process.receive(client)
        except ValueError as error:
            reply(client, {"ok": False, "error": str(error)})
            return
        except OSError:
            self._selector.unregister(client)
            client.close()
            self._drains = [one for one in self._drains if one is not client]
            return
        close_all(fds)
        self._asked(client, request)

    def _asked(self, client: socket.socket, request: Message) -> None:
        op = request.get("op")
        if op == "restore":
            self._restores.append((client, request, time.monotonic() + SLOTS_S))
            self._tick()
        elif op == "drain":
            self._worker.submit(self._archive.scan, lambda waiting: self._drained(client, waiting), failed=UNKNOWN)
        elif op == "status":
            reply(client, self._status())
        elif op in OPERATIONS:
            self._worker.submit(lambda: self._upkeep.asked(request), lambda answer: reply(client, answer))
        else:
            reply(client, {"ok": False, "error": f"unknown op {op!r}"})

    def _restore_now(self, client: socket.socket, request: Message) -> None:
        self._worker.submit(
            lambda: self._restoring.restore(request, time.time()), lambda answer: self._restored(client, answer)
        )

    def _restored(self, client: socket.socket, answer: Message) -> None:
        reply(client, answer)
        if self._mirroring is not None:
            self._mirroring.wake()

    def _status(self) -> Message:
        facts = {"last": self._archive.last, "failed": self._archive.failed}
        return {"ok": True, "busy": self._worker.outstanding > 0, **facts, "root": self._root}


def main(run_dir: Path) -> int:
    """Be the archiver of a run; returns its exit status. Raises LeaseHeld while another one lives."""
    run = RunDir(run_dir)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, lambda *_: None)  # SIG_IGN would be inherited by a shim that we start, and so by trainers
    runtime = make_runtime(run)
    lock = _only_one(run_dir, runtime / "archiver.lock")
    plan = Plan.from_json(json.loads(run.plan.read_bytes()))
    sentence = ephemeral(Path(plan.checkpoint.dir))
    if sentence is not None:
        EventLog(run.archiver_log).write("warning", id="ephemeral-checkpoints", message=sentence)
    path = runtime / "archiver.sock"
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(128)
        Archiver(run, plan).serve(listener)
        path.unlink(missing_ok=True)
    lock.close()
    return 0


def _only_one(run_dir: Path, path: Path) -> fsio.Held:
    """Hold the lock of this run's archivers until we end. Raises LeaseHeld."""
    try:
        lock = fsio.lock_file(path)
    except BlockingIOError:
        raise LeaseHeld(str(run_dir), fsio.signer(path)) from None
    lock.sign()
    return lock


def _be_modest() -> None:
    """Leave processor and disk to training, as far as the kernel lets us say so.

    Both are a thread's own on Linux, and inherited by what it starts: never call this on the thread that starts a shim.
    """
    os.nice(NICENESS)
    number = {"x86_64": 251, "aarch64": 30}.get(platform.machine())  # ioprio_set
    if number is not None:
        best_effort_lowest = (2 << 13) | 7
        ctypes.CDLL(None).syscall(number, 1, 0, best_effort_lowest)


def _be_modest_among_sessions() -> None:
    """The same where the kernel shares processors out among sessions first, and niceness counts within each alone.

    `man 7 sched`, autogroup. A shim that we start has a session of its own, and so has what it starts.
    """
    if os.getsid(0) == os.getpid():
        with contextlib.suppress(OSError):  # no such kernel, or a container that lets nobody write there
            AUTOGROUP.write_text(str(NICENESS))
