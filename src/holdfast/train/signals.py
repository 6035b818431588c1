"""What this process does about signals, exceptions, forks and the interpreter's end. Handlers only set flags."""

from __future__ import annotations

import atexit
import faulthandler
import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any, Protocol

from holdfast.heartbeat import Handlers


class Owner(Protocol):
    """Who is told; every call is made in the process that installed the hooks, but for `forked`."""

    def terminate(self) -> None: ...

    def save_signalled(self) -> None: ...

    def raised(self) -> None: ...

    def leaving(self) -> None: ...

    def forked(self) -> None: ...


class Hooks:
    """Installed once a Run, removed by `remove`. `handlers` says what stands, for the heartbeat page."""

    def __init__(self, owner: Owner) -> None:
        self._owner: Owner | None = owner
        self._pid = os.getpid()
        self._previous: dict[signal.Signals, Any] = {}  # what stood before ours
        self._previous_hook = sys.excepthook
        self.handlers = Handlers.NONE
        self._install_signals()
        sys.excepthook = self._excepthook
        atexit.register(self._at_exit)
        os.register_at_fork(after_in_child=self._after_fork)

    def _install_signals(self) -> None:
        try:
            faulthandler.register(signal.SIGUSR2, file=2, all_threads=True, chain=False)
            self.handlers |= Handlers.STACKS
        except (OSError, ValueError):  # stderr is closed: nobody will send us USR2
            self.handlers = Handlers.NONE
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGUSR1):
                self._previous[number] = signal.signal(number, self._on_signal)
            self.handlers |= Handlers.TERMINATE | Handlers.SAVE

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._owner is not None and os.getpid() == self._pid:
            (self._owner.terminate if number == signal.SIGTERM else self._owner.save_signalled)()
        previous = self._previous[signal.Signals(number)]
        if callable(previous):
            previous(number, frame)

    def _excepthook(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if self._owner is not None and os.getpid() == self._pid:
            self._owner.raised()
        self._previous_hook(kind, error, trace)

    def _at_exit(self) -> None:
        if self._owner is not None and os.getpid() == self._pid:
            self._owner.leaving()

    def _after_fork(self) -> None:
        owner, self._owner = self._owner, None
        if owner is None:
            return
        for number, previous in self._previous.items():
            signal.signal(number, previous or signal.SIG_DFL)
        owner.forked()

    def remove(self) -> None:
        """Give everything back that nobody has taken over since."""
        self._owner = None
        atexit.unregister(self._at_exit)
        if sys.excepthook == self._excepthook:
            sys.excepthook = self._previous_hook
        if threading.current_thread() is threading.main_thread():
            for number, previous in self._previous.items():
                if signal.getsignal(number) == self._on_signal:
                    signal.signal(number, previous or signal.SIG_DFL)
