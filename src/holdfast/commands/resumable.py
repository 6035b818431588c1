"""What `resume` takes: a run here, or a mirror elsewhere, and which of its checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from holdfast import runs
from holdfast.errors import UsageError
from holdfast.runs import RunDir

At = int | str | None  # a step, "best", or None for the newest


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A mirror, and which of its checkpoints."""

    url: str
    at: At


def source(text: str) -> tuple[RunDir, At] | Elsewhere:
    """A run here, or a mirror. Raises RunNotFound, UsageError."""
    return elsewhere(text) or run_at(text)


def run_at(text: str) -> tuple[RunDir, At]:
    """The parts of RUN, RUN@STEP or RUN@best. Raises RunNotFound, UsageError."""
    name, at_sign, at = text.rpartition("@")
    if not at_sign:
        return runs.find(text), None
    if at != "best" and not at.isdecimal():
        raise UsageError(f"{text!r}: after @ comes a step or best, not {at!r}", hint=f"holdfast ckpt ls {name}")
    return runs.find(name), at if at == "best" else int(at)


def elsewhere(text: str) -> Elsewhere | None:
    """URL, URL@STEP or URL@best; None for what is the name or the folder of a run. Raises UsageError."""
    url, at_sign, at = text.rpartition("@")
    if not at_sign or not (at == "best" or at.isdecimal()):
        url, at = text, ""
    if "://" in text:
        from holdfast import urls

        urls.scheme_of(url)
    elif not (url.startswith("/") and (Path(url) / "run" / "plan.json").is_file()):
        return None
    return Elsewhere(url, at if at == "best" else int(at) if at else None)
