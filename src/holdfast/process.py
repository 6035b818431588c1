"""Who is who among processes, one question over a local socket, and starting the shim.

A pid alone is no name: it is given again to somebody else. (pid, start time) is one within a boot, `boot_id` tells
boots apart. Standard library only: the trainer side uses it too.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast.errors import HoldfastError, LeaseHeld
from holdfast.runs import RunDir

MESSAGE_BYTES = 192 * 1024  # a SEQPACKET message must fit the kernel's default send buffer, 208 KiB
MAX_FDS = 16

# The trainer's, never the shim's: a run started from within a run is another run.
TRAINER_VARIABLES = (
    "HOLDFAST_RUN_DIR",
    "HOLDFAST_RUN_ID",
    "HOLDFAST_ATTEMPT",
    "HOLDFAST_CKPT_DIR",
    "HOLDFAST_RESUME",
    "HOLDFAST_RUNTIME_DIR",
    "HOLDFAST_WANT",
    "HOLDFAST_RATES",
)
CALLER_PYTHONPATH = "HOLDFAST_CALLER_PYTHONPATH"  # what PYTHONPATH was before `start_shim` put us on it


@dataclass(frozen=True, slots=True)
class Identity:
    """A process for as long as the machine is up."""

    pid: int
    start_ticks: int  # /proc/<pid>/stat field 22, clock ticks since boot


def stat_fields(pid: int) -> list[str] | None:
    """The fields of /proc/<pid>/stat from the third (state) on; None when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    return text[text.rindex(")") + 2 :].split()  # the name before it may hold spaces and brackets


def identity(pid: int) -> Identity | None:
    """The process `pid` now; None when it is gone or a zombie."""
    fields = stat_fields(pid)
    if fields is None or fields[0] in "ZXx":
        return None
    return Identity(pid, int(fields[19]))


def age_s() -> float:
    """Seconds since this process was started, its interpreter and imports included."""
    me = identity(os.getpid())
    began_s = me.start_ticks / os.sysconf("SC_CLK_TCK") if me else 0.0
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - began_s)


def alive(process: Identity) -> bool:
    """Whether exactly this process still runs (a stopped one does)."""
    return identity(process.pid) == process


def send_signal(process: Identity, number: int) -> bool:
    """Signal exactly this process; False when it is gone, or not ours to signal."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except OSError:
        return False
    try:
        if not alive(process):
            return False
        signal.pidfd_send_signal(descriptor, number)
    except (ProcessLookupError, PermissionError):
        return False
    finally:
        os.close(descriptor)
    return True


def environment(pid: int) -> dict[str, str]:
    """The environment `pid` was started with; empty when it is gone or not ours to read."""
    try:
        raw = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    pairs = (entry.partition(b"=") for entry in raw.split(b"\0") if entry)
    return {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}


def boot_id() -> str:
    """Changes with each start of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def request(
    sock_path: Path, message: Mapping[str, Any], *, fds: Sequence[int] = (), timeout_s: float
) -> tuple[dict[str, Any], list[int]]:
    """One message there, one back, over a new SOCK_SEQPACKET connection.

    Returns the reply and the descriptors that came with it, which are the caller's to close.
    Raises OSError when nobody listens, TimeoutError after `timeout_s`, ConnectionError when the other side hung up.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link:
        link.settimeout(timeout_s)
        link.connect(str(sock_path))
        send(link, message, fds)
        return receive(link)


def send(link: socket.socket, message: Mapping[str, Any], fds: Sequence[int] = ()) -> None:
    """Send one message with its descriptors. Raises OSError (EMSGSIZE past `MESSAGE_BYTES`)."""
    raw = json.dumps(message, separators=(",", ":")).encode()
    if fds:
        socket.send_fds(link, [raw], list(fds))
    else:
        link.send(raw)


def receive(link: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Receive one message. Raises ConnectionResetError at the end, ValueError, and OSError as the socket does."""
    try:
        raw, fds, _, _ = socket.recv_fds(link, MESSAGE_BYTES, MAX_FDS, socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:  # it died with something of ours unread: told once, before what it had sent
        raw, fds, _, _ = socket.recv_fds(link, MESSAGE_BYTES, MAX_FDS, socket.MSG_CMSG_CLOEXEC)
    if not raw:
        raise ConnectionResetError("the other side hung up")
    message = json.loads(raw)
    if not isinstance(message, dict):
        raise ValueError(f"a message is a JSON object, not {raw[:40]!r}")
    return message, list(fds)


def start_shim(
    run: RunDir,
    *,
    alone: bool = False,
    secrets: Mapping[str, str] | None = None,
    within_s: float = 15.0,
) -> None:
    """Start the shim of `run`, detached from everything of the caller; returns when its socket answers.

    What is started takes the lock, listens, forks and leaves, so its exit status is the answer. Raises LeaseHeld when
    another live shim holds the lock, HoldfastError with the end of node.log when it died.
    """
    argv = [*command(), "node", "shim", str(run.root), "--detach", *(["--alone"] if alone else [])]
    with open(run.node_log, "ab", opener=_private) as log:
        said_before = log.tell()
        child = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=log,
            cwd="/",
            env=node_environment(),
            start_new_session=True,
        )
    try:
        child.communicate(json.dumps(dict(secrets or {})).encode(), timeout=within_s)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        raise HoldfastError(f"the shim of {run.root} did not start within {within_s:g} s") from None
    if child.returncode == LeaseHeld.exit_code:
        raise LeaseHeld(str(run.root), holder(run))
    if child.returncode != 0:
        said = run.node_log.read_bytes()[said_before:].decode(errors="replace").strip()
        raise HoldfastError(
            f"the shim of {run.root} ended with status {child.returncode}: {said[-500:] or 'it said nothing'}",
            hint=f"see {run.node_log}",
        )


def holder(run: RunDir) -> int:
    """The pid that the lock file names, 0 when it names none."""
    try:
        return int(json.loads(run.lock.read_text())["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def callers(environ: Mapping[str, str]) -> dict[str, str]:
    """`environ` with the PYTHONPATH that was there before we put ourselves on it. Pure."""
    kept = {name: value for name, value in environ.items() if name != CALLER_PYTHONPATH}
    before = environ.get(CALLER_PYTHONPATH, environ.get("PYTHONPATH", ""))
    kept.pop("PYTHONPATH", None)
    return {**kept, "PYTHONPATH": before} if before else kept


def command() -> list[str]:
    """The words that start this holdfast again; isolated from PYTHONPATH, PYTHONHOME and so on, if it is so itself."""
    if sys.flags.isolated:
        return [sys.executable, "-I", str(Path(__file__).resolve().parent)]
    return [sys.executable, "-m", "holdfast"]


def node_environment() -> dict[str, str]:
    """Ours for what `command` starts: nothing of an outer run, `holdfast` importable, the caller's PYTHONPATH kept."""
    environ = {name: value for name, value in os.environ.items() if name not in TRAINER_VARIABLES}
    if sys.flags.isolated:
        return environ
    before = environ.setdefault(CALLER_PYTHONPATH, environ.get("PYTHONPATH", ""))
    package = str(Path(__file__).resolve().parent.parent)
    environ["PYTHONPATH"] = os.pathsep.join(part for part in (package, before) if part)
    return environ
