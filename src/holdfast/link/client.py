"""How a verb gets a connection: from the agent, which is started when there is none."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NoReturn

from holdfast import crowd, fsio, process
from holdfast.errors import HoldfastError, HostUnreachable, LeaseHeld, UsageError
from holdfast.link import asking, clock, hosts, messages
from holdfast.link.agent import PROTOCOL, socket_path
from holdfast.link.hosts import Settings
from holdfast.link.mux import End, MasterGone, Silent
from holdfast.link.states import PERSON_S, State
from holdfast.link.target import make_folder, users_config

START_S = 10.0
_LOOK_S = 0.02
SHARE_S = 60.0  # for a session to be free, and a Python to begin in it


class AgentGone(HoldfastError):
    """The link agent has ended: its links and forwards are gone. Another one is started by whoever asks next."""


class NeedsAuthentication(HostUnreachable):
    """A person has to let ssh in: nothing is tried again by itself."""


@dataclass(frozen=True, slots=True)
class Up:
    """A link that is up: `path` is the control socket of its master, or of what stands in for it.

    single: its server opens one session at a time; by_one: everything goes over one session, without terminals.
    """

    alias: str
    key: str
    path: str
    trip_s: float
    single: bool = False
    by_one: bool = False


class Links:
    """One client of the agent. The links it has asked for are in use until it is closed."""

    def __init__(self) -> None:
        self._agent = _connected()

    def __enter__(self) -> Links:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """The links may go when nobody else uses them."""
        self._agent.close()

    def interrupt(self) -> None:
        """Whoever waits for an answer in another thread gets AgentGone."""
        with contextlib.suppress(OSError):
            self._agent.shutdown(socket.SHUT_RDWR)

    def up(
        self,
        alias: str,
        *,
        config: str = "",
        within_s: float = 30.0,
        said: Settings | None = None,
        run_file: Settings | None = None,
        asked_s: float | None = None,
    ) -> Up:
        """A connection to `alias`, within a time. Raises NeedsAuthentication, HostUnreachable, UsageError.

        What ssh asks on the way is put to whoever sits at our terminal; that time does not count.
        said, run_file: settings of the command line, and of a run file, for this call.
        asked_s: time of `clock` from which on a refusal is an answer to this; by default now, so that it is tried.
        """
        since_s = clock.now_s() if asked_s is None else asked_s
        asked = {"op": "want", "alias": alias, "config": config or users_config(), "within_s": within_s}
        asked |= {"asked_s": since_s, "asks": asking.is_possible(), "auth_sock": os.environ.get("SSH_AUTH_SOCK", "")}
        asked["chosen"] = hosts.for_call(alias, said, run_file).encoded()
        most_s = within_s + START_S + PERSON_S  # who is asked may sit at another terminal
        told = self._ask(asked, most_s)
        if told["ok"]:
            return _up(alias, told)
        why = told["why"] or f"the link is {told['state']}, no answer within {within_s:g} s"
        if told["state"] == State.NEEDS_AUTHENTICATION.value:
            raise NeedsAuthentication(why, hint=told["hint"])
        raise HostUnreachable(f"{alias} cannot be reached: {why}", hint=told["hint"])

    def share(self, up: Up, command: str) -> Up:
        """`up` over one session, in which `command` starts `holdfast node channels`. Raises HostUnreachable."""
        return _up(up.alias, self._ask({"op": "share", "key": up.key, "command": command}, SHARE_S))

    def every(self) -> list[dict[str, Any]]:
        """What the agent holds: alias, state, trip_s, users and why, of each link."""
        return list(self._ask({"op": "links"}, START_S)["links"])

    def changed(self, key: str, state: str, *, within_s: float) -> dict[str, Any]:
        """The link as soon as it is in another state, or after a time as it is. Raises HostUnreachable, AgentGone."""
        return self._ask({"op": "changed", "key": key, "state": state, "within_s": within_s}, within_s + START_S)

    def forward(self, key: str, listen: int, end: End, *, keep: bool = False) -> int:
        """Let a port of this machine lead to `end` there, until we leave; with `keep` until it is ended.

        listen: 0 for any port. Returns the port. Raises UsageError when it is taken.
        """
        there = {"host": end.host, "port": end.port, "path": end.path}
        told = self._ask({"op": "forward", "key": key, "listen": listen, "keep": keep, **there}, START_S)
        return int(told["listen"])

    def forwards(self) -> list[dict[str, Any]]:
        """Those of the agent: alias, listen, connect, kept, connections, why, and the state of the link."""
        return list(self._ask({"op": "forwards"}, START_S)["forwards"])

    def unforward(self, listen: int) -> None:
        """End a forward by its port, whose ever it is. Raises UsageError when there is none."""
        self._ask({"op": "unforward", "listen": listen}, START_S)

    def drop(self, key: str) -> None:
        """End a connection, whoever uses it."""
        self._ask({"op": "drop", "key": key}, START_S)

    def _ask(self, message: dict[str, Any], within_s: float) -> dict[str, Any]:
        self._agent.settimeout(within_s)
        try:
            with crowd.ended_by(self.interrupt):
                told = self._answer(message)
        except ConnectionError as error:
            raise AgentGone("the link agent has ended") from error
        except (OSError, ValueError) as error:
            self.close()  # what comes too late is no answer to the next question
            raise HoldfastError(f"the link agent does not answer: {error}") from error
        if "error" in told:
            raise _KINDS.get(told.get("exit_code", 0), HoldfastError)(told["error"], hint=told.get("hint", ""))
        return told

    def _answer(self, message: dict[str, Any]) -> dict[str, Any]:
        """What the agent says to it, once a person has answered what it asks before."""
        messages.send(self._agent, message)
        told: dict[str, Any] = messages.receive(self._agent)
        while told.get("event") == "question":
            messages.send(self._agent, {"op": "answer", "question": told["question"], "text": asking.put(told)})
            told = messages.receive(self._agent)
        return told


def _up(alias: str, told: dict[str, Any]) -> Up:
    return Up(alias, told["key"], told["path"], told["trip_s"], told["single"], told["by_one"])


_KINDS: dict[int, type[HoldfastError]] = {kind.exit_code: kind for kind in (HostUnreachable, UsageError)}


def held() -> list[dict[str, Any]]:
    """What the agent holds, as `Links.every`; nothing where there is none, and none is started."""
    try:
        told = messages.request(socket_path(), {"op": "links"}, timeout_s=START_S)
    except OSError:
        return []
    return list(told["links"])


@contextlib.contextmanager
def telling(up: Up) -> Iterator[None]:
    """A master that goes meanwhile is told by its link: how that stands now, and why. Raises HostUnreachable."""
    try:
        yield
    except MasterGone as error:
        link = next((one for one in held() if one["key"] == up.key), {"state": State.DOWN.value, "why": "", "hint": ""})
        if link["state"] == State.UP.value and not isinstance(
            error, Silent
        ):  # it is there again, or the agent does not know yet
            raise HostUnreachable(f"{up.alias}: the connection was cut") from error
        raise HostUnreachable(
            f"{up.alias}: the link is {link['state']}: {link['why'] or error}", hint=link["hint"]
        ) from error


def _connected() -> socket.socket:
    """To the agent that lives, or to one that is started now. Raises HoldfastError."""
    with contextlib.suppress(OSError):
        return _connect()
    # one of all who ask at once: an interpreter for each would take many seconds
    with fsio.lock_file(make_folder() / "starting.lock", wait_s=math.inf):
        deadline_s = time.monotonic() + START_S
        while True:
            try:
                return _connect()
            except OSError as error:
                if time.monotonic() > deadline_s:
                    raise HoldfastError(f"the link agent cannot be reached: {error}") from error
            _start()


def _connect() -> socket.socket:
    agent = socket.socket(socket.AF_UNIX)
    agent.settimeout(START_S)  # one that is stopped takes nobody, once enough wait
    try:
        agent.connect(str(socket_path()))
        messages.send(agent, {"op": "links"})
        told = messages.receive(agent)  # one that was killed takes connections until its last thread has ended
        if told.get("protocol", 1) != PROTOCOL:
            _part_with(told)
    except BaseException as error:
        agent.close()
        if isinstance(error, OSError) and error.errno == errno.EPROTOTYPE:  # it speaks in packets, not on a stream
            raise HoldfastError(
                "the link agent that runs here is of an older holdfast", hint=f"`kill {_pid()}`: runs go on"
            ) from error
        raise
    return agent


def _pid() -> int:
    """Of the agent that holds the lock."""
    return fsio.signer(make_folder() / "agent.lock")


def _part_with(told: dict[str, Any]) -> NoReturn:
    """An agent of another holdfast with the same HOLDFAST_HOME: an older one that nobody uses is ended.

    Raises ConnectionResetError then, HoldfastError where it has to stay.
    """
    if told.get("protocol", 1) > PROTOCOL:
        raise HoldfastError(
            "the link agent that runs here is of a newer holdfast", hint="use that one, or another HOLDFAST_HOME"
        )
    pid = _pid()
    used = [link["alias"] for link in told["links"] if link["users"]]
    if used:
        raise HoldfastError(
            f"the link agent that runs here is of an older holdfast, and in use for {', '.join(used)}",
            hint=f"let those commands end, or `kill {pid}`: runs go on",
        )
    who = process.identity(pid)
    deadline_s = time.monotonic() + START_S
    if who is not None and process.send_signal(who, signal.SIGTERM):
        while process.alive(who) and time.monotonic() < deadline_s:
            time.sleep(_LOOK_S)
    raise ConnectionResetError("the link agent of an older holdfast was ended")


def _start() -> None:
    """Returns when an agent listens. Raises HoldfastError."""
    log = make_folder() / "agent.log"
    argv = [*process.command(), "link-agent"]
    try:
        with log.open("ab") as said:
            status = subprocess.call(
                argv, stdin=subprocess.DEVNULL, stdout=said, stderr=said, cwd="/", start_new_session=True,
                timeout=START_S,
            )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise HoldfastError(f"the link agent did not start within {START_S:g} s", hint=f"see {log}") from None
    if status not in (0, LeaseHeld.exit_code):  # one that is just ending holds its lock still
        is_full = shutil.disk_usage(log.parent).free == 0
        hint = f"free some space in {log.parent}" if is_full else f"see {log}"
        raise HoldfastError(f"the link agent ended with status {status}", hint=hint)
