"""What happened to a run, and what is known because of it: the journal, and the state that its events make.

Each event is written, then `lifecycle.decide` names what follows, then that is done. A write is not durable by
itself: `sync` comes before anything that is done outside.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from holdfast import events as ev
from holdfast import journal, lifecycle
from holdfast.node.observer import raised
from holdfast.state import Policy

DISK_RETRY_S = 1.0


class Chronicle:
    """`state` follows every event; whoever reads it on another thread sees one state or the next."""

    def __init__(self, path: Path, policy: Policy, do: Callable[[lifecycle.Action], None]) -> None:
        """Fold the journal at `path`, and go on with it; `do` carries out what an event asks for."""
        self.state = lifecycle.fold(journal.read(path)[0], policy)
        self._journal = journal.Journal(path)
        self._policy, self._do = policy, do

    def apply(self, event: ev.Event) -> None:
        """Journal `event` and do what follows from it."""
        todo = [event]
        while todo:
            event = todo.pop(0)
            self._write(event)
            self.state, actions = lifecycle.decide(self.state, event, self._policy)
            for action in actions:
                if isinstance(action, lifecycle.Emit):
                    todo.append(action.event)
                else:
                    self._do(action)

    def _write(self, event: ev.Event) -> None:
        _until_there_is_room(lambda: self._journal.append(event, durable=False))

    def sync(self) -> None:
        """Make the journal durable."""
        _until_there_is_room(self._journal.sync)

    # -- findings

    def note(self, finding: ev.FindingRaised | ev.FindingCleared) -> None:
        """Journal what is news."""
        known = next((each for each in self.state.findings if each.id == finding.id), None)
        if isinstance(finding, ev.FindingCleared):
            self.clear(finding.id)
        elif known is None or known.message != finding.message:
            self.apply(finding)

    def report(self, name: str, message: str) -> None:
        """Raise the finding `name`, unless that is what is said already."""
        self.note(raised(name, message, at_s=time.time()))

    def clear(self, name: str) -> None:
        """Clear the finding `name`, where it is raised."""
        if any(finding.id == name for finding in self.state.findings):
            self.apply(ev.FindingCleared(t=time.time(), id=name))


def _until_there_is_room(write: Callable[[], None]) -> None:
    """To act without the journal's line would be worse than to be late: a full disk is waited for."""
    while True:
        try:
            write()
        except OSError:  # noqa: PERF203 - tried again on purpose
            time.sleep(DISK_RETRY_S)
        else:
            return
