"""The end that is reached: `python -m holdfast node receive|send FOLDER`, on its standard streams."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from holdfast.errors import HoldfastError, UsageError
from holdfast.sync import receiving, watch
from holdfast.sync.decide import Options
from holdfast.sync.frames import Cut, Frames, Told
from holdfast.sync.sending import Outcome, Progress, Sender

_FLAGS = {"receive": {"--delete", "--overwrite", "--dry-run"}, "send": {"--watch"}}


@contextmanager
def answering(frames: Frames) -> Iterator[None]:
    """What goes wrong here is told there too. Raises nothing but HoldfastError for what may happen to files."""
    try:
        yield
    except (Cut, Told):
        raise
    except HoldfastError as error:
        frames.fail(error)
        raise
    except OSError as error:
        hint = "look who owns it, and who may write there" if isinstance(error, PermissionError) else ""
        failed = HoldfastError(f"{error.filename or 'a file'}: {error.strerror or error}", hint=hint)
        frames.fail(failed)
        raise failed from error


def send(
    root: Path, frames: Frames, *, watching: bool = False, progress: Progress = lambda done, total: None
) -> Iterator[Outcome]:
    """Bring `root` to the other end: once, or for as long as it is watched, after each change."""
    with answering(frames):
        if not root.exists():
            raise UsageError(f"there is no folder {root}")
        if not root.is_dir():
            raise UsageError(f"{root} is not a folder", hint="name the folder that it lies in")
        sender = Sender(root, frames, progress)
        changes = watch.changes(root) if watching else iter([None])
        for _ in changes:
            yield sender.bring()
        sender.leave()


def receive(
    root: Path, frames: Frames, options: Options, progress: Progress = lambda done, total: None
) -> Iterator[Outcome]:
    """Take what the other end brings to `root`, until it leaves."""
    with answering(frames):
        yield from receiving.rounds(root, frames, options, progress)


def main(argv: Sequence[str]) -> int:
    """Be that end; returns its exit status. Raises UsageError."""
    if len(argv) < 2 or argv[0] not in _FLAGS or not set(argv[2:]) <= _FLAGS[argv[0]]:
        raise UsageError(f"holdfast node {' '.join(argv)}: expected receive|send FOLDER [FLAG]...")
    role, root, flags = argv[0], Path(argv[1]).expanduser(), set(argv[2:])
    with _streams() as frames:
        if role == "send":
            outcomes = send(root, frames, watching="--watch" in flags)
        else:
            options = Options(
                delete="--delete" in flags, overwrite="--overwrite" in flags, dry_run="--dry-run" in flags
            )
            outcomes = receive(root, frames, options)
        try:
            for _ in outcomes:
                pass
        except HoldfastError as error:
            return error.exit_code  # told where somebody listens
    return 0


@contextmanager
def _streams() -> Iterator[Frames]:
    """Standard input and output; what else is printed goes to standard error."""
    reading, writing = os.dup(0), os.dup(1)
    os.dup2(2, 1)
    frames = Frames(reading, writing)
    frames.greet()
    try:
        yield frames
    finally:
        os.close(reading)
        os.close(writing)
