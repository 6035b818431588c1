"""The engine below `Run`: counts steps, saves at boundaries, and takes up again where a boundary was.

A *boundary* is a moment at which the state is whole: after a step, or at the turn of an epoch. Where the stored one lay
decides where a resumed process takes the random states up: at the entry of the same loop, or at the turn.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader

from holdfast.checkpoint.matching import Lenient
from holdfast.checkpoint.slots import Slot, State
from holdfast.checkpoint.snapshot import copy_out
from holdfast.checkpoint.triggers import Point
from holdfast.errors import STOPPED_WITH_CHECKPOINT, UsageError
from holdfast.heartbeat import Outcome, Page, Phase, page_path
from holdfast.process import identity
from holdfast.runs import make_runtime
from holdfast.train import content, objects, rng
from holdfast.train.content import Content
from holdfast.train.copies import Copies
from holdfast.train.data import Feed
from holdfast.train.fence import Fence, engine_here
from holdfast.train.link import Link
from holdfast.train.occasions import Occasions
from holdfast.train.records import Pending, Records, tell
from holdfast.train.saver import Head, Saver
from holdfast.train.saves import Pulse, Saves
from holdfast.train.setting import Setting
from holdfast.train.signals import Hooks

LOOP, TURN, OUTSIDE = "loop", "turn", "outside"


@dataclass(frozen=True, slots=True)
class At:
    """Where a boundary lies; `loader` names the innermost open loop of a LOOP."""

    kind: str
    loader: str = ""


@dataclass(slots=True)
class _Resume:
    """What waits for its loop to be entered."""

    at: At
    rng: dict[str, Any]
    gradients: dict[str, torch.Tensor]
    kept: Slot | None = None  # the registered objects as of the yield of the resumed epoch


class _Mark(NamedTuple):
    """What a save would hold: `at` is step and epoch, equal in all ranks at one boundary; the rest one rank's own."""

    at: tuple[int, int]
    state: str
    metrics: str


class Session:
    """One process' part in a run, from the hello to the goodbye."""

    def __init__(
        self,
        setting: Setting,
        given: Mapping[str, Any],
        defaults: Mapping[str, Any],
        *,
        seed: int | None,
        lenient: Lenient,
    ) -> None:
        """Restores `given` in place; `defaults` are what `state` begins with.

        Raises LeaseHeld, NoValidCheckpoint, StateMismatch, UsageError.
        """
        self.setting, self._began_s = setting, time.monotonic()
        loaders = {name: value for name, value in given.items() if isinstance(value, DataLoader)}
        self.content = Content({name: value for name, value in given.items() if name not in loaders}, lenient)
        self.step = self.epoch = 0
        self.seed = torch.initial_seed() if seed is None else seed
        self.resumed = self.managed = self.in_epoch = self.ticking = self.closed = False
        self.epochs_total: int | None = None
        self._feeds: dict[str, Feed] = {}
        self._stored_feeds: dict[str, Any] = {}
        self._loops: list[Feed] = []  # entered outside a step and still open, outermost first
        self._open: Feed | None = None  # whose batch is being worked on
        self._left: Feed | None = None  # its loop was left with the step still open
        self._left_ends = False  # and is not to be continued
        self._asked = ""
        self._terminated = self._raised = self._finished = False
        self._resume: _Resume | None = None
        self._sequence: int | None = None  # of the newest save of this process
        self._later = 0  # moments to save at since the end of the last step: every rank counts the same
        make_runtime(setting.run)
        self._link = Link(setting)
        self._records = Records(
            setting.run.records / f"rank-{setting.rank:05d}.jsonl",
            attempt=setting.attempt,
            sync_always=setting.sync_always,
        )
        try:
            self._start(loaders, defaults)
        except BaseException:
            self._link.close()
            self._records.close()
            raise

    def _start(self, loaders: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        self._page = Page(page_path(self.setting.run.runtime, self.setting.rank))
        self._begin_page()
        self._pulse = Pulse(self._page)
        self._pending = Pending(self._records)
        self.occasions = Occasions(self._records)
        self._pulse.enter(Phase.RESTORING)
        self._restore()
        for name, loader in loaders.items():
            self._add_feed(name, loader)
        for name, value in defaults.items():
            self.content.state.setdefault(name, value)
        self._step_epoch = self.epoch  # of the last step
        self._mark = self._marked()
        self._hooks = Hooks(self)
        self._page.set(handlers=self._hooks.handlers)

    def _begin_page(self) -> None:
        me, s = identity(os.getpid()), self.setting
        handled = self._page.get("save_handled")  # requests that an earlier attempt answered stay answered
        ticks = me.start_ticks if me else 0
        self._page.begin(pid=os.getpid(), start_ticks=ticks, rank=s.rank, world=s.world, attempt=s.attempt)
        self._page.set(save_handled=handled, beat_ns=time.monotonic_ns())
        if s.alone:  # nobody else clears what an earlier process agreed on
            self._page.set(stop_at_step=0)

    # ---- restoring

    def _restore(self) -> None:
        answer, best = self._link.restore(), None
        fence = Fence(engine_here(), self.content.objects)
        self._saver = Saver(self.setting, self._link, fence, term=answer["term"], next_sequence=answer["next_sequence"])
        parts = self.setting, self._link, self._saver, self._pulse, self._records, self.occasions
        self._copies = Copies(*parts)
        tier = ""
        if answer["slot"] is not None:
            tier, slot = answer["tier"], self._link.slots[answer["slot"]]
            slot.refresh()
            if tier == "memory":
                self._copies.begin(slot, answer["step"])
            best = self._load(slot)
            if tier != "memory":  # a copy in memory stays until a newer one is there
                slot.set(state=State.FREE)
            self.resumed = True
        fell_back = answer.get("fell_back", [])
        for sentence in fell_back:  # the records have it in `restored`, where the supervisor makes a finding of it
            tell(sentence)
        if self._link.warning:
            self._records.event("warning", id="memory-dir-unusable", message=self._link.warning)
        self._page.set(step=self.step, epoch=self.epoch, first_step=self.step)
        self._page.set(committed_step=self.step if tier != "memory" else 0)
        seconds = time.monotonic() - self._began_s
        told = {"term": self._saver.term, "tier": tier, "fell_back": fell_back, "seconds": seconds}
        self._records.event("restored", step=self.step, **told)
        self._saves = Saves(*parts)
        self._saves.begin_at(self.step, self.epoch, best)

    def _load(self, slot: Slot) -> float | None:
        """Put back what the slot holds; returns the best value so far of `keep.best`'s metric."""
        stored = copy_out(slot)
        self._stored_feeds = content.part(stored, content.FEEDS)
        for name in list(self._stored_feeds):
            value = self.content.objects.pop(name, None)  # an iterable with a state_dict, used as a loader since
            if value is not None:
                self._add_feed(name, value)
        run = self.content.load(stored)
        self.step, self.epoch, self.seed = run["step"], run["epoch"], run["seed"]
        self._pending.metrics.update(run["metrics"])
        at = At(run["kind"], run["loader"])
        self._resume = _Resume(at, content.part(stored, content.RNG), content.part(stored, content.GRADIENTS))
        best: float | None = run.get("best")
        return best

    def take_up(self) -> None:
        """Training goes on from here: put back random states, gradients, and what the epoch's first code changed."""
        resume, self._resume = self._resume, None
        if resume is None:
            return
        if resume.kept is not None:
            self.content.load(self._saver.take_back(resume.kept))
            self._saver.release(resume.kept)
        objects.put_gradients(self.content.objects, resume.gradients)
        for sentence in rng.restore(resume.rng):
            self.warn(sentence)

    def yield_epoch(self) -> None:
        """`run.epochs` is about to hand out the current epoch."""
        self.in_epoch = True
        resume = self._resume
        if resume is None:
            return
        if resume.at.kind != LOOP:
            self.take_up()
        elif resume.kept is None:
            resume.kept = self._saves.free_slot()
            self._saver.keep(resume.kept, self.content.registered_values(), self.content.kinds)

    def _never_taken_up(self) -> None:
        resume, self._resume = self._resume, None
        if resume is not None and resume.kept is not None:
            self._saver.release(resume.kept)
        self.warn(
            "random states were not restored: the loop in which the checkpoint was made was not entered by run.steps, "
            "run.epochs or run.wrap, nor was run.begin() called before it"
        )

    # ---- loaders

    def feed(self, loader: Any) -> Feed:
        """The feed of `loader`, under the name it was registered with, or one by order of first use."""
        for feed in self._feeds.values():
            if feed.loader is loader:
                return feed
        for name, value in self.content.objects.items():
            if value is loader:
                feed = self._add_feed(name, loader)
                del self.content.objects[name]
                return feed
        unnamed = sum(name.startswith("loader-") for name in self._feeds)
        return self._add_feed(f"loader-{unnamed + 1}", loader)

    def _add_feed(self, name: str, loader: Any) -> Feed:
        feed = Feed(name, loader, seed=self.seed, rank=self.setting.rank)
        if name in self._stored_feeds:
            feed.resume(self._stored_feeds.pop(name))
        self._feeds[name] = feed
        return feed

    def begin_pass(self, feed: Feed) -> Iterator[Any]:
        """The batches of the feed's next pass; what was handed out before the checkpoint is left out."""
        in_step = self._open is not None
        batches = feed.enter(self.epoch, in_step=in_step)
        if not in_step and not feed.skipping:
            self._loops.append(feed)
        resume = self._resume
        if resume is not None and not feed.skipping and (resume.at.kind != LOOP or resume.at.loader == feed.name):
            self.take_up()
        self._say_total(feed)
        return iter(()) if batches is None else batches

    def _say_total(self, feed: Feed) -> None:
        batches = None if self.epochs_total is None else feed.length()
        if batches is not None and self.epochs_total is not None:
            left = batches * (self.epochs_total - self.epoch) - feed.place.yielded
            self._page.set(steps_total=self.step + max(left, 0))

    def end_pass(self, feed: Feed) -> None:
        """The feed's pass is over, or its loop was left. Outside `epochs` that ends the epoch if it was trained on."""
        self._saver.settle()  # code behind the loop may write anything, and take long
        feed.place.open = False
        if feed in self._loops:
            self._loops.remove(feed)
            if not self._loops and not self.managed and feed.place.epoch == self.epoch and feed.place.stepped:
                self.epoch += 1
        if not self._loops:
            self._pulse.enter(Phase.EPOCH_CODE)

    # ---- steps and boundaries

    def open_step(self, feed: Feed) -> None:
        """A batch is handed out."""
        feed.place.yielded += 1
        if self._open is None:  # a second loader inside a step opens no other
            self._open = feed
        if self._pulse.phase is not Phase.RUNNING:
            self._pulse.enter(Phase.RUNNING)

    def leave(self, feed: Feed, *, completes: bool, ends: bool) -> None:
        """The loop over `feed` was left early.

        completes: its open step is complete at the next call. ends: the pass is then over, and not to be continued.
        """
        if completes and self._open is feed:
            self._left, self._left_ends = feed, ends
            return
        if self._open is feed:
            self._open = None
        self._end_left(feed, ends=ends)

    def _end_left(self, feed: Feed, *, ends: bool) -> None:
        if ends:
            self.end_pass(feed)
        elif feed in self._loops:
            self._loops.remove(feed)

    def settle(self) -> None:
        """Complete the step of a loop that was left by `break`."""
        if self.closed:
            raise UsageError("this run is closed, or belongs to another process", hint="make another Run")
        if self._left is not None:
            self.complete_step()

    def complete_step(self) -> None:
        """One more step is done: record, heartbeat, and whatever is due."""
        feed, left = self._open, self._left
        self._open = self._left = None
        self.step += 1
        self._later = 0
        if self._resume is not None:
            self._never_taken_up()
        for loop in self._loops:
            loop.place.stepped = True
        loader = self._loops[-1].name if self._loops else feed.name if feed is not None else ""
        ends = self._left_ends and not self.should_stop
        if left is not None:
            left.place.open = not ends  # a resumed process must not enter it again
        self._step_epoch = self.epoch
        self._flush_log()
        self._copies.stepped(time.monotonic())
        # Code behind a loop left by `break` may have run already: not a moment to save at, unless the run stops here.
        whole = left is None or self._stop_is_due()
        self._boundary(At(LOOP, loader) if loader else At(OUTSIDE), whole=whole)
        if left is not None:
            self._end_left(left, ends=ends)

    def complete_open_step(self) -> None:
        """The loop asks for its next batch: the one before is done."""
        if self.closed:
            self.settle()
        if self._open is not None:
            self.complete_step()

    def turn_epoch(self) -> None:
        """The epoch is over, with all its code."""
        self._open = None
        self._flush_log()
        self.epoch += 1
        self.in_epoch = False
        self._later += 1
        self._boundary(At(TURN))

    def _boundary(self, at: At, *, whole: bool = True) -> None:
        now_s = time.monotonic()
        self._page.set(step=self.step, epoch=self.epoch, beat_ns=int(now_s * 1e9))
        if self._finished:
            self._finished = False
            self._page.set(outcome=Outcome.NONE)
        self._saves.poll()
        said = self._link.check(now_s)
        if said:
            self._records.event("shim_restarted", step=self.step, message=said)
        if not whole:
            return
        if self._stop_is_due():
            self._stop(at)
        reason = self._asked or self._saves.reason(Point(self.step, self.epoch, now_s), self._pending.metrics)
        saved = bool(reason) and self._save(reason, at)
        if not saved and self._copies.is_due(self.step, now_s):
            self._pending.flush()
            head, lazily = self._head("memory"), self._may_be_lazy(at)
            self._copies.make(head, lambda: self._values(at), self.content.kinds, lazily=lazily)
        self._copies.resume_clock()

    # ---- logging

    def log(self, values: dict[str, Any]) -> None:
        """Attach `values` to the step in progress, outside one to the last."""
        self.settle()
        self._pending.add(values)
        if self._open is None and not self.ticking:
            self._flush_log()

    def _flush_log(self) -> None:
        self._pending.end_step(self.step, self._step_epoch)

    # ---- saving

    def ask_save(self, reason: str) -> None:
        """Save at the next boundary: in a step or an epoch's code that is its end, elsewhere now."""
        self.settle()
        self._asked = reason
        if self._open is None and not self.in_epoch and not self.ticking:
            self._later += 1
            self._save(reason, At(OUTSIDE))

    def _save(self, reason: str, at: At, *, final: bool = False, patient: bool = False) -> bool:
        self._pending.flush()
        head, values = self._head(reason, final=final), lambda: self._values(at)
        lazily = self._may_be_lazy(at) and not (final or patient)
        sequence = self._saves.save(head, values, self.content.kinds, patient=patient, lazily=lazily)
        if sequence is None:
            return False
        self._sequence, self._mark, self._asked = sequence, self._marked(), ""
        self._copies.saved()
        return True

    def _may_be_lazy(self, at: At) -> bool:
        """Whether the loop's next batch comes next, or its end, and not code that may write anything."""
        return at.kind == LOOP and not self.ticking

    def _head(self, reason: str, *, final: bool = False) -> Head:
        metrics = dict(self._pending.metrics)
        return Head(step=self.step, epoch=self.epoch, reason=reason, metrics=metrics, later=self._later, final=final)

    def _values(self, at: At) -> dict[str, Any]:
        run = {"step": self.step, "epoch": self.epoch, "seed": self.seed, "kind": at.kind, "loader": at.loader}
        feeds = {name: feed.snapshot() for name, feed in self._feeds.items()}
        metrics = dict(self._pending.metrics)
        best = self._saves.best_with(metrics)
        return self.content.values({**run, "metrics": metrics, "best": best}, {**self._stored_feeds, **feeds})

    def _marked(self) -> _Mark:
        """Equal as long as a save would hold nothing new, but for what code behind the loop did to the objects."""
        return _Mark((self.step, self.epoch), repr(self.content.state), repr(self._pending.metrics))

    def _was_changed(self) -> bool:
        """Whether code behind the loop has changed an object since this process saved (averaged weights, say)."""
        return self._sequence is not None and not self._saver.still_holds(self._sequence, self.content.state_dicts())

    # ---- ends

    @property
    def should_stop(self) -> bool:
        """A stop was asked for; it is agreed at a boundary."""
        return self._terminated or self._page.get("stop_at_step") != 0

    def _stop_is_due(self) -> bool:
        agreed = self._page.get("stop_at_step")
        return (agreed != 0 and self.step >= agreed) or (self._terminated and self.setting.world == 1)

    def _stop(self, at: At) -> None:
        self._make_durable("stop", at, final=False)
        self._records.event("stopped", step=self.step)
        self._page.set(outcome=Outcome.STOPPED)
        self._close_down()
        raise SystemExit(STOPPED_WITH_CHECKPOINT)

    def finish(self, at_kind: str = OUTSIDE) -> None:
        """Everything so far becomes durable. Raises StoreRefused."""
        if self._resume is not None and self._resume.kept is None:
            self.take_up()  # nothing is left to train: what follows draws from where the finished training stood
        self._flush_log()
        loop = self._loops[-1].name if self._loops else ""
        self._later += 1
        self._make_durable("final", At(LOOP, loop) if loop else At(at_kind), final=True)
        if not self._finished:
            self._records.event("finished", step=self.step)
        self._page.set(outcome=Outcome.FINISHED)
        self._finished = True

    def _make_durable(self, reason: str, at: At, *, final: bool) -> None:
        self._pending.flush()
        if self._has_news(self._head(reason)):
            self._save(reason, at, final=final, patient=True)
        if self._sequence is not None:
            self._saves.await_durable(self._sequence, self.step)

    def _has_news(self, head: Head) -> bool:
        """Whether a save would hold anything that the last one does not, in this rank or in another."""
        if self.setting.world == 1:
            return self._marked() != self._mark or self._saves.failed(self._sequence) or self._was_changed()
        if self._marked().at != self._mark.at:
            mine = True
        else:  # a state_dict may need all ranks: it comes before what one of them alone may have logged
            changed = self._was_changed()
            mine = changed or not self._saves.is_durable(self._sequence) or self._marked() != self._mark
        return self._saves.has_news(head, mine=mine)

    def close(self) -> None:
        """The final checkpoint, then goodbye. Raises StoreRefused."""
        if self.closed:
            return
        if self._open is not None and sys.exc_info()[0] is not None:  # `finally: run.close()` on the way out
            self.abandon()
            return
        self.settle()
        self.finish()
        self._close_down()

    def abandon(self) -> None:
        """An exception is leaving: what is saved stays, nothing half-done is added."""
        if not self.closed:
            self._pending.flush()
            self._page.set(outcome=Outcome.RAISED)
            self._close_down()

    def _close_down(self) -> None:
        self.closed = True
        self._hooks.remove()
        self._pulse.enter(Phase.CLOSED)
        self._saver.close()
        self._link.close()
        self._records.close()

    def warn(self, sentence: str) -> None:
        """Tell the records and the terminal."""
        self._records.event("warning", step=self.step, message=sentence)
        tell(sentence)

    def enter_phase(self, phase: Phase) -> None:
        """Say in the heartbeat what training does now."""
        self._pulse.enter(phase)

    # ---- called by Hooks

    def terminate(self) -> None:
        """In a signal handler: flags only."""
        self._terminated = True
        self._page.set(stop_wanted=1)

    def save_signalled(self) -> None:
        """In a signal handler: flags only."""
        self._saves.signalled = True

    def raised(self) -> None:
        """An exception nobody caught."""
        self._raised = True
        self._page.set(outcome=Outcome.RAISED)

    def leaving(self) -> None:
        """The interpreter ends and `close` was not called."""
        if self._raised:
            self.abandon()
        elif self._open is not None:
            self.warn(
                "the script ended inside a step, which is not saved; call run.close() after leaving a loop by break"
            )
            self._close_down()
        else:
            self.close()

    def forked(self) -> None:
        """In a child: nothing here is its own."""
        self.closed = True
        self._saver.fence.forget()
        self._link.forget()
