"""One thread for what takes long, so that an event loop goes on answering."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

Job = Callable[[], Any]
Then = Callable[[Any], None]


class Worker:
    """Runs jobs one after the other on its thread, and what follows each of them on the caller's."""

    def __init__(self, name: str) -> None:
        """`wake` is an eventfd that is readable when `collect` has something to do."""
        self.wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.outstanding = 0
        self._jobs: SimpleQueue[tuple[Job, Then]] = SimpleQueue()
        self._done: deque[tuple[Then, Any, BaseException | None]] = deque()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def submit(self, job: Job, then: Then) -> None:
        """Run `job` there, later `then(result)` here."""
        self.outstanding += 1
        self._jobs.put((job, then))

    def collect(self) -> None:
        """Call what follows jobs that are done. Raises what a job raised."""
        try:
            os.eventfd_read(self.wake)
        except BlockingIOError:
            return
        while self._done:
            then, result, error = self._done.popleft()
            self.outstanding -= 1
            if error is not None:
                raise error
            then(result)

    def _run(self) -> None:
        while True:
            job, then = self._jobs.get()
            result, error = None, None
            try:
                result = job()
            except BaseException as raised:
                error = raised
            self._done.append((then, result, error))
            os.eventfd_write(self.wake, 1)
