"""What the supervisor looks at: pages, records, the archiver's lines, the output file, the disk."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from holdfast import events as ev
from holdfast import findings
from holdfast.node import launch, logfile, tail, watch
from holdfast.node.attempt import Attempt
from holdfast.node.headroom import Headroom
from holdfast.node.tail import Tail
from holdfast.plan import Plan
from holdfast.runs import RunDir
from holdfast.state import State

NO_LIBRARY_S = 60.0
FULL = ("No space left", f"Errno {errno.ENOSPC}", "Disk quota exceeded", "disk is full", "disk full")


class Observer:
    """Turns what it sees into events; decides nothing about the run."""

    def __init__(self, run: RunDir, plan: Plan, *, since_s: float) -> None:
        """`since_s`: what was written before, in unix seconds, is in the journal already."""
        self._run, self._plan = run, plan
        self.memory = watch.Memory()
        self.over = True  # no rank is silent for too long
        self._archiver = Tail(run.archiver_log, word='"event"')
        self._ranks: dict[str, Tail] = {}
        self._punched = 0
        self._unbounded = False
        self._next_line_s = time.monotonic() + plan.logs.heartbeat_s
        self._since_s = since_s
        self._headroom = Headroom(run)
        self._stop = threading.Event()
        if plan.logs.sync == "everysec":
            threading.Thread(target=self._sync_records, name="sync", daemon=True).start()

    def close(self) -> None:
        """Stop what runs beside. No trainer may live."""
        self._stop.set()
        self._headroom.release()

    # -- silence

    def look(self, state: State, attempt: Attempt, *, now_s: float) -> ev.HangDetected | None:
        """One look at the pages; a hang is told once, until the ranks move again."""
        number = state.attempt
        beats = attempt.pages.beats(number)
        self.memory = watch.look(self.memory, beats, attempt=number, now_s=now_s)
        limits = watch.Limits(
            startup_s=self._plan.watchdog.startup_s,
            progress_s=self._plan.watchdog.progress_s,
            checkpoint_timeout_s=self._plan.checkpoint.timeout_s,
        )
        found = watch.silence(self.memory, beats, now_s=now_s, limits=limits, library=state.library)
        was_over, self.over = self.over, found is None
        self.bound_output()
        self._headroom.keep()
        self._heartbeat_line(state, attempt)
        if found is None or not was_over or state.stop is not None or state.segment is not None:
            return None
        return ev.HangDetected(
            t=time.time(), attempt=number, silent_s=found.silent_s, allowed_s=found.allowed_s, step=found.step,
            phase=found.phase,
        )  # fmt: skip

    # -- findings

    def remarks(self, state: State, *, now_s: float) -> Iterator[ev.FindingRaised | ev.FindingCleared]:
        """What is worth knowing about the running attempt."""
        started = state.started
        ran_s = now_s - started.t if started else 0.0
        if not state.library and started and ran_s > NO_LIBRARY_S and not self.memory.steps_seen:
            told = f"the program has not used the library in its first {NO_LIBRARY_S:.0f} s"
            yield raised("no-library", told, at_s=now_s)
        elif state.library:
            yield ev.FindingCleared(t=now_s, id="no-library")
        if self._unbounded:
            told = f"{self._run.output} is on a file system that cannot punch holes: it grows without bound"
            yield raised("log-unbounded", told, at_s=now_s)

    # -- news from files

    def news(self, state: State) -> Iterator[ev.Event]:
        """Events that the library and the archiver wrote and the journal does not have."""
        yield from self._library(state)
        for line in self._archiver.new():
            with suppress(KeyError, TypeError, ValueError):  # a line of another version
                yield from _archived(line, state, self._since_s)

    def _library(self, state: State) -> Iterator[ev.Event]:
        with suppress(OSError):  # nothing recorded yet
            for path in sorted(self._run.records.glob("rank-*.jsonl")):
                if path.name not in self._ranks:
                    self._ranks[path.name] = Tail(path, word='"event"')
        for name, lines in self._ranks.items():
            for line in lines.new():
                with suppress(KeyError, TypeError, ValueError):  # as above
                    yield from self._recorded(line, state, first=name == "rank-00000.jsonl")

    def _recorded(self, line: dict[str, Any], state: State, *, first: bool) -> Iterator[ev.Event]:
        at_s, attempt = float(line.get("t", 0.0)), int(line.get("attempt", state.attempt))
        kind = line["event"]
        if kind == "restored" and first:
            known = state.restored
            if known is None or known.attempt < attempt:
                yield ev.Restored(
                    t=at_s, attempt=attempt, step=int(line["step"]), term=int(line.get("term", 0)),
                    manifest=str(line.get("manifest", "")), fell_back=[str(told) for told in line.get("fell_back", [])],
                    seconds=float(line.get("seconds", 0.0)), tier=str(line.get("tier", "")),
                )  # fmt: skip
                if line.get("fell_back"):
                    yield raised("checkpoint-damaged", str(line["fell_back"][0]), at_s=at_s)
        elif at_s < self._since_s:
            return
        elif kind == "tracker" and first and line["variable"] in launch.TRACKERS:
            value = str(line["value"])[:200]
            yield ev.TrackerSeen(t=at_s, attempt=attempt, variable=str(line["variable"]), value=value)
        elif kind == "interval" and first:
            yield _chosen(line, at_s)
        elif kind == "callback_failed":
            callback, message = str(line.get("callback", "")), str(line.get("message", ""))
            yield ev.CallbackFailed(t=at_s, attempt=attempt, callback=callback, message=message[:2000])
        elif kind == "warning":
            yield raised(str(line.get("id", "library")), str(line["message"]), at_s=at_s)

    # -- the output

    def bound_output(self) -> None:
        """Free what lies before the last `logs.keep` bytes."""
        if self._unbounded:
            return
        try:
            self._punched = logfile.bound(self._run.output, self._plan.logs.max_bytes, self._punched)
        except OSError as error:
            self._unbounded = logfile.cannot_punch(error)

    def _heartbeat_line(self, state: State, attempt: Attempt) -> None:
        if time.monotonic() < self._next_line_s:
            return
        self._next_line_s = time.monotonic() + self._plan.logs.heartbeat_s
        beats = attempt.pages.beats(state.attempt)
        record = tail.newest(self._run.records / "rank-00000.jsonl", "step")
        loss = record.get("loss")
        parts = [f"attempt {state.attempt}"]
        if beats:
            step, total, step_s = beats[0].step, beats[0].steps_total, self.memory.step_s
            parts.append(f"step {step} of {total}" if total else f"step {step}")
            parts += [f"loss {loss:.4g}"] if isinstance(loss, (int, float)) else []
            parts += [f"{1 / step_s:.3g} steps/s"] if step_s > 0 else []
            parts += [f"left {_duration((total - step) * step_s)}"] if step_s > 0 and total > step else []
        free = os.statvfs(self._run.root)
        parts.append(f"disk {free.f_bavail * free.f_frsize / 1e9:.1f} GB free")
        with suppress(OSError):  # a full disk: it is only a line for people
            stamp = time.strftime("%Y-%m-%d %H:%M:%S")
            logfile.write_line(self._run.output, f"[holdfast {stamp}] {', '.join(parts)}")

    def _sync_records(self) -> None:
        """Once a second make the records durable that grew; a slow disk delays only this thread."""
        sizes: dict[Path, int] = {}
        while not self._stop.wait(1.0):
            with suppress(OSError):  # a size that was not noted is synced the next time
                for path in self._run.records.glob("rank-*.jsonl"):
                    size = path.stat().st_size
                    if sizes.get(path) != size:
                        sizes[path] = size
                        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                        try:
                            os.fdatasync(descriptor)
                        finally:
                            os.close(descriptor)


def _archived(line: dict[str, Any], state: State, since_s: float) -> Iterator[ev.Event]:
    kind = line["event"]
    at_s = float(line.get("t", 0.0))
    if kind == "committed":
        term, sequence = int(line["term"]), int(line["sequence"])
        if state.committed is None or (term, sequence) > (state.committed.term, state.committed.sequence):
            yield ev.CheckpointCommitted(
                t=at_s, step=int(line["step"]), term=term, sequence=sequence,
                size_bytes=int(line.get("size_bytes", 0)), reason=str(line.get("reason", "")),
                seconds=float(line.get("seconds", 0.0)), manifest=str(line.get("manifest", "")),
            )  # fmt: skip
            yield ev.FindingCleared(t=at_s, id="disk-full")
            yield ev.FindingCleared(t=at_s, id="save-failed")
    elif kind == "save_failed" and at_s >= since_s:
        message = str(line.get("message", ""))
        full = any(word in message for word in FULL)
        step, reason = int(line.get("step", 0)), str(line.get("reason", ""))
        yield ev.CheckpointFailed(t=at_s, step=step, reason=reason, message=message[:2000])
        told = f"the save of step {step} failed: {message[:500]}"
        yield raised("disk-full" if full else "save-failed", told, at_s=at_s)
    elif kind == "interval" and at_s >= since_s:
        yield _chosen(line, at_s)
    elif kind == "warning" and at_s >= since_s:
        yield raised(str(line["id"]), str(line["message"]), at_s=at_s)
    elif kind == "cleared" and at_s >= since_s:
        yield ev.FindingCleared(t=at_s, id=str(line["id"]))


def _chosen(line: dict[str, Any], at_s: float) -> ev.IntervalChosen:
    terms = ["seconds", "best_s", "blocked_s", "write_s", "failure_s", "restart_s", "trained_s", "max_overhead_ratio"]
    numbers = {name: float(line[name]) for name in terms}
    tier, bound, failures = str(line["tier"]), str(line["bound"]), int(line["failures"])
    return ev.IntervalChosen(t=at_s, tier=tier, bound=bound, failures=failures, **numbers)


def raised(name: str, message: str, *, at_s: float) -> ev.FindingRaised:
    """The event for a finding of the catalogue; a warning without hint where the catalogue has none of that name."""
    if name not in findings.CATALOGUE:
        return ev.FindingRaised(t=at_s, id=name, severity="warning", message=message)
    found = findings.finding(name, message)
    return ev.FindingRaised(t=at_s, id=name, severity=found.severity, message=message, hint=found.hint)


def _duration(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"
