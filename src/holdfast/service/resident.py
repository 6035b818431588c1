"""Starting the service: at most one for each user, HOLDFAST_HOME and bundle, detached from whoever starts it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from holdfast import fsio
from holdfast.errors import HoldfastError, UsageError
from holdfast.service import address
from holdfast.service.answers import Status
from holdfast.service.calls import Verb
from holdfast.service.server import IDLE_S, Service

START_S = 15.0
_AGAIN_S = 0.02
_STALE_S = 86400.0


def main(argv: Sequence[str], load: Callable[[], tuple[Verb, Status]]) -> int:
    """Leave a service behind that listens, or find one; returns our exit status.

    load: imports all that verbs need; returns what runs a command line, and what gives the status of one run.
    """
    idle_s = _idle_s(argv)
    address.make_folder()
    path = address.socket_path()
    lock = _lock(path)
    if lock is None:
        return 0
    verb, status = load()
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        before = os.umask(0o177)
        listener.bind(str(path))
        os.umask(before)
        listener.listen(128)
        ours = path.stat()
        if os.fork():
            return 0
        _detach(path.with_suffix(".log"))
        _sweep(path.parent)
        try:
            asyncio.run(_until_told(Service(verb=verb, status=status, idle_s=idle_s), listener))
        finally:
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(ours, path.stat()):  # and not that of one that began after somebody tidied /tmp
                    _remove(path)
    lock.close()
    return 0


def _idle_s(argv: Sequence[str]) -> float:
    if not argv:
        return IDLE_S
    if len(argv) != 2 or argv[0] != "--idle":
        raise UsageError(f"holdfast node service {' '.join(argv)}: expected nothing or --idle SECONDS")
    try:
        return float(argv[1])
    except ValueError:
        raise UsageError(f"--idle {argv[1]!r} is not a number of seconds") from None


def _lock(path: Path) -> fsio.Held | None:
    """Ours for as long as this process lives; None once another one that has it listens. Raises HoldfastError."""
    deadline_s = time.monotonic() + START_S
    while True:
        try:
            return fsio.lock_file(path.with_suffix(".lock"))
        except BlockingIOError:
            if _listens(path):
                return None
        if time.monotonic() > deadline_s:
            raise HoldfastError(
                f"another service holds {path} and does not listen", hint=f"see {path.with_suffix('.log')}"
            )
        time.sleep(_AGAIN_S)


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
        try:
            link.connect(str(path))
        except OSError:
            return False
        return True


def _detach(log: Path) -> None:
    """From the session, the folder, the streams and the habits of whoever started us."""
    os.setsid()
    os.chdir("/")
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # who ignores it leaves that to us, and no child's end is told then
    nothing = os.open(os.devnull, os.O_RDWR)
    said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
    for number, descriptor in enumerate((nothing, nothing, said)):
        os.dup2(descriptor, number)
    os.close(nothing)
    os.close(said)
    gc.collect()
    gc.freeze()  # what a child never touches it need not copy


def _remove(path: Path) -> None:
    """Socket, lock, and the log where nothing unexpected was said; those who wait for the lock make another."""
    log = path.with_suffix(".log")
    if log.exists() and not log.stat().st_size:
        log.unlink()
    path.unlink()
    path.with_suffix(".lock").unlink(missing_ok=True)


def _sweep(folder: Path) -> None:
    """What services that were killed left a day ago or more."""
    for left in folder.glob("service-*.lock"):
        with contextlib.suppress(FileNotFoundError, BlockingIOError):  # somebody else is faster; it lives
            if time.time() - left.stat().st_mtime > _STALE_S:
                with fsio.lock_file(left):
                    for suffix in (".sock", ".log", ".lock"):
                        left.with_suffix(suffix).unlink(missing_ok=True)


async def _until_told(service: Service, listener: socket.socket) -> None:
    serving = asyncio.get_running_loop().create_task(service.serve(listener))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, serving.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await serving
