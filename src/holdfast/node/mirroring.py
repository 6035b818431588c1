"""What the archiver does for the mirror, on a thread of its own: nothing here holds up a save, or training.

A round holds the fence, sends what is due, applies retention and says what it did. A store that is away costs nothing
but its own absence: it is told once, tried again, and catches up with the newest, not with every one that was missed.
What is known of the mirror stands in the run's `mirror.json`, for `status` and `ckpt ls`.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from holdfast import fsio, journal, lifecycle, stores
from holdfast.checkpoint import pins, survey
from holdfast.checkpoint.folder import Folder
from holdfast.checkpoint.lineage import Position
from holdfast.checkpoint.load import Want
from holdfast.checkpoint.retention import LEAST, Candidate, choose
from holdfast.checkpoint.survey import CheckpointInfo
from holdfast.errors import HoldfastError, StoreRefused
from holdfast.goodput import Failures
from holdfast.mirror import origin, pull
from holdfast.mirror.fence import BEAT_S, Fence, Owner, Superseded, alive, is_told_to_stop, refuse_if_alive, revoke_stop
from holdfast.mirror.keeper import Keeper
from holdfast.mirror.view import View
from holdfast.node.eventlog import EventLog
from holdfast.node.mirror_pace import MirrorPace
from holdfast.node.mishaps import Mishaps
from holdfast.node.worker import Worker
from holdfast.plan import Keep, MirrorPlan, Plan
from holdfast.runs import RunDir
from holdfast.stores import Store

RETRY_S = (5.0, 60.0)  # first and longest pause of a store that is away
LOGS_S = 60.0
DRAIN_S = 600.0  # how long the end of a run waits at most for the mirror
AWAY_S = 15.0  # and how long for a store that does not answer


class _TooLate(Exception):
    """The end of the run does not wait any longer."""


class Mirroring:
    """One run's mirror. The archiver calls everything but `bring` on its own thread."""

    def __init__(self, run: RunDir, plan: Plan, log: EventLog, mishaps: Mishaps) -> None:
        assert plan.checkpoint.mirror is not None
        self._run, self._plan, self._log = run, plan, log
        self._mirror: MirrorPlan = plan.checkpoint.mirror
        self._root = Path(plan.checkpoint.dir)
        self.secrets: dict[str, str] = {}
        self.workers = (Worker("mirror", mishaps.tell), Worker("pulse", mishaps.tell))
        self._state = _read(run.mirror, self._mirror.url)
        auto = plan.checkpoint.every.auto and not is_paced(self._mirror)
        self._pace = MirrorPace(log, plan.checkpoint.max_overhead_ratio) if auto else None
        self._keeper: Keeper | None = None
        self._sent_origin = False
        self._sent_logs: dict[str, int] = {}
        self._wanted = True
        self._retry_s = 0.0
        self._due_s = self._beat_s = 0.0
        self._stop_s: float | None = None
        self._lock = threading.Lock()  # of the state: two threads speak of it

    # -- when

    def wake(self) -> None:
        """Something was saved, or an attempt began."""
        self._wanted = True

    def tick(self, now_s: float) -> None:
        """Begin what is due, by `time.monotonic()`."""
        rounds, pulse = self.workers
        if self._state.get("superseded"):
            return
        logs = self._mirror.logs and now_s >= self._due_s + LOGS_S
        if (self._wanted or logs) and now_s >= self._due_s and not rounds.outstanding:
            self._wanted = False
            rounds.submit(self._round, self._after, failed=False)
        if now_s >= self._beat_s + BEAT_S and not pulse.outstanding:
            self._beat_s = now_s
            pulse.submit(self._beat, self._beaten, failed=False)

    def _after(self, done: bool) -> None:
        first_s, most_s = RETRY_S
        self._retry_s = 0.0 if done else min(most_s, max(first_s, 2 * self._retry_s))
        self._wanted = self._wanted or not done
        self._due_s = time.monotonic() + self._retry_s

    def _beaten(self, has_word: bool) -> None:
        self._wanted = self._wanted or has_word

    def finish(self, then: Callable[[None], None]) -> None:
        """Send what is due and is not there yet, within bounds; then say that this run is over."""
        now_s = time.monotonic()
        away = self._state.get("unreachable_since_s") is not None
        self._stop_s = now_s + (AWAY_S if away else min(DRAIN_S, self._plan.checkpoint.timeout_s))
        self.workers[0].submit(self._drain, then)

    # -- a round, on the thread of the mirror

    def _round(self, *, last: bool = False) -> bool:
        """One round; whether nothing went wrong."""
        try:
            self._do(last=last)
        except Superseded as error:
            told = f"{error}{self._where()}"
            self._note(superseded=told)
            self._log.write("warning", id="mirror-superseded", message=told)
        except _TooLate:
            return False
        except (HoldfastError, OSError) as error:
            self._away(error)
            return False
        return True

    def _do(self, *, last: bool) -> None:
        found = survey.take(self._root)
        if found.lease is None:  # nothing was saved yet, or never will be: a program without the library
            if self._plan.yields:
                self._tell_stop(self._connected().store)
                self._back()
            return
        keeper = self._connected()
        keeper.hold()
        self._tell_unfenced(keeper)
        self._tell_stop(keeper.store)
        if not self._sent_origin:
            told = origin.send(self._run, keeper.store)
            self._sent_origin = True
            if told is not None:
                self._log.write("warning", id="mirror-without-code", message=told)
        live = [info for info in found.checkpoints if info.live]
        there = self._look(keeper)
        auto_s = self._pace.interval_s if self._pace is not None else 0.0
        for info in outstanding(live, there, self._mirror, self._plan.checkpoint.keep, last=last, auto_s=auto_s):
            self._push(keeper, info)
        keeper.retire(policy(self._plan.checkpoint.keep, pins.pinned(self._root)))
        self._look(keeper)
        if self._mirror.logs:
            origin.send_logs(self._run, keeper.store, self._sent_logs)
        self._back()

    def _where(self) -> str:
        """Who goes on with the run, as far as the mirror says so."""
        with suppress(HoldfastError, OSError):
            found = alive(stores.connect(self._mirror.url, self._environ()))
            if found is not None:
                return f"; it goes on on {found.owner.host}, in {found.owner.dir}"
        return ""

    def _connected(self) -> Keeper:
        if self._keeper is None:
            store = stores.connect(self._mirror.url, self._environ())
            known = [name for name in [self._state.get("lease")] if name]
            self._keeper = Keeper(self._root, store, bytes_per_s=self._mirror.bytes_per_s, known=known)
            self._beat_s = 0.0  # at once: nobody else must take a mirror for abandoned that was just taken up
        return self._keeper

    def _environ(self) -> dict[str, str]:
        return {**os.environ, **self._plan.env, **self.secrets}

    def _look(self, keeper: Keeper) -> set[Position]:
        """What is on the mirror now."""
        held = [info.position for info in keeper.there()]
        self._note(held=[[one.term, one.sequence] for one in held], lease=keeper.lease and keeper.lease.file_name)
        return set(held)

    def _push(self, keeper: Keeper, info: CheckpointInfo) -> None:
        began_s, processor_s = time.monotonic(), time.process_time()
        pushed = keeper.push(info, self._in_time)
        told = {"term": info.term, "sequence": info.sequence, "step": info.step, "time_s": info.time_s}
        seconds = time.monotonic() - began_s
        self._log.write("mirrored", **told, seconds=seconds, packs=pushed.packs, sent_bytes=pushed.sent_bytes)
        if self._pace is not None and pushed.packs:
            self._pace.sent(seconds, time.process_time() - processor_s, _seen(self._run))

    def _in_time(self, done: int, total: int) -> None:
        if self._stop_s is not None and time.monotonic() > self._stop_s:
            raise _TooLate

    def _tell_unfenced(self, keeper: Keeper) -> None:
        if keeper.enforced is None or self._state.get("enforced") == keeper.enforced:
            return
        self._note(enforced=keeper.enforced)
        if not keeper.enforced:
            told = f"{self._mirror.url} overwrites where it was asked to create; machines are told apart by listing"
            self._log.write("warning", id="mirror-unfenced", message=told)

    def _tell_stop(self, store: Store) -> None:
        """Pass on that the run is to stop, once. Only runs of a pool are told so."""
        if self._plan.yields and not self._state.get("told_to_stop") and is_told_to_stop(store):
            self._note(told_to_stop=True)
            self._log.write("warning", id="mirror-stop", message=f"{self._mirror.url} says that this run is to stop")

    def _away(self, error: Exception) -> None:
        if self._state.get("unreachable_since_s") is None:
            self._note(unreachable_since_s=time.time(), problem=str(error))
            since = time.strftime("%Y-%m-%d %H:%M:%S")
            self._log.write("warning", id="mirror-unreachable", message=f"{error}; since {since}")

    def _back(self) -> None:
        if self._state.get("unreachable_since_s") is not None:
            self._note(unreachable_since_s=None, problem="")
            self._log.write("cleared", id="mirror-unreachable")

    def _beat(self) -> bool:
        """Say that we live; whether the mirror has word for us, which a round looks at."""
        keeper = self._keeper
        if keeper is not None:
            with suppress(HoldfastError, OSError):  # the round tells of a store that is away
                if keeper.lease is None:
                    return self._plan.yields and is_told_to_stop(keeper.store)
                fence = Fence(keeper.store, Owner.here(self._root))
                fence.beat(keeper.lease)
                return self._plan.yields and fence.has_word(keeper.lease)
        return False

    def _drain(self) -> None:
        assert self._stop_s is not None
        done = False
        while not done and not self._state.get("superseded") and time.monotonic() < self._stop_s:
            done = self._round(last=True)
            if not done:
                time.sleep(min(1.0, max(0.0, self._stop_s - time.monotonic())))
        self._tell_behind()
        if self._keeper is not None:
            with suppress(HoldfastError, OSError):  # then its last sign of life grows old by itself
                self._keeper.rest()
                if self._keeper.lease is None and self._state.get("told_to_stop"):
                    revoke_stop(self._keeper.store)

    def _tell_behind(self) -> None:
        live = [info for info in survey.take(self._root).checkpoints if info.live]
        held = {Position(term, sequence) for term, sequence in self._state.get("held", [])}
        if live and live[-1].position not in held:
            told = f"the run ended before step {live[-1].step} was on {self._mirror.url}"
            self._log.write("warning", id="mirror-behind", message=told)

    def _note(self, **fields: Any) -> None:
        with self._lock:
            if all(self._state.get(name) == value for name, value in fields.items()):
                return
            self._state.update(fields)
            with suppress(OSError):  # a full disk: the next one will say it
                fsio.replace(self._run.mirror, json.dumps(self._state).encode())

    # -- the way back, on the thread of the archive

    def bring(self, into: Folder, want: Want, world: int) -> bool:
        """Fill the folder from the mirror; whether anything came.

        Raises HeldElsewhere, NoValidCheckpoint, StoreRefused.
        """
        store = stores.connect(self._mirror.url, self._environ())
        refuse_if_alive(store, Owner.here(self._root))

        def fits(info: CheckpointInfo) -> None:
            if info.world != world:
                raise HoldfastError(f"{info} on {store.url} is of {info.world} ranks, this attempt has {world}")

        began_s = time.monotonic()
        chosen = pull.choose(View(store, {}), into, want, fits=fits)
        for sentence in chosen.fell_back:
            self._log.write("fell_back", message=f"on the mirror, {sentence}")
        if chosen.info is None:
            return False
        self._tell_fetched(chosen.info, began_s)
        return True

    def replace(self, into: Folder, position: Position) -> CheckpointInfo | None:
        """Bring what is damaged in the folder; None when the mirror has no such checkpoint.

        Raises Damaged, FileNotFoundError, StoreRefused, OSError.
        """
        began_s = time.monotonic()
        store = stores.connect(self._mirror.url, self._environ())
        if store.head("format.json") is None:  # a mount that is missing looks like this
            raise StoreRefused(f"there is no mirror at {self._mirror.url}")
        brought = pull.replace(View(store, {}), position, into)
        if brought is not None:
            self._tell_fetched(brought, began_s)
        return brought

    def _tell_fetched(self, info: CheckpointInfo, began_s: float) -> None:
        told = {"term": info.term, "sequence": info.sequence, "step": info.step, "url": self._mirror.url}
        self._log.write("fetched", **told, seconds=time.monotonic() - began_s)


def _seen(run: RunDir) -> Failures:
    """What the journal tells of failures. A run without a supervisor has none: nothing was seen then."""
    try:
        state = lifecycle.fold(journal.read(run.journal)[0])
    except (OSError, ValueError):
        return Failures()
    lives_s = max(0.0, time.time() - state.started.t) if state.started is not None else 0.0
    return replace(state.seen, trained_s=state.seen.trained_s + lives_s)


def outstanding(
    live: list[CheckpointInfo], there: set[Position], mirror: MirrorPlan, keep: Keep, *, last: bool, auto_s: float = 0.0
) -> list[CheckpointInfo]:
    """What is to be sent now, the newest first; then what retention keeps for good. Pure.

    last: the end of the run; the newest is due whatever the cadence says. auto_s: as for `is_due`.
    """
    if not live:
        return []
    newest = live[-1]
    before = max((info for info in live if info.position in there), key=lambda info: info.position, default=None)
    due = last or newest.final or before is None or is_due(mirror, newest, before, auto_s)
    wanted = [newest] if due else []
    judged = [_candidate(info, whole=True, pinned=info.pinned) for info in live]
    recent = set() if last else {info.position for info in live[-LEAST:]}  # kept for being new: the cadence decides
    kept = choose(judged, replace(keep, last=1)) - recent - {newest.position}
    wanted += [info for info in reversed(live) if info.position in kept]
    return [info for info in wanted if info.position not in there]


def is_paced(mirror: MirrorPlan) -> bool:
    """Whether the run file says how often."""
    return any(limit is not None for limit in (mirror.every_s, mirror.every_steps, mirror.every_epochs))


def is_due(mirror: MirrorPlan, newest: CheckpointInfo, before: CheckpointInfo, auto_s: float = 0.0) -> bool:
    """Whether the newest checkpoint is asked for after the one that was sent before. Pure.

    auto_s: how far apart they are in time, in seconds, where `mirror.every` says nothing; 0 for each commit.
    """
    passed_s = abs(newest.time_s - before.time_s)  # the one before may be of a machine whose clock is an hour ahead
    if not is_paced(mirror):
        return newest.position > before.position and passed_s >= auto_s
    passed = (passed_s, newest.step - before.step, newest.epoch - before.epoch)
    asked = (mirror.every_s, mirror.every_steps, mirror.every_epochs)
    return any(limit is not None and done >= limit for done, limit in zip(passed, asked, strict=True))


def policy(
    keep: Keep, pinned: Collection[Position] = ()
) -> Callable[[list[tuple[CheckpointInfo, bool]]], set[Position]]:
    """`checkpoint.keep` for `Keeper.retire`; what is `pinned` in the folder stays on the mirror, too."""

    def kept(found: list[tuple[CheckpointInfo, bool]]) -> set[Position]:
        judged = [_candidate(info, whole=whole, pinned=info.position in pinned) for info, whole in found]
        return choose(judged, keep, now_s=time.time())

    return kept


def _candidate(info: CheckpointInfo, *, whole: bool, pinned: bool) -> Candidate:
    return Candidate(
        position=info.position, step=info.step, epoch=info.epoch, time_s=info.time_s, metrics=info.metrics,
        whole=whole, pinned=pinned, needs=info.needs,
    )  # fmt: skip


def _read(path: Path, url: str) -> dict[str, Any]:
    """mirror.json as an earlier archiver left it, of this mirror. What others have said there is asked anew."""
    try:
        found: Mapping[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError):
        found = {}
    if not isinstance(found, dict) or found.get("url") != url:
        return {"url": url}
    return {name: value for name, value in found.items() if name not in ("superseded", "told_to_stop")}
