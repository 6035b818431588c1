"""A run of a pool whose machine may go silent: what is kept here of it, and the process that looks after it.

`$HOLDFAST_HOME/standbys/<run>/`: `standby.json` is the order, `state.json` what the last look brought, `lock` is held
for as long as the process lives, `log` is what it says. Secrets come on its standard input and stay in its memory, so
that it alone may be able to tell a run to stop through the mirror: where `stop` lies it does so before it ends, and
then takes that away, or leaves there why it could not.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from holdfast import fsio, process, runs
from holdfast.errors import HoldfastError, LeaseHeld, UsageError
from holdfast.mirror import fence, succession
from holdfast.mirror.succession import LOOK_S, REST_S, Next
from holdfast.runs import RunDir
from holdfast.spec.fields import NAME
from holdfast.stores import Store

VERSION = 1
NEEDS_SECRETS = "needs secrets"  # the state of one that nobody could start again
BLIND = "cannot read the mirror"
_START_S = 30.0
_END_S = 10.0
_STOP_S = 30.0  # a store is told meanwhile
_GLANCE_S = 0.5  # how long at most somebody who asks who holds the lock has it himself


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What somebody who placed the run elsewhere asked of this machine. No secret is in it."""

    run: str
    url: str  # of the mirror
    failover_s: float
    cwd: str  # where the code lies here, should it not be on the mirror
    env: dict[str, str]  # `envs` of the run file, which the mirror may need
    secret_names: tuple[str, ...] = ()
    accelerators: str = ""  # as in the run file
    since_s: float = 0.0

    @classmethod
    def decoded(cls, told: Mapping[str, Any]) -> Order:
        """From `standby.json`. Raises KeyError, TypeError, AttributeError."""
        fields = {name: value for name, value in told.items() if name != "version"}
        return cls(**{**fields, "secret_names": tuple(fields["secret_names"])})


Connect = Callable[[Order, Mapping[str, str]], Store]  # to the mirror, with these secrets. Raises HoldfastError
Take = Callable[[Order, Mapping[str, str]], RunDir]  # takes the mirror over, starts the run. Raises HoldfastError
Free = Callable[[Order], bool]  # whether this machine has the devices now


class Standby:
    """One folder of them."""

    def __init__(self, run: str) -> None:
        """Raises UsageError for what is no name of a run, and no folder of ours then."""
        if not NAME.fullmatch(run):
            raise UsageError(f"{run!r} is not the name of a run")
        self.run = run
        self.root = folder() / run

    @property
    def log(self) -> Path:
        """What its process says."""
        return self.root / "log"

    def order(self) -> Order:
        """What was asked. Raises HoldfastError."""
        file = self.root / "standby.json"
        try:
            return Order.decoded(json.loads(file.read_bytes()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise HoldfastError(f"{file} cannot be read: {error}", hint=f"rm -r {self.root}") from error

    def keep(self, order: Order) -> None:
        """Write it down. Raises OSError."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        text = json.dumps({"version": VERSION, **asdict(order)}, indent=1)
        fsio.replace(self.root / "standby.json", text.encode())

    def note(self, state: str, **facts: Any) -> None:
        """What `state` tells from now on. A disk that is full keeps what was told before."""
        try:
            fsio.replace(self.root / "state.json", json.dumps({"state": state, **facts}).encode())
        except OSError as error:
            _say(f"state.json: {error}")

    def state(self) -> dict[str, Any]:
        """Run, state, since when it stands by, and when the run gave a sign of life last, in unix seconds."""
        told = self._told()
        if told["state"] != NEEDS_SECRETS and self.holder() is None:
            told["state"] = "nobody looks"
        order = self.order()
        known = {"run": order.run, "url": order.url, "failover_s": order.failover_s, "since_s": order.since_s}
        return {**known, "alive_s": None, "why": "", **told}

    def _told(self) -> dict[str, Any]:
        """What the last look brought, as far as that can be read."""
        with suppress(OSError, ValueError):
            told = json.loads((self.root / "state.json").read_bytes())
            if isinstance(told, dict) and "state" in told:
                return told
        return {"state": Next.WATCH.value}

    def holder(self) -> process.Identity | None:
        """The process that looks after it, if there is one."""
        try:
            if (lock := fsio.DISK.lock(self.root / "lock", shared=True)) is not None:
                lock.close()
                return None
            told = json.loads((self.root / "lock").read_bytes() or b"{}")
        except FileNotFoundError:
            return None
        return process.Identity(int(told.get("pid", 0)), int(told.get("start_ticks", 0)))

    def start(self, secrets: Mapping[str, str]) -> None:
        """Leave a process behind that looks after it. Raises LeaseHeld when one does, HoldfastError."""
        command = [*process.command(), "node", "standby", "serve", self.run]
        with open(self.log, "ab", opener=_private) as log:
            child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, cwd="/", env=process.node_environment(),
                start_new_session=True,
            )  # fmt: skip
        try:
            child.communicate(json.dumps(dict(secrets)).encode(), timeout=_START_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()
            raise HoldfastError(f"what stands by for {self.run} did not start within {_START_S:g} s") from None
        if child.returncode == LeaseHeld.exit_code:
            holder = self.holder()
            raise LeaseHeld(str(self.root), holder.pid if holder else 0)
        if child.returncode:
            raise HoldfastError(f"what stands by for {self.run} did not start", hint=f"see {self.log}")

    def end(self) -> None:
        """Stand by no more."""
        self._end_process(_END_S)
        shutil.rmtree(self.root, ignore_errors=True)

    def stop(self, connect: Connect) -> str:
        """Tell the run to stop, through its mirror, and stand by no more; why it could not be told, or empty.

        Raises OSError where nobody stands by.
        """
        self._word.write_text(f"it did not do so within {_STOP_S:g} s")
        if not self._end_process(_STOP_S):
            self._tell(lambda: connect(self.order(), {}))
        why = self._word.read_text() if self._word.exists() else ""
        shutil.rmtree(self.root, ignore_errors=True)
        return why

    @property
    def _word(self) -> Path:
        return self.root / "stop"

    def _tell(self, connect: Callable[[], Store]) -> None:
        try:
            fence.tell_to_stop(connect())
        except Exception as error:  # whoever asked is told, whatever a store does
            self._word.write_text(str(error))
        else:
            self._word.unlink()

    def _end_process(self, within_s: float) -> bool:
        """Whether there was one; one that does not end is killed."""
        deadline_s, was_there = time.monotonic() + within_s, False
        while (holder := self.holder()) is not None:
            late, was_there = time.monotonic() > deadline_s, True
            process.send_signal(holder, signal.SIGKILL if late else signal.SIGTERM)
            time.sleep(0.05)
        return was_there

    def serve(self, connect: Connect, take: Take, free: Free) -> int:
        """Be that process; 11 where another one is. Secrets are read from standard input."""
        secrets = json.loads(sys.stdin.buffer.read() or b"{}")
        try:
            lock = fsio.lock_file(self.root / "lock", wait_s=_GLANCE_S)
        except BlockingIOError:
            return LeaseHeld.exit_code
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        order = self.order()
        watch = Watch(self, order, lambda: connect(order, secrets), lambda: take(order, secrets), lambda: free(order))
        try:
            signal.signal(signal.SIGTERM, _leave)  # before anybody can read whom to end
            if child := os.fork():
                _sign(lock, child)
                os._exit(0)  # whoever started us sees that it stands
            watch.run()
        finally:
            if self._word.exists():
                self._tell(lambda: connect(order, secrets))
        return 0


class Watch:
    """Looks at one mirror until the run goes on here, or nobody needs that any more."""

    def __init__(
        self,
        place: Standby,
        order: Order,
        connect: Callable[[], Store],
        take: Callable[[], RunDir],
        free: Callable[[], bool],
    ) -> None:
        self._place, self._order = place, order
        self._connect, self._take, self._free = connect, take, free
        self._store: Store | None = None
        self._blind_s = float("-inf")  # when the mirror could not be read last
        self._lived_s = time.monotonic()  # when somebody claimed to live last
        self._alive_s: float | None = None  # the same in unix seconds, by the sign itself

    def run(self) -> None:
        """Until the end of it."""
        while (pause_s := self.once()) is not None:
            time.sleep(pause_s)

    def once(self) -> float | None:
        """One look and what follows; seconds to the next one, None when there is none."""
        if (runs.home() / "runs" / self._order.run / "plan.json").exists():  # somebody has resumed it by hand
            _say(f"{self._order.run} is here now")
            self._leave()
            return None
        try:
            seen = self._look()
        except Exception as error:  # whatever a store does, the next look may bring more
            self._failed(error, "the mirror cannot be read")
            self._blind_s = time.monotonic()
            self._note(BLIND, str(error))
            return LOOK_S
        now_s, failover_s = time.monotonic(), self._order.failover_s
        is_silent = seen.age_s is not None and seen.age_s >= failover_s
        then = succession.decide(
            seen, failover_s=failover_s, free=is_silent and self._free(), watched_s=now_s - self._blind_s,
            rested_s=now_s - self._lived_s,
        )  # fmt: skip
        if then is Next.TAKE:
            return self._go_on(seen.host)
        if then is Next.LEAVE:
            why = "was told to stop" if seen.stopped else "has been at rest for a day"
            _say(f"{self._order.run} {why}: nobody stands by here any more")
            self._leave()
            return None
        self._note(then.value)
        return REST_S if then is Next.REST else LOOK_S

    def _look(self) -> succession.Look:
        if self._store is None:
            self._store = self._connect()
        seen = succession.look(self._store)
        if seen.age_s is not None:
            self._lived_s, self._alive_s = time.monotonic(), time.time() - max(0.0, seen.age_s)
        return seen

    def _go_on(self, silent: str) -> float | None:
        """Take the run over; who loses to another one, or cannot, stands by as before."""
        _say(f"{silent} is silent: {self._order.run} is to go on here")
        self._note(Next.TAKE.value)
        try:
            run = self._take()
        except Exception as error:  # as above: somebody has to stand by
            self._failed(error, f"{self._order.run} does not go on here")
            self._note(Next.WATCH.value, str(error))
            return LOOK_S
        _say(f"{run.id} goes on here")
        self._leave()
        return None

    def _failed(self, error: Exception, what: str) -> None:
        """Say it, with the trace of what nobody foresaw."""
        _say(f"{what}: {error}")
        if not isinstance(error, (HoldfastError, OSError)):
            traceback.print_exception(error)

    def _note(self, state: str, why: str = "") -> None:
        self._place.note(state, alive_s=self._alive_s, why=why, looked_s=time.time())

    def _leave(self) -> None:
        shutil.rmtree(self._place.root, ignore_errors=True)


def folder() -> Path:
    """Where they lie."""
    return runs.home().absolute() / "standbys"


def every() -> Iterator[Standby]:
    """All of this machine, by the names of their runs."""
    if folder().is_dir():
        ours = (path for path in sorted(folder().iterdir()) if NAME.fullmatch(path.name))
        yield from (Standby(path.name) for path in ours if (path / "standby.json").is_file())


def _leave(*_: object) -> None:
    """By way of every `finally`, none of which is disturbed by whoever asks again."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(0)


def _say(sentence: str) -> None:
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {sentence}", file=sys.stderr, flush=True)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _sign(lock: fsio.Held, pid: int) -> None:
    """Say which process has the lock."""
    who = process.identity(pid)
    os.ftruncate(lock.descriptor, 0)
    told = {"pid": pid, "start_ticks": who.start_ticks if who else 0}
    os.pwrite(lock.descriptor, json.dumps(told).encode(), 0)
