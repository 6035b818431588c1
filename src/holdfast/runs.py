"""Where runs live and what lies where inside one; finding a run by its name.

Standard library only: the trainer side uses it too.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast.errors import HoldfastError, RunNotFound, UsageError


@dataclass(frozen=True, slots=True)
class RunDir:
    """The folder of one run; every path in it that somebody needs has its name here."""

    root: Path

    @property
    def id(self) -> str:
        """The run id: the folder's own name."""
        return self.root.name

    @property
    def plan(self) -> Path:
        return self.root / "plan.json"

    @property
    def spec(self) -> Path:
        return self.root / "holdfast.yaml"

    @property
    def journal(self) -> Path:
        return self.root / "journal.jsonl"

    @property
    def code(self) -> Path:
        return self.root / "code"

    @property
    def output(self) -> Path:
        return self.root / "output.log"

    @property
    def records(self) -> Path:
        return self.root / "records"

    @property
    def archiver_log(self) -> Path:
        return self.root / "archiver.jsonl"

    @property
    def mirror(self) -> Path:
        """What the archiver knows of the mirror."""
        return self.root / "mirror.json"

    @property
    def shim_log(self) -> Path:
        return self.root / "shim.jsonl"

    @property
    def node_log(self) -> Path:
        return self.root / "node.log"

    @property
    def stacks(self) -> Path:
        return self.root / "stacks"

    @property
    def checkpoints(self) -> Path:
        """The default checkpoint folder; `plan.checkpoint.dir` is the one in use."""
        return self.root / "checkpoints"

    @property
    def lib(self) -> Path:
        return self.root / "lib"

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    @property
    def runtime(self) -> Path:
        """Sockets and pages: a short path of our own, since a socket's path ends at 108 bytes."""
        return runtime_home() / hashlib.blake2b(str(self.root.resolve()).encode(), digest_size=8).hexdigest()


def home() -> Path:
    """`$HOLDFAST_HOME`, by default ~/.holdfast."""
    return Path(os.environ.get("HOLDFAST_HOME") or Path.home() / ".holdfast")


def runtime_home(uid: int | None = None) -> Path:
    """Where sockets and pages of a user's runs lie, by default ours: the same from a login, from cron, after a logout.

    Not created here. $XDG_RUNTIME_DIR is none of these: docs/decisions/0007-runtime-directory.md.
    """
    return Path("/tmp") / f"holdfast-{os.getuid() if uid is None else uid}"  # noqa: S108 - made 0700, and its owner is checked


class NotOurs(HoldfastError, PermissionError):
    """Somebody was in /tmp before us, and could read or change what we put there."""

    def __init__(self, folder: Path) -> None:
        super().__init__(f"{folder} belongs to another user, or others may write to it", hint="let root remove it")


def make_private(folder: Path) -> None:
    """Create it, 0700. Raises NotOurs when somebody else made it before us, OSError."""
    with contextlib.suppress(FileExistsError):  # whatever it is
        folder.mkdir(mode=0o700)
    if not is_ours(folder):
        raise NotOurs(folder)


def make_runtime(run: RunDir) -> Path:
    """Create the runtime directory, 0700. Raises NotOurs when somebody else made it before us."""
    for folder in (runtime_home(), run.runtime, run.runtime / "pages"):
        make_private(folder)
    return run.runtime


def is_ours(folder: Path) -> bool:
    """Whether `folder` is one that nobody but this user could have put there or can write to."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022


def every() -> Iterator[RunDir]:
    """All runs under `home()`, in order of their names. Raises UsageError when that is no folder."""
    folder = home() / "runs"
    if home().exists() and not home().is_dir():
        raise UsageError(f"HOLDFAST_HOME is {home()}, which is not a folder", hint="unset it, or name a folder")
    if folder.is_dir():
        yield from (RunDir(entry) for entry in sorted(folder.iterdir()) if (entry / "plan.json").is_file())


def find(name: str) -> RunDir:
    """The run called `name`, or at that path. Raises RunNotFound, with the nearest name."""
    by_path = Path(name)
    if "/" in name and (by_path / "plan.json").is_file():
        return RunDir(by_path.resolve())
    known = {run.id: run for run in every()}
    if name in known:
        return known[name]
    if "/" not in name and is_awaited(name):
        raise RunNotFound(name, said=f"{name} goes on elsewhere; this machine stands by for it", hint="holdfast queue")
    near = difflib.get_close_matches(name, known, n=1)
    raise RunNotFound(name, near=near[0] if near else "")


def is_awaited(name: str) -> bool:
    """Whether this machine stands by for a run of that name on another one."""
    return (home() / "standbys" / name / "standby.json").is_file()


def plan_of(run: RunDir) -> dict[str, Any]:
    """plan.json. Raises HoldfastError when it cannot be read."""
    try:
        plan = json.loads(run.plan.read_bytes())
    except (OSError, ValueError) as error:
        raise HoldfastError(f"{run.plan} cannot be read: {error}", hint=f"holdfast rm --force {run.id}") from error
    if not isinstance(plan, dict):
        raise HoldfastError(f"{run.plan} holds no plan", hint=f"holdfast rm --force {run.id}")
    return plan
