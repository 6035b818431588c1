"""Both ends of a sync in one process, on pipes that may be cut at any byte; and folders to bring."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from holdfast.errors import HoldfastError
from holdfast.sync import ends
from holdfast.sync.decide import Options
from holdfast.sync.frames import Frames
from holdfast.sync.sending import Outcome


class Pipe:
    """Bytes one way; it breaks after `most`."""

    def __init__(self, most: int | None = None) -> None:
        self.passed = 0
        self._most = most
        self._from, self.writing = os.pipe()
        self.reading, self._to = os.pipe()
        self._thread = threading.Thread(target=self._carry)
        self._thread.start()

    def _carry(self) -> None:
        try:
            while data := os.read(self._from, 1 << 16):
                room = len(data) if self._most is None else max(0, self._most - self.passed)
                os.write(self._to, data[:room])
                self.passed += min(room, len(data))
                if room < len(data):
                    break
        except BrokenPipeError:
            pass  # nobody reads any more
        os.close(self._from)
        os.close(self._to)

    def wait(self) -> None:
        self._thread.join(30)
        assert not self._thread.is_alive()


@dataclass
class Done:
    """What both ends say, or raised; and the bytes that went to the receiver, and back."""

    sent: Outcome = field(default_factory=Outcome)
    received: Outcome = field(default_factory=Outcome)
    sender_error: HoldfastError | None = None
    receiver_error: HoldfastError | None = None
    bytes_there: int = 0
    bytes_back: int = 0

    def whole(self) -> Done:
        """Itself, if nothing was raised."""
        for error in (self.sender_error, self.receiver_error):
            if error is not None:
                raise error
        return self


def synced(
    source: Path, target: Path, *, cut_there: int | None = None, cut_back: int | None = None, **options: Any
) -> Done:
    """Bring `source` to `target`, with the receiver in a thread; what either raises is in the answer."""
    there, back, done = Pipe(cut_there), Pipe(cut_back), Done()

    def receive() -> None:
        try:
            for outcome in ends.receive(target, Frames(there.reading, back.writing), Options(**options)):
                done.received = outcome
        except HoldfastError as error:
            done.receiver_error = error
        finally:
            os.close(there.reading)
            os.close(back.writing)

    receiver = threading.Thread(target=receive)
    receiver.start()
    try:
        for outcome in ends.send(source, Frames(back.reading, there.writing)):
            done.sent = outcome
    except HoldfastError as error:
        done.sender_error = error
    finally:
        os.close(there.writing)
        os.close(back.reading)
    receiver.join(60)
    assert not receiver.is_alive()
    there.wait()
    back.wait()
    done.bytes_there, done.bytes_back = there.passed, back.passed
    return done


@contextmanager
def _beside(end: Callable[[Frames], Iterable[Outcome]]) -> Iterator[tuple[Frames, list[HoldfastError]]]:
    """An end in a thread, to be told whatever a test likes; what it raised is in the list when the block is over."""
    there, back = os.pipe(), os.pipe()
    raised: list[HoldfastError] = []

    def work() -> None:
        try:
            list(end(Frames(there[0], back[1])))
        except HoldfastError as error:
            raised.append(error)
        finally:
            os.close(there[0])
            os.close(back[1])

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield Frames(back[0], there[1]), raised
    finally:
        os.close(there[1])
        thread.join(30)
        os.close(back[0])
        assert not thread.is_alive()


def receiver(target: Path, **options: Any) -> AbstractContextManager[tuple[Frames, list[HoldfastError]]]:
    """The receiving end."""
    return _beside(lambda frames: ends.receive(target, frames, Options(**options)))


def sender(source: Path) -> AbstractContextManager[tuple[Frames, list[HoldfastError]]]:
    """The sending end."""
    return _beside(lambda frames: ends.send(source, frames))


def tree(root: Path, **files: str | bytes) -> Path:
    """Files below `root`, made with their folders; `__` in a name is a slash."""
    for name, content in files.items():
        file = root / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    root.mkdir(exist_ok=True)
    return root


def held(root: Path, *, without: str = ".log") -> dict[str, Any]:
    """What lies below `root`, by path: links' texts, files' bytes and permissions; without what is ignored."""
    found: dict[str, Any] = {}
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(folder, name)
            if name.endswith(without):
                continue
            key = str(path.relative_to(root))
            if path.is_symlink():
                found[key] = str(path.readlink())
            elif path.is_dir():
                found[key] = "folder"
            else:
                found[key] = (path.read_bytes(), path.stat().st_mode & 0o777, path.stat().st_mtime_ns)
        folders[:] = [name for name in folders if not name.endswith(without)]
    return found
