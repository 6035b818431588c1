"""Which commit the code was, and what was not committed. Remote addresses are left out: they may hold passwords."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

_MOST_SHOWN = 200
_TIMEOUT_S = 10.0


def describe_git(workdir: Path) -> dict[str, Any] | None:
    """`{commit, branch, dirty, changed}` of the repository around `workdir`; None without one, or without git.

    `changed` holds up to 200 lines of `git status --porcelain`.
    """
    commit = _git(workdir, "rev-parse", "--verify", "--quiet", "HEAD")
    status = _git(workdir, "status", "--porcelain", "--", ".")
    if commit is None or status is None:
        return None
    changed = status.splitlines()
    return {
        "commit": commit.strip(),
        "branch": (_git(workdir, "symbolic-ref", "--short", "--quiet", "HEAD") or "").strip(),
        "dirty": bool(changed),
        "changed": changed[:_MOST_SHOWN],
    }


def _git(workdir: Path, *words: str) -> str | None:
    """What git prints, None when it fails. No hook and no monitor of the repository is started."""
    argv = [
        "git",
        "--no-optional-locks",
        "-c",
        "core.fsmonitor=false",
        "-c",
        "core.hooksPath=/dev/null",
        "-C",
        str(workdir),
    ]
    try:
        done = subprocess.run([*argv, *words], capture_output=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None
