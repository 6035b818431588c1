"""Make a run: its id, its folder, and everything in it before the first process starts.

plan.json is written last of all; a folder without one is not a run (`runs.every` does not see it).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path

from holdfast import fsio, runs
from holdfast.errors import RunFileError, UsageError
from holdfast.events import RunCreated
from holdfast.journal import Journal
from holdfast.plan import Facts, Plan, make, path_of
from holdfast.runs import RunDir
from holdfast.spec import Spec, dump
from holdfast.workspace import copying, git_state

_UNFIT = re.compile(r"[^A-Za-z0-9._-]+")
_INTERPRETERS = re.compile(r"(python|pypy|bash|sh|torchrun|accelerate|deepspeed|env|uv|nice)[0-9.]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is to be made: a spec and where it was said."""

    spec: Spec
    base: Path  # relative paths of the run file stand on it
    copy: bool  # take a snapshot of workdir; else the command runs in workdir itself
    id: str | None = None  # this id and no other; else the name, with a number when it is taken
    environ: Mapping[str, str]
    init: str = ""  # FOLDER@TERM-SEQUENCE whose weights it begins with
    takes_over: bool = False  # it is the run of another machine; else a name that this one stands by for is taken
    token: str = ""  # of the caller, who may not learn that the run was made and order it again


def default_name(spec: Spec, base: Path, *, from_file: bool) -> str:
    """The folder's name for a run file, the script's for a command. Pure."""
    words = spec.run.split() if isinstance(spec.run, str) else spec.run
    plain = [word for word in words if not word.startswith("-") and " " not in word]
    scripts = [Path(word).stem for word in plain if word.endswith((".py", ".sh"))]
    programs = [Path(word).name for word in plain if not _INTERPRETERS.fullmatch(Path(word).name)]
    candidates = [base.resolve().name] if from_file else [*scripts, *programs, *words[:1]]
    fitting = (_UNFIT.sub("-", candidate).strip("-._")[:48].rstrip("-._") for candidate in candidates)
    return next((name for name in fitting if name), "run")


def preview(order: Order, name: str) -> Plan:
    """The plan that `create` would make now. Raises UsageError, RunFileError for what could never start."""
    facts = facts_of(order, name, RunDir(_folder() / next_id(order, name)))
    workdir = Path(path_of(order.spec.workdir, order.spec, facts))
    check_workdir(workdir, copied=order.copy)
    plan = make(order.spec, facts)
    if order.spec.environment.python is not None:
        _check_interpreter(path_of(order.spec.environment.python, order.spec, facts))
    if not isinstance(order.spec.run, str):
        _check_program(order.spec.run[0], plan.env.get("PATH", os.defpath), workdir)
    _refuse_used(Path(plan.checkpoint.dir))
    return plan


def check_workdir(workdir: Path, *, copied: bool) -> None:
    """Raise RunFileError for a folder that is none, or that nobody would copy."""
    if not workdir.is_dir():
        raise RunFileError(f"workdir {workdir} is not a folder")
    if copied and workdir.resolve() in (Path.home().resolve(), Path("/")):
        raise RunFileError(
            f"workdir {workdir} is not the folder of a project", hint="move the code into a folder of its own"
        )


def ordered(token: str) -> RunDir | None:
    """The run that was made for the order with this token, if one was."""
    for run in runs.every():
        with suppress(OSError, ValueError, AttributeError):
            if json.loads((run.root / "code.json").read_bytes()).get("order") == token:
                return run
    return None


def facts_of(order: Order, name: str, run: RunDir) -> Facts:
    """What `plan.make` needs to know."""
    facts = Facts(
        run=run.id,
        dir=str(run.root),
        name=name,
        base=str(order.base),
        cwd=str(run.code),
        shell=shutil.which("bash") or shutil.which("sh") or "/bin/sh",
        home=str(Path.home()),
        environ=order.environ,
        init=order.init,
        now_s=time.time(),
    )
    if order.copy:
        return facts
    workdir = path_of(order.spec.workdir, order.spec, facts)
    return replace(facts, cwd=workdir)


def next_id(order: Order, name: str) -> str:
    """The id that a run of this name would get now."""
    return order.id or next(candidate for candidate in _candidates(order, name) if not (_folder() / candidate).exists())


def create(order: Order, name: str, record: Callable[[RunDir, Plan], None]) -> tuple[RunDir, Plan]:
    """Make the run; `record` writes the first journal line. Leaves nothing behind when it fails.

    Raises UsageError when the home or checkpoint.dir cannot be written or is another run's, when `order.id` is taken,
    and what the snapshot raises.
    """
    run, lock = _claim(order, name)
    try:
        facts = facts_of(order, name, run)
        plan = make(order.spec, facts)
        workdir = Path(path_of(order.spec.workdir, order.spec, facts))
        _write(run.root / "code.json", json.dumps(_code(order, workdir, run), indent=1))
        _write(run.spec, dump(order.spec))
        run.lib.mkdir(mode=0o700)
        (run.lib / "holdfast").symlink_to(Path(__file__).resolve().parent)
        with _checkpoints_of(run, Path(plan.checkpoint.dir)):
            record(run, plan)
            fsio.create(run.plan, json.dumps(plan.to_json(), indent=1).encode())
    except BaseException as error:
        shutil.rmtree(run.root, ignore_errors=True)
        if isinstance(error, OSError) and error.errno and not error.filename:  # who writes is not told where
            error.filename = str(run.root)
        raise
    finally:
        lock.close()
    return run, plan


def record_created(run: RunDir, plan: Plan) -> None:
    """The first line of the journal, which is the supervisor's from then on."""
    journal = Journal(run.journal)
    journal.append(RunCreated(t=time.time(), run=run.id, plan=plan.digest))
    journal.close()


def _claim(order: Order, name: str) -> tuple[RunDir, fsio.Lock]:
    """A new folder of this name, and a lock on it to be held while it is filled.

    mkdir decides between two that want a name at once. A folder that nobody holds, with nothing in it but what lies
    there before plan.json does, was left by a caller that was killed: it is emptied and used. Anything else is kept:
    where a shim has been there may be checkpoints, even if the plan was lost.
    """
    folder = _folder()
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        for candidate in _candidates(order, name):
            run = RunDir(folder / candidate)
            with suppress(FileExistsError):
                run.root.mkdir(mode=0o700)
            if (lock := _lock(run)) is not None:
                return run, lock
    except OSError as error:
        raise UsageError(
            f"{folder} cannot be written: {error.strerror}", hint="set HOLDFAST_HOME to a folder of yours"
        ) from error
    raise UsageError(f"there is a run {order.id!r} already", hint=f"holdfast status {order.id}")


def _lock(run: RunDir) -> fsio.Lock | None:
    """A lock on the empty folder of a run to be made; None when somebody else makes it, has made it or removed it."""
    try:
        lock = fsio.DISK.lock(run.root)
    except FileNotFoundError:
        return None
    if lock is None:
        return None
    if not all(_is_half_made(run, path) for path in run.root.iterdir()):
        lock.close()
        return None
    for left in run.root.iterdir():
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left)
        else:
            left.unlink()
    return lock


def _is_half_made(run: RunDir, path: Path) -> bool:
    """Whether it is something that `create` makes before plan.json."""
    draft = path.name.startswith(f".{run.plan.name}.") and path.suffix == ".tmp"
    return draft or path in (run.code, run.root / "code.json", run.spec, run.lib, run.journal)


def _candidates(order: Order, name: str) -> Iterator[str]:
    """The ids that it may have, best first. One of a run that this machine stands by for is kept for that run."""
    if order.id is not None:
        yield order.id
        return
    for candidate in chain([name], (f"{name}-{number}" for number in count(2))):
        if order.takes_over or not runs.is_awaited(candidate):
            yield candidate


@contextmanager
def _checkpoints_of(run: RunDir, root: Path) -> Iterator[None]:
    """Make `root` the checkpoint folder of `run`, of no other from now on; given back when what is inside fails.

    One inside the run's own folder cannot be another's.
    """
    if root.is_relative_to(run.root):
        yield
        return
    from holdfast.checkpoint.folder import Folder

    folder = Folder(root)
    try:
        folder.own()  # two runs that begin at once would both find it unused, and the one continue from the other
        try:
            _refuse_used(root)
            folder.open()
        finally:
            folder.leave()
    except OSError as error:
        raise UsageError(
            f"checkpoint.dir {root} cannot be written: {error.strerror or error}",
            hint="name a folder that this user can write",
        ) from error
    try:
        yield
    except BaseException:
        if not any((root / "manifests").iterdir()):
            (root / "format.json").unlink(missing_ok=True)
        raise


def _refuse_used(root: Path) -> None:
    if (root / "format.json").exists():
        raise UsageError(
            f"{root} holds the checkpoints of another run",
            hint="put ${run} into checkpoint.dir, or continue that run with holdfast resume",
        )


def _folder() -> Path:
    return runs.home().absolute() / "runs"


def _code(order: Order, workdir: Path, run: RunDir) -> dict[str, object]:
    """The snapshot, taken, and its code.json: where the code came from and in which state it was."""
    said: dict[str, object] = {
        "version": 1,
        "workdir": str(workdir),
        "snapshot": order.copy,
        "git": git_state.describe_git(workdir),
    }
    if order.token:
        said["order"] = order.token
    if order.copy:
        copied = copying.snapshot(workdir, run.code, avoid=runs.home())
        said |= {"files": copied.files, "bytes": copied.size_bytes, "skipped": list(copied.skipped)}
    return said


def _check_program(program: str, path: str, workdir: Path) -> None:
    if "/" in program:
        found = workdir / Path(program).expanduser()
        if not found.is_file():
            raise UsageError(f"there is no program {program} in {workdir}")
        if not os.access(found, os.X_OK):
            raise UsageError(f"{program} is not executable", hint=f"chmod +x {program}, or name its interpreter first")
        return
    if shutil.which(program, path=path) is not None:
        return
    hint = f"is it installed? PATH is {path}"
    if (workdir / program).is_file():
        hint = f"python {program}" if program.endswith(".py") else f"./{program}"
    elif program == "python" and shutil.which("python3", path=path):
        hint = "python3 is there"
    elif program.startswith("python"):
        hint = f"a training runs in a Python of yours: name it in environment.python, or put it on PATH, now {path}"
    raise UsageError(f"there is no program {program!r} on PATH", hint=hint)


def _check_interpreter(path: str) -> None:
    if not os.access(path, os.X_OK) or not Path(path).is_file():
        raise RunFileError(f"environment.python: {path} is not a program", hint="give the path of an interpreter")


def _write(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text, encoding="utf-8")
