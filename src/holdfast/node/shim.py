"""The process that does not die: parent of everything else in a run, and the only one that starts any of it.

It decides nothing. It starts the supervisor and the archiver and brings them back, starts the trainer when the
supervisor asks, writes down how each of them ended, hands out the slots, and keeps secrets in memory. Should it die
all the same, the next one adopts what lives.

There are never two trainers: whoever wants to start one holds `lock`. A child between fork and exec still holds it
too (the descriptor closes on exec), so a new shim that got the lock sees every earlier child as what it will be, and
finds one that nobody wrote down by the marks in its environment.

Standard library only, and of holdfast nothing but `slotmemory`: no mistake elsewhere may reach this process.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import selectors
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from holdfast.node.slotmemory import SlotFiles, Slots, Source, bells, living_memory, new_memory

LOCKED = 11
MESSAGE_BYTES = 192 * 1024
LONGEST_DELAY_S = 5.0
SETTLED_S = 10.0  # a child that lived this long is brought back at once
OFFERS_S = 5.0  # how long a new shim waits for the offers of those it adopted before it makes slots of its own
FIRST_RANK_S = 60.0  # alone: how long to wait for the first rank
OURS = ("supervisor", "archiver")
_STARTS = ("-I", str(Path(__file__).resolve().parents[1])) if sys.flags.isolated else ("-m", "holdfast")  # as we were

Message = dict[str, Any]


@dataclass(slots=True)
class Child:
    """A process of the run. `popen` is set when we are its parent, `pidfd` when we adopted it."""

    role: str
    pid: int
    start_ticks: int
    attempt: int = 0
    popen: subprocess.Popen[bytes] | None = None
    pidfd: int = -1
    since_s: float = field(default_factory=time.monotonic)


@dataclass(slots=True)
class Link:
    """A connection; `role` is set by its hello."""

    sock: socket.socket
    role: str = ""
    rank: int = -1


def start_ticks(pid: int) -> tuple[int, str] | None:
    """(field 22, state) of /proc/<pid>/stat, None when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    fields = text[text.rindex(")") + 2 :].split()
    return int(fields[19]), fields[0]


def exit_status(pidfd: int, pid: int) -> int | None:
    """Wait status of a process that ended and is not our child; None where nobody can tell.

    A zombie shows it in /proc/<pid>/stat, a reaped one in PIDFD_GET_INFO with PIDFD_INFO_EXIT (Linux 6.15, `struct
    pidfd_info` in linux/pidfd.h). It may be reaped in between, so the kernel is asked again.
    """
    for ask in (_status_of_reaped, _status_of_zombie, _status_of_reaped):
        status = ask(pidfd, pid)
        if status is not None:
            return status
    return None


def _status_of_reaped(pidfd: int, _pid: int) -> int | None:
    info_exit = 1 << 3
    info = bytearray(struct.pack("=Q", info_exit).ljust(64, b"\0"))
    try:
        fcntl.ioctl(pidfd, 0xC040FF0B, info)  # _IOWR(0xFF, 11, struct pidfd_info of 64 bytes)
    except OSError:
        return None
    mask, status = struct.unpack_from("=Q", info)[0], struct.unpack_from("=i", info, 60)[0]
    return int(status) if mask & info_exit else None


def _status_of_zombie(_pidfd: int, pid: int) -> int | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    fields = text[text.rindex(")") + 2 :].split()
    return int(fields[49]) if fields[0] == "Z" else None


class Shim:
    """One run's shim; `run` is its life."""

    def __init__(self, run_dir: Path, runtime: Path, *, alone: bool, secrets: dict[str, str]) -> None:
        self.run_dir, self.runtime, self.alone, self.secrets = run_dir, runtime, alone, secrets
        self.boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        self.children: dict[str, Child] = {}
        self.links: dict[str, Link] = {}  # supervisor and archiver, once they said hello
        self.ranks: dict[int, tuple[int, int, Link]] = {}  # pid, start ticks
        self.slots: dict[int, Slots] = {}
        self.files = SlotFiles.of(run_dir, runtime, self.boot)
        self.waiting: list[tuple[Link, Message]] = []  # requests for slots that may still be offered
        self.offers_until_s = 0.0
        self.exits: list[Message] = []  # not acknowledged yet
        self.number = 0
        self.delay_s = dict.fromkeys(OURS, 0.0)
        self.due_s = dict.fromkeys(OURS, 0.0)
        self.finishing = False
        self.started_s = time.monotonic()
        self.seen_rank = False
        self.terminated = False
        self.recorded: set[tuple[int, int]] = set()  # trainers whose exit is in our log
        self.written = ""  # processes.json as it is
        self.selector = selectors.DefaultSelector()
        self.wakeup = socket.socketpair()

    # -- life

    def run(self, listener: socket.socket) -> None:
        """Serve until the run is over."""
        self._watch_signals()
        self._remember_exits()
        self._adopt()
        self._find_slots()
        listener.setblocking(False)
        self.selector.register(listener, selectors.EVENT_READ, lambda: self._accept(listener))
        while not self._over():
            self._bring_back()
            self._write_processes()
            for key, _ in self.selector.select(self._patience_s()):
                key.data()
            self._reap()
            self._forward_terminate()
            self._answer_waiting()
        if self.files is not None:
            self.files.remove()
        shutil.rmtree(self.runtime, ignore_errors=True)  # under the lock: the next shim makes it anew

    def _watch_signals(self) -> None:
        ours, kernels = self.wakeup
        for end in self.wakeup:
            end.setblocking(False)
        signal.set_wakeup_fd(kernels.fileno(), warn_on_full_buffer=False)
        self.selector.register(ours, selectors.EVENT_READ, lambda: ours.recv(4096))
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # inherited by every child: a lost terminal touches nobody
        for number in (signal.SIGINT, signal.SIGUSR1):  # a scheduler's USR1 to everything is meant for the trainer
            signal.signal(number, lambda *_: None)  # a handler is reset by exec, an ignored signal is not
        signal.signal(signal.SIGTERM, self._on_terminate)

    def _on_terminate(self, *_: Any) -> None:
        self.terminated = True

    def _forward_terminate(self) -> None:
        supervisor = self.children.get("supervisor")
        if self.terminated and supervisor is not None:
            self.terminated = False
            with contextlib.suppress(ProcessLookupError):
                os.kill(supervisor.pid, signal.SIGTERM)

    def _patience_s(self) -> float | None:
        if self.waiting:
            return 0.05
        soon = [self.due_s[role] for role in self._wanted() if role not in self.children]
        if soon:
            return max(0.0, min(soon) - time.monotonic())
        return 1.0 if self.alone else None

    def _over(self) -> bool:
        if self.alone and not self.finishing and self._ranks_are_gone():
            self._finish()
        return self.finishing and "archiver" not in self.children and "supervisor" not in self.children

    def _ranks_are_gone(self) -> bool:
        for rank, (pid, ticks, _) in list(self.ranks.items()):
            if not _lives(pid, ticks):
                del self.ranks[rank]
        waited = self.seen_rank or time.monotonic() - self.started_s > FIRST_RANK_S
        return waited and not self.ranks

    # -- children

    def _wanted(self) -> tuple[str, ...]:
        if self.finishing:
            return ()
        return ("archiver",) if self.alone else OURS

    def _bring_back(self) -> None:
        for role in self._wanted():
            if role not in self.children and time.monotonic() >= self.due_s[role]:
                self.delay_s[role] = min(LONGEST_DELAY_S, 2 * self.delay_s[role] or 0.05)
                self.due_s[role] = time.monotonic() + self.delay_s[role]
                with open(self.run_dir / "node.log", "ab", opener=_private) as log:
                    popen = subprocess.Popen(
                        [sys.executable, *_STARTS, "node", role, str(self.run_dir)],
                        stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", close_fds=False,
                        start_new_session=True,
                    )  # fmt: skip
                self._started(role, popen)

    def _started(self, role: str, popen: subprocess.Popen[bytes], attempt: int = 0) -> Child:
        ticks, _ = start_ticks(popen.pid) or (0, "")  # ours and not reaped yet, so it is there
        child = Child(role, popen.pid, ticks, attempt, popen=popen)
        self.children[role] = child
        self._write_processes()
        self._log(event="start", role=role, attempt=attempt, pid=child.pid, start_ticks=ticks, at_s=time.time())
        return child

    def _reap(self) -> None:
        """Collect children, and orphans that became ours as their subreaper."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for child in list(self.children.values()):
                if child.pid == pid and child.popen is not None:
                    child.popen.returncode = status  # so that Popen never waits for a pid that is somebody else's now
                    self._exited(child, status)

    def _exited(self, child: Child, status: int | None) -> None:
        self._forget(child)
        if time.monotonic() - child.since_s > SETTLED_S and child.role in OURS:
            self.delay_s[child.role] = self.due_s[child.role] = 0.0
        self.number += 1
        record = {"number": self.number, "role": child.role, "attempt": child.attempt, "pid": child.pid,
                  "start_ticks": child.start_ticks, "status": status, "at_s": time.time()}  # fmt: skip
        self._log(event="exit", **record)
        self._write_processes()
        if child.role == "trainer":
            self.exits.append(record)
            self._push("archiver", {"event": "trainer", "alive": False})
        self._push("supervisor", {"event": "exit", **record})

    def _forget(self, child: Child) -> None:
        if self.children.get(child.role) is child:
            del self.children[child.role]
        if child.pidfd >= 0:
            self.selector.unregister(child.pidfd)
            os.close(child.pidfd)
            child.pidfd = -1

    # -- adoption

    def _remember_exits(self) -> None:
        """Read our own log: exits that no supervisor has acknowledged, and the last number given."""
        for entry in _json_lines(self.run_dir / "shim.jsonl"):
            if entry.get("event") == "exit":
                self.number = max(self.number, entry["number"])
                self.recorded.add((entry["pid"], entry["start_ticks"]))
                if entry["role"] == "trainer":
                    self.exits.append({name: value for name, value in entry.items() if name != "event"})
            elif entry.get("event") == "ack":
                self._acknowledge(entry["exit"])

    def _adopt(self) -> None:
        try:
            known = json.loads((self.runtime / "processes.json").read_text())
        except (OSError, ValueError):
            known = {"boot": self.boot, "spawning": True}  # cleaned away, or the first shim of the run
        if known["boot"] != self.boot:
            return  # the machine was restarted: these pids are strangers
        for role in (*OURS, "trainer"):
            if known.get(role):
                self._adopt_one(Child(role, **known[role]))
        if known["spawning"] is not None and "trainer" not in self.children:
            self._find_unrecorded()
        if self.children:
            self.offers_until_s = time.monotonic() + OFFERS_S

    def _adopt_one(self, child: Child) -> None:
        now = start_ticks(child.pid)
        try:
            child.pidfd = os.pidfd_open(child.pid)
        except OSError:
            now = None
        if now is None or now[0] != child.start_ticks:
            if child.pidfd >= 0:
                os.close(child.pidfd)
                child.pidfd = -1
            if child.role == "trainer" and (child.pid, child.start_ticks) not in self.recorded:
                self._exited(child, None)
            return
        self.children[child.role] = child
        self.selector.register(child.pidfd, selectors.EVENT_READ, lambda: self._adopted_exited(child))

    def _adopted_exited(self, child: Child) -> None:
        self._exited(child, exit_status(child.pidfd, child.pid))

    def _find_unrecorded(self) -> None:
        """The shim before us died between starting a trainer and writing it down."""
        mark = f"HOLDFAST_RUN_DIR={self.run_dir}".encode()
        for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):  # noqa: PTH208 - names only
            with contextlib.suppress(OSError):  # gone meanwhile, or another user's
                marks = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                attempts = [int(entry[17:]) for entry in marks if entry.startswith(b"HOLDFAST_ATTEMPT=")]
                if mark in marks and attempts and os.getsid(pid) == pid:
                    self._adopt_one(Child("trainer", pid, (start_ticks(pid) or (0, ""))[0], attempts[0]))
                    return

    # -- the socket

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # who called has hung up
            sock, _ = listener.accept()
            sock.setblocking(False)
            link = Link(sock)
            self.selector.register(sock, selectors.EVENT_READ, lambda: self._readable(link))

    def _readable(self, link: Link) -> None:
        fds: list[int] = []
        try:
            raw, fds, _, _ = socket.recv_fds(link.sock, MESSAGE_BYTES, 16, socket.MSG_CMSG_CLOEXEC)
        except (BlockingIOError, ConnectionResetError):  # a reset is told once, before what the dead have sent
            return
        except OSError:
            raw = b""
        if not raw:
            self._close(link)
            return
        try:
            message = json.loads(raw)
            reply = self._handle(link, message, fds)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reply = {"ok": False, "error": f"{type(error).__name__}: {error}", "errno": getattr(error, "errno", None)}
        finally:
            for descriptor in fds:  # a handler that keeps one takes it out of the list
                os.close(descriptor)
        if reply is not None:
            self._send(link, reply)

    def _handle(self, link: Link, message: Message, fds: list[int]) -> Message | None:
        op = message["op"]
        handlers: dict[str, Callable[[], Message | None]] = {
            "hello": lambda: self._hello(link, message),
            "ack": lambda: self._acknowledge(message["exit"], log=True),
            "spawn": lambda: self._spawn(message),
            "finish": self._finish,
            "slots": lambda: self._ask_slots(link, message),
            "offer": lambda: self._offer(message, fds),
            "secrets": lambda: self._secrets(message["values"]),
        }
        if op not in handlers:
            return {"ok": False, "error": f"unknown op {op!r}"}
        return handlers[op]()

    def _send(self, link: Link, message: Message, fds: list[int] | None = None) -> None:
        """One message or none; who does not read is cut off and says hello again."""
        raw = json.dumps(message, separators=(",", ":")).encode()
        try:
            if fds:
                socket.send_fds(link.sock, [raw], fds)
            else:
                link.sock.send(raw)
        except OSError:
            self._close(link)

    def _push(self, role: str, message: Message, fds: list[int] | None = None) -> None:
        if role in self.links:
            self._send(self.links[role], message, fds)

    def _close(self, link: Link) -> None:
        if link.sock.fileno() < 0:
            return
        self.selector.unregister(link.sock)
        link.sock.close()
        if self.links.get(link.role) is link:
            del self.links[link.role]
        for rank in [rank for rank, (_, _, held) in self.ranks.items() if held is link]:
            if self.alone:
                del self.ranks[rank]

    # -- requests

    def _hello(self, link: Link, message: Message) -> Message | None:
        link.role = str(message["role"])
        if link.role == "rank":
            return self._hello_rank(link, message)
        if link.role not in OURS:
            return {"ok": False, "error": f"unknown role {link.role!r}"}
        self._recognise(link)
        self.links[link.role] = link
        told = {"trainer": self._entry("trainer"), "exits": self.exits} if link.role == "supervisor" else {}
        self._send(link, {"ok": True, "secrets": self.secrets, **told})
        for rank, slots in self.slots.items():
            self._push(link.role, {"event": "slots", "rank": rank}, slots.fds)
        if link.role == "archiver":
            self._push("archiver", {"event": "trainer", "alive": "trainer" in self.children or self.alone})
            if self.finishing:
                self._push("archiver", {"event": "finish"})
        return None

    def _recognise(self, link: Link) -> None:
        """A supervisor or archiver that a former shim started without writing it down."""
        raw = link.sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        pid = struct.unpack("=iII", raw)[0]
        known = self.children.get(link.role)
        if known is None:
            self._adopt_one(Child(link.role, pid, (start_ticks(pid) or (0, ""))[0]))

    def _hello_rank(self, link: Link, message: Message) -> Message | None:
        if self.alone and self.finishing:  # there is no archiver any more: the rank starts another shim, which has one
            self._close(link)
            return None
        rank, pid, ticks = int(message["rank"]), int(message["pid"]), int(message["start_ticks"])
        held = self.ranks.get(rank)
        if held is not None and held[:2] != (pid, ticks) and _lives(held[0], held[1]):
            error = f"rank {rank} of {self.run_dir} is process {held[0]}"
            return {"ok": False, "exit_code": LOCKED, "pid": held[0], "error": error}
        self.seen_rank = True
        link.rank = rank
        self.ranks[rank] = (pid, ticks, link)
        return {"ok": True}

    def _acknowledge(self, number: int, *, log: bool = False) -> Message:
        self.exits = [record for record in self.exits if record["number"] != number]
        if log:
            self._log(event="ack", exit=number)
        return {"ok": True}

    def _spawn(self, message: Message) -> Message:
        if "trainer" in self.children or self.finishing:
            held = self._entry("trainer")
            return {"ok": False, "error": f"a trainer lives already: {held}", "trainer": held}
        attempt = int(message["attempt"])
        marks = {"HOLDFAST_RUN_DIR": str(self.run_dir), "HOLDFAST_ATTEMPT": str(attempt)}
        wanted: dict[str, str | None] = {**os.environ, **self.secrets, **message["env"], **marks}
        env = {name: value for name, value in wanted.items() if value is not None}
        self._write_processes(spawning=attempt)
        with open(message["output"], "ab", opener=_private) as output:
            popen = subprocess.Popen(
                message["argv"], cwd=message["cwd"], env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True, close_fds=False,
            )  # fmt: skip
        with contextlib.suppress(OSError):  # short of memory the kernel takes the trainer, not its keepers
            Path(f"/proc/{popen.pid}/oom_score_adj").write_text("500")
        child = self._started("trainer", popen, attempt)
        self._push("archiver", {"event": "trainer", "alive": True})
        return {"ok": True, "pid": child.pid, "start_ticks": child.start_ticks}

    def _finish(self) -> Message:
        if "trainer" in self.children:
            return {"ok": False, "error": f"a trainer lives: {self._entry('trainer')}"}
        self.finishing = True
        self._push("archiver", {"event": "finish"})
        return {"ok": True}

    def _secrets(self, values: dict[str, str]) -> Message:
        self.secrets.update({str(name): str(value) for name, value in values.items()})
        self._push("supervisor", {"event": "secrets", "values": self.secrets})
        self._push("archiver", {"event": "secrets", "secrets": self.secrets})
        return {"ok": True}

    # -- slots

    def _find_slots(self) -> None:
        """What living processes hold, and files of `memory_dir`; who lives offers its set all the same.

        Nobody has to offer: a rank does so at a step only, and may die before its next one.
        """
        for rank, memfds in living_memory(self._memory_name()).items():
            self._take(rank, bells() + memfds, Source.FOUND)
        for rank in self.files.ranks() if self.files is not None else ():
            if rank not in self.slots:
                fds, _ = self._make_slots(rank, in_files=True)
                self._take(rank, fds, Source.FOUND)

    def _memory_name(self) -> str:
        return f"holdfast-{self.runtime.name}"

    def _offers_to_come(self) -> bool:
        """Whether one that we adopted has not said hello: what the last shim sent it may lie in its socket alone."""
        adopted = [child.role for child in self.children.values() if child.role in OURS and child.popen is None]
        return time.monotonic() < self.offers_until_s and any(role not in self.links for role in adopted)

    def _ask_slots(self, link: Link, message: Message) -> Message | None:
        rank, in_files = int(message["rank"]), bool(message.get("files", True))
        told = ""
        if rank not in self.slots or not in_files:
            if rank not in self.slots and self._offers_to_come():
                self.waiting.append((link, message))
                return None
            fds, told = self._make_slots(rank, in_files=in_files)
            self._take(rank, fds, Source.RANK)
        self.slots[rank].source = Source.RANK
        self._send(link, {"ok": True, "rank": rank, "warning": told}, self.slots[rank].fds)
        return None

    def _make_slots(self, rank: int, *, in_files: bool) -> tuple[list[int], str]:
        """Doorbells and slots of a rank; a sentence when they are not the files they should be."""
        told = ""
        if self.files is not None and in_files:
            try:
                return bells() + self.files.open(rank), ""
            except OSError as error:
                told = f"checkpoint.memory_dir cannot be used: {error.strerror or error}: {self.files.folder}"
        elif self.files is not None:
            self.files.remove(rank)
        return bells() + new_memory(self._memory_name(), rank), told

    def _answer_waiting(self) -> None:
        waiting, self.waiting = self.waiting, []
        for link, message in waiting:
            if link.sock.fileno() >= 0:
                self._ask_slots(link, message)

    def _offer(self, message: Message, fds: list[int]) -> Message:
        rank = int(message["rank"])
        source = Source.KEPT if message.get("role") in OURS else Source.RANK
        held = self.slots.get(rank)
        # What archiver and supervisor keep may be older than what was found, or be the same with the rank's doorbells.
        wanted = held is None or (source > held.source and (source is Source.RANK or held.same_memory(fds)))
        if fds and wanted:
            self._take(rank, list(fds), source)
            fds.clear()
        return {"ok": True}

    def _take(self, rank: int, fds: list[int], source: Source) -> None:
        for descriptor in self.slots[rank].fds if rank in self.slots else ():
            os.close(descriptor)
        self.slots[rank] = Slots(fds, source)
        for role in OURS:
            self._push(role, {"event": "slots", "rank": rank}, fds)

    # -- what is written down

    def _entry(self, role: str) -> Message | None:
        child = self.children.get(role)
        if child is None:
            return None
        return {"pid": child.pid, "start_ticks": child.start_ticks, "attempt": child.attempt}

    def _write_processes(self, *, spawning: int | None = None) -> None:
        me = {"pid": os.getpid(), "start_ticks": (start_ticks(os.getpid()) or (0, ""))[0]}
        told = {role: self._entry(role) for role in (*OURS, "trainer")}
        text = json.dumps({"boot": self.boot, "shim": me, **told, "spawning": spawning})
        if text == self.written:
            return
        path = self.runtime / "processes.json"
        with contextlib.suppress(OSError):  # the folder may have been cleaned away or be full: we live on
            path.with_suffix(".new").write_text(text)
            path.with_suffix(".new").rename(path)
            self.written = text

    def _log(self, **entry: Any) -> None:
        try:
            with open(self.run_dir / "shim.jsonl", "ab", opener=_private) as log:
                log.write(json.dumps(entry, separators=(",", ":")).encode() + b"\n")
        except OSError as error:
            print(f"shim.jsonl: {error}", file=sys.stderr)  # a full disk must not end us; memory still has it


def _lives(pid: int, ticks: int) -> bool:
    now = start_ticks(pid)
    return now is not None and now[0] == ticks and now[1] not in "ZXx"


def _json_lines(path: Path) -> list[Message]:
    found = []
    with contextlib.suppress(OSError):  # not there before the first entry
        for line in path.read_bytes().splitlines():
            with contextlib.suppress(ValueError):  # a torn last line
                found.append(json.loads(line))
    return [entry for entry in found if isinstance(entry, dict)]


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _make_private(folder: Path) -> None:
    """A folder that only this user can write to. Raises PermissionError when somebody else made it before us."""
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise PermissionError(f"{folder} belongs to another user")


def _become_subreaper() -> None:
    import ctypes  # only here: it costs a megabyte that stays

    ctypes.CDLL(None, use_errno=True).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def main(run_dir: Path, runtime: Path, *, alone: bool, detach: bool) -> int:
    """Take the lock, listen, leave the caller if `detach`, and serve. Returns 11 when the run has a shim already."""
    secrets = json.loads(sys.stdin.buffer.read() or b"{}") if detach else {}
    lock = os.open(run_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return LOCKED
    for folder in (runtime.parent, runtime, runtime / "pages"):  # the shim before us may have removed them
        _make_private(folder)
    path = runtime / "shim.sock"
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(path))
    path.chmod(0o600)
    listener.listen(128)
    if detach and os.fork():
        os._exit(0)  # the caller sees that the socket stands; the child is nobody's
    if detach:
        _leave_stdio()
    os.ftruncate(lock, 0)
    os.pwrite(lock, json.dumps({"pid": os.getpid()}).encode(), 0)
    keep = os.open(runtime, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    fcntl.flock(keep, fcntl.LOCK_SH)  # cleaners of temporary folders leave a locked one alone
    _become_subreaper()
    Shim(run_dir, runtime, alone=alone, secrets=secrets).run(listener)
    return 0


def _leave_stdio() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1):
        os.dup2(null, number)
    os.close(null)
