"""A child forked from the service: everything is imported already, and nothing of the service is left in it.

The service has one thread, so a fork finds no lock taken. The child never returns into the event loop it was forked in:
it does its work and leaves by `os._exit`. Signals are blocked from before the fork until the child has handlers of its
own; until then the loop's wake-up descriptor is the service's, and a signal to the child would be told to the service.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable, Collection
from typing import IO, NoReturn

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)

Streams = tuple[int, int, int]  # descriptors to become 0, 1 and 2


class Child:
    """One, in a session of its own; `work` returns its exit status. `terminals`: streams that a person looks at."""

    def __init__(self, work: Callable[[], int], streams: Streams, terminals: Collection[int] = ()) -> None:
        """Raises OSError, and then there is none."""
        service = os.getpid()
        place = os.dup(streams[0])  # for what we wait with: where no descriptor is left, nothing is begun
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self.pid = os.fork()
            if self.pid == 0:
                try:
                    _live(work, streams, terminals, service)
                finally:
                    os._exit(1)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            os.close(place)
        loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[int] = loop.create_future()  # its exit status, negative for a signal
        self._descriptor = os.pidfd_open(self.pid)
        loop.add_reader(self._descriptor, self._reap)

    def signal(self, number: int) -> None:
        """To all of its process group; to nobody once it has ended. Raises PermissionError."""
        if self.ended.done():
            return
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:  # it has no group yet
            os.kill(self.pid, number)

    def _reap(self) -> None:
        _, status = os.waitpid(self.pid, 0)
        asyncio.get_running_loop().remove_reader(self._descriptor)
        os.close(self._descriptor)
        self.ended.set_result(os.waitstatus_to_exitcode(status))


def _live(work: Callable[[], int], streams: Streams, terminals: Collection[int], service: int) -> NoReturn:
    status = 1
    try:
        _begin_anew(streams, terminals, service)
        status = work()
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError, ValueError):
                    stream.flush()
        finally:
            os._exit(status)


def _begin_anew(streams: Streams, terminals: Collection[int], service: int) -> None:
    gc.freeze()  # a socket of the service that is collected here would close a descriptor that is another's by now
    os.setsid()
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGHUP, 0, 0, 0)  # a service that is killed leaves no verb without a reader
    if os.getppid() != service:  # it was killed before that
        os.kill(os.getpid(), signal.SIGHUP)
    signal.set_wakeup_fd(-1)
    for told in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(told, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
    for entry in os.listdir("/proc/self/fd"):  # noqa: PTH208 - names are all that is wanted
        if int(entry) > 2:
            with contextlib.suppress(OSError):  # the one that listed them
                os.close(int(entry))
    sys.stdin, sys.stdout, sys.stderr = (_text(number, number in terminals) for number in range(3))
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


class _Terminal(io.TextIOWrapper):
    """A pipe whose bytes a terminal shows in the end."""

    def isatty(self) -> bool:
        return True


def _text(number: int, terminal: bool) -> IO[str]:
    made = _Terminal if terminal else io.TextIOWrapper
    return made(
        open(number, "wb" if number else "rb", closefd=False),
        encoding="utf-8",
        errors="backslashreplace" if number == 2 else "surrogateescape",
        line_buffering=terminal or number == 2,
    )
