"""The end that gets the files: compares, asks for what it lacks, and alone decides what is written and removed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from holdfast import runs
from holdfast.errors import HoldfastError
from holdfast.sync import frames as words
from holdfast.sync.decide import Do, Options, Step
from holdfast.sync.frames import SILENT_S, Frames, decoded
from holdfast.sync.ground import Ground
from holdfast.sync.incoming import Incoming, Staging
from holdfast.sync.known import FULL, Brought, locked, place_of, signature
from holdfast.sync.manifest import FILE, FOLDER, Entry, Hostile, Intake
from holdfast.sync.scan import Line
from holdfast.sync.sending import BROKEN, LAST, PART, SIZE, ZEROS, Outcome, Progress
from holdfast.sync.tree import Tree
from holdfast.units import show_size
from holdfast.workspace.ignore import STAGING

_FRESH = (Do.BRING, Do.MAKE, Do.LINK)


class NoRoom(HoldfastError):
    """What is to come does not fit on the disk."""


def rounds(
    root: Path, frames: Frames, options: Options, progress: Progress = lambda done, total: None
) -> Iterator[Outcome]:
    """What each round did, until the other end leaves. Raises Cut, Told, Hostile, NoRoom, LeaseHeld, OSError."""
    while True:
        kind, body = frames.receive()
        if kind == words.BYE:
            return
        source, entries = _manifest(frames, kind, body)
        yield _Round(root, frames, options, progress, source, entries).run()


def _manifest(frames: Frames, kind: int, body: bytes) -> tuple[str, list[Entry]]:
    begin = decoded(body, dict) if kind == words.BEGIN else {}
    version, source = begin.get("version"), begin.get("source")
    if version != words.VERSION:
        raise Hostile(f"the other end speaks version {version!r} of sync, we speak {words.VERSION}")
    if not isinstance(source, str) or not 0 < len(source) <= 64:
        raise Hostile("the other end does not say who it is")
    intake = Intake()
    while True:
        kind, body = frames.receive()
        if kind == words.END:
            return source, intake.entries
        if kind != words.ENTRIES:
            raise Hostile(f"the other end sends a message {kind} in its manifest")
        for item in decoded(body, list):
            intake.take(item)


@contextmanager
def _telling_full(folder: Path, clear: Callable[[], None] = lambda: None) -> Iterator[None]:
    """A disk that is full is told by what of ours lies on it. Raises NoRoom, when `clear` has made some room."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        clear()
        raise NoRoom(
            f"the disk of {folder} is full; what has arrived whole stays", hint="free some space there"
        ) from error


@dataclass
class _Round:
    root: Path
    frames: Frames
    options: Options
    progress: Progress
    source: str
    entries: list[Entry]

    def run(self) -> Outcome:
        """The whole of it."""
        began_s = time.monotonic()
        with _telling_full(runs.home()):
            self._compare()
        self.outcome.seconds = time.monotonic() - began_s
        self.frames.send_list(words.TOLD, [[line.what, line.path, line.why] for line in self.outcome.lines])
        self.frames.send(words.DONE, str(self.outcome.moved_bytes).encode())
        self.frames.flush()
        return self.outcome

    def _compare(self) -> None:
        """And do what follows from it."""
        self.outcome = Outcome()
        place = place_of(self.root)
        with ExitStack() as held:
            held.enter_context(locked(place, self.root))
            tree = self._tree(held)
            self.ground = Ground(tree, place)
            self.record = self.ground.record
            doomed = self._doomed()
            steps = self.ground.steps(self.entries, self.options)
            if tree is None or self.options.dry_run:
                self._foretell(steps, doomed)
            else:
                self._do(tree, steps, doomed)
            self.ground.hashes.save()

    def _tree(self, held: ExitStack) -> Tree | None:
        """None: nothing is there, and nothing is made."""
        if not self.options.dry_run:
            self.root.mkdir(parents=True, exist_ok=True)
        elif not self.root.exists():
            return None
        return held.enter_context(Tree(self.root))

    def _doomed(self) -> list[str]:
        """What may be removed, if it is really gone where it came from; what was changed since is kept."""
        doomed = []
        for path, there in self.ground.missing(self.entries, self.source).items():
            if self.options.delete and self.record.of[path].agrees(there.token):
                doomed.append(path)
            elif self.options.delete:
                self._tell("kept", path, "it was changed there, and is gone where it came from")
        return doomed

    # -- only saying so

    def _foretell(self, steps: list[Step], doomed: list[str]) -> None:
        if doomed:
            self._ask([], doomed)
            gone, frame = self._gone(doomed)
            if frame[0] != words.END:
                raise Hostile("the other end sends what nobody asked for")
            for path in gone:
                self._tell("deleted", path)
        for step in steps:
            if step.do in _FRESH:
                self._tell("made" if step.do is Do.MAKE else "brought", step.entry.path)
                self.outcome.moved_bytes += step.entry.size_bytes
            elif step.do is Do.KEEP and step.why:
                self._tell("kept", step.entry.path, step.why)

    # -- doing it

    def _do(self, tree: Tree, steps: list[Step], doomed: list[str]) -> None:
        """All of it; whatever ends it, what was done is noted."""
        try:
            with _telling_full(self.root, lambda: Staging(tree).clear()):
                self._carry_out(tree, steps, doomed)
        finally:
            self.record.save()

    def _carry_out(self, tree: Tree, steps: list[Step], doomed: list[str]) -> None:
        staging = Staging(tree)
        wants = [(number, step) for number, step in enumerate(steps) if step.do is Do.BRING]
        offsets = {number: staging.offset(step.entry) for number, step in wants}
        self._left_bytes = self._needed_bytes = sum(step.entry.size_bytes - offsets[number] for number, step in wants)
        self._check_room(tree)
        for step in steps:
            if step.do in _FRESH:
                self._expect(step.entry)
        self.record.save()
        asked = bool(wants or doomed)
        frame = (words.END, b"")
        if asked:
            self._ask([[number, offsets[number]] for number, _ in wants], doomed)
            gone, frame = self._gone(doomed)
            self._delete(tree, gone)
        if any(step.do in (Do.BRING, Do.LINK) for step in steps):
            staging.prepare()
        for step in steps:
            self._make(tree, step)
        for number, step in wants:
            frame = self._take(tree, number, step, offsets[number], staging.name(step.entry), frame)
        if frame[0] != words.END:
            raise Hostile("the other end sends what nobody asked for")
        staging.clear()

    def _check_room(self, tree: Tree) -> None:
        free_bytes = tree.free_bytes()
        if self._needed_bytes > free_bytes:
            raise NoRoom(
                f"{show_size(self._needed_bytes)} are to come, and {self.root} has {show_size(free_bytes)} free",
                hint="free some space there, or leave something out by .holdfastignore",
            )

    def _expect(self, entry: Entry) -> None:
        """Noted before it is written: should this end in between, the next sync knows whose it is."""
        known = self.record.of.get(entry.path, Brought())
        self.record.of[entry.path] = replace(known, coming=entry.token, source=self.source)

    def _ask(self, wants: list[list[int]], doomed: list[str]) -> None:
        self.frames.send_list(words.WANT, wants)
        self.frames.send_list(words.DOOMED, doomed)
        self.frames.send(words.TURN)
        self.frames.flush()

    def _gone(self, doomed: list[str]) -> tuple[list[str], tuple[int, bytes]]:
        """Which of those are really gone where they came from; and the first frame after that."""
        gone: list[str] = []
        left = set(doomed)
        while True:
            kind, body = self.frames.receive(SILENT_S)
            if kind != words.GONE:
                return gone, (kind, body)
            for path in decoded(body, list):
                if not isinstance(path, str) or path not in left:
                    raise Hostile("the other end removes what nobody asked it about")
                left.remove(path)
                gone.append(path)

    def _delete(self, tree: Tree, gone: list[str]) -> None:
        for path in sorted(gone, reverse=True):  # what is in a folder before the folder
            there = self.ground.look(path)
            if there is not None and not self.record.of[path].agrees(there.token):
                continue  # changed since it was doomed
            with self._telling(path):
                if there is not None and there.kind == FOLDER:
                    removed = tree.remove_folder(path)
                elif removed := there is not None:
                    tree.remove(path)
                del self.record.of[path]  # a folder with something in it: it is the other's from now on
                if removed:
                    self._tell("deleted", path)

    def _make(self, tree: Tree, step: Step) -> None:
        """All but files."""
        entry = step.entry
        if step.do is Do.KEEP and step.why:
            self._tell("kept", entry.path, step.why)
        elif step.do is Do.NOTHING:
            self._agree(entry)
        elif step.do is Do.MEND:
            with self._telling(entry.path):
                tree.set_mode(entry.path, entry.mode)
                if entry.kind == FILE:
                    tree.set_time(entry.path, entry.mtime_ns)
                self._agree(entry)
        elif step.do is Do.MAKE:
            with self._telling(entry.path):
                if self._is_free(tree, step):
                    if step.here is not None:
                        tree.remove(entry.path)
                    tree.make_folder(entry.path, entry.mode)
                    self._done(entry, "made")
        elif step.do is Do.LINK:
            staged = f"{STAGING}/link"
            if tree.status(staged) is not None:
                tree.remove(staged)
            tree.link(staged, entry.content)
            self._put(tree, step, staged)

    def _take(
        self, tree: Tree, number: int, step: Step, offset: int, staged: str, frame: tuple[int, bytes]
    ) -> tuple[int, bytes]:
        """One file of the pack, whose first frame has come; returns the first that is no part of it."""
        incoming = Incoming(tree, staged, step.entry, offset, self._moved)
        try:
            flags = 0
            while not flags & LAST:
                flags = _added(incoming, number, frame)
                frame = self.frames.receive(SILENT_S)
            whole = not flags & BROKEN and incoming.finish()
        finally:
            incoming.close()
        if whole:
            self._put(tree, step, staged)
        else:
            tree.remove(staged)
            self._tell("changing", step.entry.path, "it was written to while it was read")
        return frame

    def _moved(self, size_bytes: int) -> None:
        self.outcome.moved_bytes += size_bytes
        self._left_bytes -= size_bytes
        self.progress(self._needed_bytes - self._left_bytes, self._needed_bytes)

    def _put(self, tree: Tree, step: Step, staged: str) -> None:
        with self._telling(step.entry.path):
            if self._is_free(tree, step):
                tree.put(staged, step.entry.path)
                self._done(step.entry, "brought")
                return
        tree.remove(staged)

    def _is_free(self, tree: Tree, step: Step) -> bool:
        """Whether its place is as it was when it was decided on; a folder in the way goes if it is empty now."""
        path, here = step.entry.path, step.here
        if here is not None and here.kind == FOLDER and not tree.remove_folder(path):
            self._tell("kept", path, "a folder is there that holds more than was brought")
            return False
        expected = None if here is None or here.kind == FOLDER else here.signature
        status = tree.status(path)
        if (None if status is None else signature(status)) == expected:
            return True
        self._tell("kept", path, "it was changed there at this moment")
        return False

    # -- keeping and telling

    def _done(self, entry: Entry, what: str) -> None:
        self.record.of[entry.path] = Brought(entry.token, source=self.source)
        self._tell(what, entry.path)

    def _agree(self, entry: Entry) -> None:
        """It is there already; by us, or by whom it may be."""
        known = self.record.of.get(entry.path, Brought())
        self.record.of[entry.path] = Brought(entry.token, source=known.source if known.agrees(entry.token) else "")

    def _tell(self, what: str, path: str, why: str = "") -> None:
        self.outcome.lines.append(Line(what, path, why))

    @contextmanager
    def _telling(self, path: str) -> Iterator[None]:
        """What the machine refuses for one path is told, and the others go on; a full disk ends it all."""
        try:
            yield
        except OSError as error:
            if error.errno in FULL:
                raise
            self._tell("kept", path, error.strerror or str(error))


def _added(incoming: Incoming, number: int, frame: tuple[int, bytes]) -> int:
    """Add one frame of a pack to the file that is on its way; the frame's flags. Raises Hostile."""
    kind, body = frame
    if kind != words.PART or len(body) < PART.size:
        raise Hostile(f"the other end sends a message {kind} in a pack")
    told, flags = PART.unpack_from(body)
    if told != number:
        raise Hostile(f"the other end sends file {told} in place of {number}")
    data = body[PART.size :]
    if not flags & ZEROS:
        incoming.take(data)
    elif len(data) == SIZE.size:
        incoming.skip(SIZE.unpack(data)[0])
    else:
        raise Hostile("the other end sends zeros that nobody can count")
    return int(flags)
