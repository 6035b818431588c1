"""A bug of ours, written down for whoever mends it: version, command line, traceback, nothing secret."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from holdfast import __version__, runs

_WITH_VALUES = ("--secret", "--env", "-e")  # options of `run` and `resume` whose values are nobody's business


def report(error: BaseException, argv: Sequence[str]) -> tuple[str, str]:
    """Write the crash report. Returns the sentence that names it and a hint."""
    text = "\n".join(
        [
            f"holdfast {__version__}, Python {platform.python_version()}, {platform.platform()}",
            f"command line: {' '.join(scrubbed(argv))}",
            "".join(traceback.format_exception(type(error), error, error.__traceback__)),
        ]
    )
    name = f"{time.strftime('%Y-%m-%dT%H%M%S')}-{os.getpid()}.txt"
    path = _write_to([runs.home() / "crashes", Path(tempfile.gettempdir())], name, text)
    if path is None:
        sys.stderr.write(text)
        return f"bug in holdfast: {type(error).__name__}; no folder would take a report", "it is printed above"
    return f"bug in holdfast: {type(error).__name__}; report written to {path}", "please send that file with an issue"


def scrubbed(argv: Iterable[str]) -> Iterator[str]:
    """The command line with the values of `--secret` and `--env` left out, and nothing of the user's own command."""
    hide_next = False
    for word in argv:
        if word == "--":
            yield "-- …"
            return
        option, equals, value = word.partition("=")
        if hide_next:
            yield f"{option}=…"
        elif option in _WITH_VALUES and equals:
            yield f"{option}={value.partition('=')[0]}=…"
        else:
            yield word
        hide_next = word in _WITH_VALUES


def _write_to(folders: Iterable[Path], name: str, text: str) -> Path | None:
    for folder in folders:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path = folder / name
            path.touch(mode=0o600, exist_ok=False)
            path.write_text(text)
        except OSError:
            continue
        return path
    return None
