"""Events in, the lifecycle table, actions out.

Everything that happens becomes a journal event; `lifecycle.decide` names what must be done; this module does it. An
event is durable before anything is done outside because of it, so a supervisor that dies is replaced by one that
folds the journal, asks the shim what lives, and goes on. Nothing here is needed for training to continue.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import time
from pathlib import Path
from typing import Any

from holdfast import events as ev
from holdfast import exits, fsio, lifecycle, process
from holdfast.errors import BudgetSpent, HoldfastError, LeaseHeld
from holdfast.node import evidence, launch, logfile, status, sweep
from holdfast.node.asks import Asks
from holdfast.node.attempt import Attempt
from holdfast.node.chronicle import Chronicle
from holdfast.node.control import Control
from holdfast.node.lineup import Lineup
from holdfast.node.observer import Observer
from holdfast.node.pages import Pages, newest_copy
from holdfast.node.shimlink import Contact
from holdfast.plan import Plan
from holdfast.runs import RunDir, make_runtime
from holdfast.state import OVER, Policy, RunState, State

TICK_S = 0.25
DRAIN_S = 30.0  # how long a decision to stop waits for a save that is still on its way to disk
ABANDON_S = 20.0  # how long ending a run takes at most whose directory is gone
LINGER_S = 10.0  # how long a supervisor that found the run over waits for `resume`
AGAIN_S = 0.1  # between two tries to end it
SWEPT_S = 2.0  # a sweep this fresh need not be repeated before a start


class _Deleted(Exception):
    """Somebody removed the run directory."""


class Supervisor:
    """One run's supervisor; `run` is its life."""

    def __init__(self, run: RunDir, plan: Plan) -> None:
        self.dir, self.plan, self.policy = run, plan, Policy.of(plan)
        self.chronicle = Chronicle(run.journal, self.policy, self._do)
        self.asks = Asks(run.id, plan, self.chronicle)
        self.boot = process.boot_id()
        self.rebooted = bool(self.state.boot) and self.state.boot != self.boot
        self.attempt = Attempt(run, plan)
        self.observer = Observer(run, plan, since_s=self.state.updated_s)
        self.lineup = Lineup(run, plan)
        self.start: lifecycle.StartAttempt | None = None
        self.exec_error = ""
        self.finish_at_s: float | None = None
        self.next_tick_s = 0.0
        self.swept_s = 0.0
        self.terminated = False
        self.caller = dict(os.environ)
        self.selector = selectors.DefaultSelector()
        self.shim = Contact(run, self.selector, met=self._met, heard=self._heard, lost=self._lost)
        self.control = Control(run.runtime / "control.sock", status=self.status, journal=run.journal)

    @property
    def state(self) -> State:
        """What is known of the run."""
        return self.chronicle.state

    # -- life

    def run(self) -> int:
        """Serve until the run is over; returns the exit status of this process."""
        self._watch_signals()
        self.selector.register(self.control.wakeup, selectors.EVENT_READ, lambda: self.control.wakeup.recv(4096))
        found_over = self.state.phase in OVER
        self.shim.meet()
        lives = self.attempt.trainer is not None
        self.chronicle.apply(ev.SupervisorStarted(t=time.time(), pid=os.getpid(), adopted=lives, boot=self.boot))
        if found_over and self.finish_at_s is not None:
            self.finish_at_s += LINGER_S
        try:
            while self.finish_at_s is None or time.monotonic() < self.finish_at_s:
                self._once()
            self._leave()
        except _Deleted:
            self._abandon()
        self.observer.close()
        self.control.stop()
        return 0

    def _once(self) -> None:
        for key, _ in self.selector.select(self._patience_s()):
            key.data()
        self.shim.deliver()
        self._asks()
        if self.terminated:
            self.terminated = False
            grace_s = self.plan.stop_grace_s
            self.chronicle.apply(ev.StopRequested(t=time.time(), how="preempted", grace_s=grace_s))
        if self.start is not None and time.time() >= self.start.at_s:
            self._start_attempt(self.start)
        if time.monotonic() >= self.next_tick_s:
            self.next_tick_s = time.monotonic() + TICK_S
            self._tick()
        self.chronicle.sync()

    def _patience_s(self) -> float:
        soon = self.next_tick_s - time.monotonic()
        if self.start is not None and not self._secrets_missing() and not self.lineup.waits:
            soon = min(soon, self.start.at_s - time.time())
        return max(0.0, soon)

    def _watch_signals(self) -> None:
        ours, kernels = socket.socketpair()
        for end in (ours, kernels):
            end.setblocking(False)
        self._ends = (ours, kernels)
        signal.set_wakeup_fd(kernels.fileno(), warn_on_full_buffer=False)
        self.selector.register(ours, selectors.EVENT_READ, lambda: ours.recv(4096))
        signal.signal(signal.SIGTERM, self._on_terminate)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, lambda *_: None)  # "save now", sent to everything, is meant for the trainer

    def _on_terminate(self, *_: Any) -> None:
        self.terminated = True

    def _leave(self) -> None:
        """Tell the shim that the run is over, and go."""
        answer = self.shim.ask({"op": "finish"})
        if not answer["ok"]:
            raise HoldfastError(f"the shim cannot finish: {answer['error']}")
        self.chronicle.sync()

    # -- what is to be done

    def _do(self, action: lifecycle.Action) -> None:
        if isinstance(action, lifecycle.Classify):
            self._classify(action.exit)
        elif isinstance(action, lifecycle.StartAttempt):
            self.start = action
        elif isinstance(action, lifecycle.Finish):
            self.finish_at_s = time.monotonic()
            self.lineup.leave()
            result = self.state.result
            if result is not None and result.exit_code == BudgetSpent.exit_code:
                self.chronicle.report("restart-budget", result.reason)
        else:
            self.chronicle.sync()
            if isinstance(action, lifecycle.Prepare):
                self._prepare()
            elif isinstance(action, lifecycle.AskStop):
                self.attempt.ask_stop(action.grace_s, step_s=self.observer.memory.step_s)
            elif isinstance(action, lifecycle.KillAttempt):
                self.attempt.kill()
            elif isinstance(action, lifecycle.RequestSave):
                self.attempt.ask_save(action.number, step_s=self.observer.memory.step_s)

    # -- the shim

    def _met(self, hello: dict[str, Any], replaced: int) -> None:
        """Learn from a shim what lives and what ended meanwhile."""
        if replaced:
            self.chronicle.apply(ev.ProcessRestarted(t=time.time(), role="shim", pid=replaced, cause="it was gone"))
        for record in hello["exits"]:
            self._exit_record(record)
        if hello["trainer"] is not None:
            self._adopt(hello["trainer"])
        elif self.attempt.trainer is not None and not hello["exits"]:
            gone = self.attempt.trainer  # it ended while no shim was there to see it, and left no record
            self._trainer_gone(gone.attempt, None, 0)

    def _adopt(self, trainer: dict[str, Any]) -> None:
        number = int(trainer["attempt"])
        who = process.Identity(int(trainer["pid"]), int(trainer["start_ticks"]))
        self.attempt.adopt(number, who)
        if number > self.state.attempt and self.state.phase not in OVER:
            self._attempt_started(number, who, log_offset=_size(self.dir.output))
        self._recover_secrets(who)

    def _recover_secrets(self, trainer: process.Identity) -> None:
        """A shim that died took the secrets with it; the trainer still has them."""
        missing = self._secrets_missing()
        if missing:
            environ = process.environment(trainer.pid)
            found = {name: environ[name] for name in missing if name in environ}
            self.shim.secrets.update(found)
            self.shim.ask({"op": "secrets", "values": found})

    def _lost(self) -> None:
        """A shim has died, and another is about to be met."""
        if self._is_deleted():
            raise _Deleted
        self.chronicle.sync()

    def _heard(self, push: dict[str, Any]) -> None:
        if push["event"] == "exit" and push["role"] == "trainer":
            self._exit_record(push)
        elif push["event"] == "exit":
            cause = exits.status_words(_exit_code(push["status"]))
            self.chronicle.apply(ev.ProcessRestarted(t=time.time(), role=push["role"], pid=push["pid"], cause=cause))

    def _exit_record(self, record: dict[str, Any]) -> None:
        """The shim saw the trainer end. Acknowledged once it is in the journal."""
        number, who = int(record["attempt"]), process.Identity(int(record["pid"]), int(record["start_ticks"]))
        if number > self.state.attempt:  # it began and ended while no supervisor looked
            self._attempt_started(number, who, log_offset=0)
        self._trainer_gone(number, _exit_code(record["status"]), int(record["number"]))
        self.chronicle.sync()
        self.shim.ask({"op": "ack", "exit": record["number"]})

    def _trainer_gone(self, number: int, exit_status: int | None, record: int) -> None:
        self.attempt.gone(number)
        if number == 0:
            ended = exit_status if exit_status is not None else 1
            self.chronicle.apply(ev.SetupEnded(t=time.time(), status=ended))
        else:
            self.chronicle.apply(ev.ExitSeen(t=time.time(), attempt=number, status=exit_status, number=record))

    # -- starting and ending attempts

    def _prepare(self) -> None:
        """Run `setup` as attempt 0: the shim holds it like a trainer, so there is one of it too."""
        self._sweep()
        answer = self._spawn(0, self.plan.setup)
        if answer is None:
            if self.attempt.trainer is None and self.state.phase == RunState.QUEUED:
                self._prepare()
        elif answer["ok"]:
            self.chronicle.apply(ev.SetupStarted(t=time.time(), pid=answer["pid"]))
        else:
            logfile.write_line(self.dir.output, f"holdfast: setup cannot be started: {answer['error']}")
            self.chronicle.apply(ev.SetupStarted(t=time.time()))
            self.chronicle.apply(ev.SetupEnded(t=time.time(), status=exits.NOT_FOUND))

    def _start_attempt(self, start: lifecycle.StartAttempt) -> None:
        if self._secrets_missing():
            names = ", ".join(self._secrets_missing())
            self.chronicle.report("needs-secrets", f"secrets are missing: {names}")
            return
        self.chronicle.clear("needs-secrets")
        if self.state.phase in OVER or self.state.stop is not None:
            self.start = None
            return
        if not self._has_devices():
            return
        self.chronicle.sync()
        if time.monotonic() - self.swept_s > SWEPT_S:
            self._sweep()
        offset = _size(self.dir.output)
        answer = self._spawn(start.attempt, self.plan.argv)
        if answer is None:
            return  # the next shim has told what became of it; if nothing, the start is still due
        if answer["ok"]:
            who = process.Identity(answer["pid"], answer["start_ticks"])
            self._attempt_started(start.attempt, who, log_offset=offset)
            return
        self.exec_error = str(answer["error"])
        self._attempt_started(start.attempt, None, log_offset=offset)
        self.chronicle.apply(ev.ExitSeen(t=time.time(), attempt=start.attempt, status=exits.NOT_FOUND))

    def _has_devices(self) -> bool:
        """Whether the run has the devices it wants, if any: those it had, or those whose turn has come."""
        news = self.lineup.ask(self.state)
        if news is not None:
            self.chronicle.apply(news)
        return not self.lineup.waits

    def _spawn(self, attempt: int, argv: tuple[str, ...]) -> dict[str, Any] | None:
        self.attempt.prepare(attempt)
        env = launch.environment(self.dir, self.plan, self.state, attempt, self.caller)
        answer = self.shim.ask_once(
            {"op": "spawn", "attempt": attempt, "argv": list(argv), "env": env, "cwd": self.plan.cwd,
             "output": str(self.dir.output)}
        )  # fmt: skip
        if answer is not None and answer["ok"]:
            self.attempt.adopt(attempt, process.Identity(answer["pid"], answer["start_ticks"]))
        return answer

    def _attempt_started(self, number: int, who: process.Identity | None, *, log_offset: int) -> None:
        self.start = None
        if number == 0:
            self.chronicle.apply(ev.SetupStarted(t=time.time(), pid=who.pid if who else 0))
            return
        self.chronicle.apply(
            ev.AttemptStarted(
                t=time.time(), attempt=number, pid=who.pid if who else 0, start_ticks=who.start_ticks if who else 0,
                log_offset=log_offset, resume_step=self.state.committed_step,
            )
        )  # fmt: skip

    def _classify(self, seen: ev.ExitSeen) -> None:
        beats = self.attempt.pages.beats(seen.attempt)
        self._observe()
        self.observer.bound_output()
        begin = self.state.started.log_offset if self.state.started else 0
        text = evidence.tail(self.dir.output, begin) + launch.recorded_error(self.dir, seen.attempt)
        verdict = exits.classify(
            evidence.gather(
                status=seen.status, text=text, beats=beats, asked=self._asked(seen.attempt),
                before=self.attempt.oom_before, exec_error=self.exec_error, rebooted=self.rebooted,
            )
        )  # fmt: skip
        self.exec_error, self.rebooted = "", False
        swept = self._sweep()
        self._wait_for_save(verdict.exit_class, max((beat.step for beat in beats), default=0))
        self.chronicle.clear("hang")
        self._tell_segment(verdict.exit_class, seen.attempt)
        self.chronicle.apply(
            ev.AttemptEnded(
                t=time.time(), attempt=seen.attempt, exit_class=verdict.exit_class.value, status=seen.status,
                step=max([beat.step for beat in beats], default=self.state.committed_step),
                committed_step=self.state.committed_step, evidence=list(verdict.evidence),
                epoch=max((beat.epoch for beat in beats), default=0),
                steps_total=max((beat.steps_total for beat in beats), default=0),
                traceback=verdict.traceback, orphans=swept.ended, memory_step=newest_copy(beats)[0],
            )
        )  # fmt: skip

    def _asked(self, attempt: int) -> str:
        hang = self.state.hang
        if hang is not None and hang.attempt == attempt and self.plan.watchdog.action == "restart":
            return "hang"
        if self.state.stop is not None:
            return self.state.stop.how
        return "segment" if self.state.segment is not None else ""

    def _tell_segment(self, exit_class: exits.ExitClass, attempt: int) -> None:
        if exit_class == exits.ExitClass.SEGMENT_END:
            self.chronicle.clear("segment-unsaved")
        elif exit_class == exits.ExitClass.SEGMENT_CUT:
            newest = f"the newest checkpoint is of step {self.state.committed_step}"
            by_itself = "the program does not use the library, and begins anew unless it saves by itself"
            told = newest if self.state.library else by_itself
            self.chronicle.report("segment-unsaved", f"the segment of attempt {attempt} ended without a save: {told}")

    def _wait_for_save(self, exit_class: exits.ExitClass, step: int) -> None:
        """A save that is still on its way to disk is progress: let it arrive before progress decides."""
        last_chance = self.state.ledger.no_progress + 1 >= self.plan.restart.max_no_progress
        matters = last_chance and not self.state.progressed and step > self.state.committed_step
        saved = (exits.ExitClass.SUCCEEDED, exits.ExitClass.STOPPED, exits.ExitClass.SEGMENT_END)
        if matters and exit_class not in saved:
            with contextlib.suppress(OSError, ValueError):
                process.request(self.dir.runtime / "archiver.sock", {"op": "drain"}, timeout_s=DRAIN_S)
            self._observe()

    def _sweep(self) -> sweep.Swept:
        swept = sweep.end(lambda: sweep.members(self.dir.root))
        self.swept_s = time.monotonic()
        if swept.stuck:
            pids = ", ".join(str(who.pid) for who in swept.stuck)
            self.chronicle.report("orphans-stuck", f"processes {pids} do not end even on SIGKILL")
        else:
            self.chronicle.clear("orphans-stuck")
        return swept

    def _secrets_missing(self) -> list[str]:
        return [name for name in self.plan.secret_names if name not in self.shim.secrets]

    # -- what is seen

    def _tick(self) -> None:
        if self._is_deleted():
            raise _Deleted
        self._observe()
        self.lineup.keep(self.state)
        trainer = self.attempt.trainer
        if trainer is None or self.state.started is None:
            return
        hang = self.observer.look(self.state, self.attempt, now_s=time.monotonic())
        if hang is not None:
            self._on_hang(hang)
        elif self.observer.over:
            self.chronicle.clear("hang")
        for finding in self.observer.remarks(self.state, now_s=time.time()):
            self.chronicle.note(finding)
        stopping = self.state.stop is not None or self.state.segment is not None
        self.attempt.press(stopping=stopping, step_s=self.observer.memory.step_s)
        if self.state.stop is None and self.attempt.save_wanted():
            self.chronicle.apply(
                ev.SaveRequested(t=time.time(), number=self.state.save_number + 1, reason="a rank wants it")
            )
        if lifecycle.segment_is_over(self.state, self.policy, time.time()):
            number, grace_s = self.state.attempt, self.plan.stop_grace_s
            self.chronicle.apply(ev.SegmentOver(t=time.time(), attempt=number, grace_s=grace_s))
        limit_s = self.plan.max_duration_s
        if limit_s is not None and time.time() - self.state.since_s - self.state.queued_s > limit_s:
            grace_s = self.plan.stop_grace_s
            self._apply_once_stopping(ev.StopRequested(t=time.time(), how="max-duration", grace_s=grace_s))

    def _is_deleted(self) -> bool:
        """Whether somebody removed the run directory; others may make the folder itself again."""
        return not self.dir.plan.exists() and not self.dir.journal.exists()

    def _abandon(self) -> None:
        """End everything: there is nothing to work for and nowhere to say so."""
        deadline_s = time.monotonic() + ABANDON_S
        while time.monotonic() < deadline_s:
            self.attempt.kill()
            if not self.attempt.members() and self._is_finished():
                return
            time.sleep(AGAIN_S)

    def _is_finished(self) -> bool:
        """Whether the shim agrees that it is over, or has left already."""
        try:
            answer = self.shim.ask_once({"op": "finish"})
        except _Deleted:
            return True
        return self.shim.link is None or (answer is not None and bool(answer["ok"]))

    def _apply_once_stopping(self, event: ev.StopRequested) -> None:
        if self.state.stop is None and self.state.phase not in OVER:
            self.chronicle.apply(event)

    def _observe(self) -> None:
        """Journal what the library and the archiver have written since the last look."""
        for event in self.observer.news(self.state):
            if isinstance(event, (ev.FindingRaised, ev.FindingCleared)):
                self.chronicle.note(event)
            else:
                self.chronicle.apply(event)

    def _on_hang(self, hang: ev.HangDetected) -> None:
        self.chronicle.apply(hang)
        action = self.plan.watchdog.action
        self.chronicle.report(
            "hang", f"no heartbeat for {hang.silent_s:.0f} s in phase {hang.phase}, at step {hang.step}"
        )
        self.chronicle.sync()
        if action == "notify":
            return
        path = self.attempt.capture(fatal=action == "restart")
        self.chronicle.apply(ev.StacksCaptured(t=time.time(), attempt=hang.attempt, path=path))
        if action == "restart":
            self.chronicle.sync()
            self.attempt.end()

    # -- what is asked

    def status(self) -> dict[str, Any]:
        """GET /status; called from another thread, reads only what is immutable or mapped."""
        state = self.state
        beats = Pages(self.dir.runtime / "pages").beats(state.attempt)
        step_s = self.observer.memory.step_s
        return status.compose(self.dir, self.plan, state, beats, now_s=time.time(), live=True, step_s=step_s)

    def _asks(self) -> None:
        while not self.control.asks.empty():
            ask = self.control.asks.get()
            try:
                ask.answer.put(self.asks.answer(ask))
            except HoldfastError as error:
                ask.answer.put(error)
        if self.state.phase not in OVER:
            self.finish_at_s = None  # it may have been over, and go on


def _exit_code(wait_status: int | None) -> int | None:
    return None if wait_status is None else os.waitstatus_to_exitcode(wait_status)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def main(run_dir: Path) -> int:
    """Supervise the run in `run_dir`; returns 11 when another supervisor does."""
    run = RunDir(run_dir)
    make_runtime(run)
    try:
        lock = fsio.lock_file(run.journal)
    except BlockingIOError:
        return LeaseHeld.exit_code
    with lock:
        plan = Plan.from_json(json.loads(run.plan.read_text()))
        return Supervisor(run, plan).run()
