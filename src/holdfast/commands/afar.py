"""Commands that a verb names, as its caller types them: from afar `holdfast stop r` is `holdfast stop --on HOST r`.

Without that a hint would mean another run, or none, on the machine of who reads it.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from contextvars import ContextVar
from functools import cache

CALLED = "HOLDFAST_CALLED"  # in the environment of a call: what its caller calls this machine
_host = ContextVar("_host", default="")


def begin() -> None:
    """Learn what the caller of this verb calls this machine. What the verb starts knows nothing of it."""
    _host.set(os.environ.pop(CALLED, ""))


def typed(text: str) -> str:
    """`text`, with the caller's name of this machine in every command that goes there. As it is for a caller here."""
    host = _host.get()
    if not host or "--on " in text:
        return text
    return _commands().sub(lambda found: f"{found[0]} --on {shlex.quote(host)}", text)


@cache
def _commands() -> re.Pattern[str]:
    return re.compile(rf"\bholdfast (?:{'|'.join(map(re.escape, _travelling()))})\b")


def _travelling() -> Iterator[str]:
    """Every verb that takes `--on`."""
    from holdfast.commands import VERBS, ckpt, hosts

    yield "run"
    for group, table in (("", VERBS), ("ckpt ", ckpt.VERBS), ("host ", hosts.VERBS)):
        yield from (group + name for verbs in table.values() for name, verb in verbs.items() if verb.away is not None)
