"""What every format shares: how it is found, how an export becomes a whole file or none, what an import may hold.

A format module has

    SAYS                                  one sentence on what it writes
    SUFFIXES                              of files that are surely in it
    export(checkpoint, into, choice)      write the file or folder `into`; returns sentences on what was left out
    read(source) -> state                 nested dictionaries of tensors and plain values; never runs what it reads

Importing a format module costs nothing; torch is imported by those functions that cannot do without it.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import importlib
import os
import secrets
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from holdfast.checkpoint.contents import TensorInfo
from holdfast.checkpoint.matching import bare
from holdfast.checkpoint.reading import Checkpoint
from holdfast.errors import HoldfastError, StoreRefused, UsageError
from holdfast.fsio import DISK, Lock, exchange

_WOVEN = ("expanded", "quantised", "sparse", "compressed")  # tensors made of others
NAMES = ("pt", "safetensors", "huggingface", "dcp")
_REFUSED: Mapping[int | None, str] = {
    errno.ENOSPC: "free some space, or name another place",
    errno.EDQUOT: "your quota is used up: free some space, or name another place",
    errno.EFBIG: "files there may not be that large: name another place",
    errno.EROFS: "name a place that is not read-only",
    errno.EACCES: "name a place where you may write",
    errno.EPERM: "name a place where you may write",
}
_FOLDERS = ("huggingface", "dcp")  # the others are files


class Unreadable(HoldfastError):
    """A file or folder that is not in the format it should be in, or that asks for code to be run."""

    exit_code = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What to export. `names`: registered objects, all where the format holds several, else the one called `model`."""

    names: tuple[str, ...] = ()
    config: Path | None = None  # huggingface: where config.json and the tokenizer lie
    shard_bytes: int = 5_000_000_000  # huggingface: a file of weights is not made larger


class Format(Protocol):
    """What mypy and the conformance test hold a format module to."""

    SAYS: str
    SUFFIXES: tuple[str, ...]

    def export(self, checkpoint: Checkpoint, into: Path, choice: Choice) -> list[str]:
        """Write `into`, which is not there yet. Raises UsageError, Damaged, OSError."""

    def read(self, source: Path) -> dict[str, Any]:
        """The state in `source`. Raises Unreadable, OSError."""


def named(name: str) -> Format:
    """The format called `name`. Raises UsageError."""
    if name not in NAMES:
        raise UsageError(f"there is no format {name!r}", hint=f"one of {', '.join(NAMES)}")
    return cast(Format, importlib.import_module(f"holdfast.formats.{name}"))


def guess(path: Path) -> str:
    """The format of a file by its suffix, of a folder by what lies in it. Raises UsageError."""
    if path.is_dir():
        if (path / ".metadata").is_file():
            return "dcp"
        if any(path.glob("*.safetensors")):
            return "huggingface"
    for name in NAMES:
        if path.suffix and path.suffix in named(name).SUFFIXES:
            return name
    raise UsageError(f"nothing about {path} tells its format", hint=f"--format {'|'.join(NAMES)}")


def read(name: str, source: Path) -> dict[str, Any]:
    """The state in `source`, which is in the format `name`. Raises UsageError, Unreadable, OSError."""
    form, kinds = named(name), ("file", "folder")
    if source.is_dir() != (name in _FOLDERS):
        said = f"{source} is a {kinds[source.is_dir()]}, and what is in format {name} is a {kinds[name in _FOLDERS]}"
        raise UsageError(said, hint="another --format")
    return form.read(source)


@contextlib.contextmanager
def needs_torch(what: str) -> Iterator[None]:
    """Turn a missing torch into a sentence."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "numpy"):
            raise
        raise HoldfastError(
            f"{what} needs {error.name}, which the Python of holdfast lacks ({sys.executable})",
            hint=f"pip install {'numpy' if error.name == 'numpy' else repr('holdfast[torch]')} there",
        ) from error


def write(name: str, checkpoint: Checkpoint, into: Path, choice: Choice, *, force: bool) -> list[str]:
    """Export to `into`, which is there whole and durable afterwards, or as it was before.

    Returns sentences on what was left out. Raises UsageError when `into` exists and not `force`, Damaged, OSError,
    StoreRefused when there is no room or no right.
    """
    if os.path.lexists(into) and not force:
        raise UsageError(f"{into} is there already", hint="another name, or --force")
    if not into.parent.is_dir():
        raise UsageError(f"there is no folder {into.parent}", hint=f"mkdir -p {shlex.quote(str(into.parent))}")
    with writing(into), _workplace(into) as folder:
        temporary = folder / into.name
        with needs_torch(f"an export to {name}"):
            said = named(name).export(checkpoint, temporary, choice)
        _sync(temporary)
        _put(temporary, into, force=force)
        DISK.sync_folder(into.parent)
    return said


@contextlib.contextmanager
def _workplace(into: Path) -> Iterator[Path]:
    """A folder beside `into` whose lock we hold; what exports to that name have left that were killed goes."""
    for left in into.parent.glob(f".{glob.escape(into.name)}.*.tmp"):
        with contextlib.suppress(FileNotFoundError):
            _remove_unless_locked(left)
    folder, lock = _made_and_locked(into)
    with contextlib.closing(lock):
        try:
            yield folder
        finally:
            _remove(folder)


def _made_and_locked(into: Path) -> tuple[Path, Lock]:
    while True:  # once more if another export to that name took it for a dead one's before we had the lock
        folder = into.with_name(f".{into.name}.{secrets.token_hex(4)}.tmp")
        folder.mkdir()
        with contextlib.suppress(FileNotFoundError):
            if (lock := DISK.lock(folder)) is not None:
                return folder, lock


def _remove_unless_locked(folder: Path) -> None:
    lock = DISK.lock(folder)
    if lock is not None:
        with contextlib.closing(lock):
            _remove(folder)


@contextlib.contextmanager
def writing(into: Path) -> Iterator[None]:
    """Turn a disk that takes nothing more into a sentence. Raises StoreRefused.

    torch's writers end with errors of their own, and DCP with one that is no Exception, above the one of the disk.
    """
    try:
        yield
    except (KeyboardInterrupt, HoldfastError):
        raise
    except BaseException as error:
        refused = next((one for one in _below(error) if isinstance(one, OSError) and one.errno in _REFUSED), None)
        if refused is None:
            raise
        raise StoreRefused(f"{into} cannot be written: {refused.strerror}", hint=_REFUSED[refused.errno]) from error


def _below(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it came from."""
    while error is not None:
        yield error
        for one, _ in getattr(error, "failures", {}).values():  # of DCP's ranks
            yield from _below(one)
        error = error.__cause__ or error.__context__


def _put(temporary: Path, into: Path, *, force: bool) -> None:
    """Give the export its name. What it replaces goes last."""
    if not (force and os.path.lexists(into)):
        DISK.rename(temporary, into)
    elif into.is_dir() and not into.is_symlink():
        if exchange(temporary, into):
            return  # what was there has the temporary name, and goes with it
        old = temporary.parent.with_suffix(".old")
        DISK.rename(into, old)
        try:
            DISK.rename(temporary, into)
        except OSError:
            DISK.rename(old, into)
            raise
        _remove(old)
    else:
        DISK.rename(temporary, into, replace=True)


def _sync(path: Path) -> None:
    """Make a file, or a folder with all that is in it, durable."""
    if path.is_dir():
        for entry in path.iterdir():
            _sync(entry)
        DISK.sync_folder(path)
        return
    with contextlib.closing(DISK.open(path)) as file:
        file.sync()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Weights:
    """The tensors of one registered object without torch: `aliases` are further names of a tensor, left out of it."""

    tensors: Mapping[str, TensorInfo]
    aliases: Mapping[str, str]  # further name → name in `tensors`
    said: tuple[str, ...]


def weights(checkpoint: Checkpoint, choice: Choice) -> Weights:
    """What a file of weights holds: names without what wrappers put in, each tensor once. Raises UsageError."""
    name = _one(choice.names)
    nodes = entries(checkpoint, name)
    tensors = {key: node for key, node in nodes.items() if isinstance(node, dict) and node.get("$") == "tensor"}
    if not tensors:
        raise UsageError(f"what is stored as {name!r} holds no tensors by name", hint="--object names another one")
    for key, node in nodes.items():
        if isinstance(node, dict) and (node.get("$") in _WOVEN or "view" in node):
            what = "a view" if "view" in node else str(node["$"])
            raise UsageError(f"{key} is {what}, and a file of weights holds plain tensors only", hint="--format pt")
    short = _bare_names(list(tensors))
    first: dict[str, str] = {}
    aliases: dict[str, str] = {}
    for key in sorted(tensors, key=lambda key: short[key]):
        kept = first.setdefault(tensors[key]["ref"], short[key])
        if kept != short[key]:
            aliases[short[key]] = kept
    left = [key for key in nodes if key not in tensors]
    said = (f"left out, since they are no tensors: {', '.join(left[:10])}",) if left else ()
    return Weights({kept: checkpoint.tensors[ref] for ref, kept in first.items()}, aliases, said)


def state_dict_of(state: Mapping[str, Any], take: str | None) -> dict[str, Any]:
    """The weights in what a format has read: all of it where it is flat, else its part `take`, by default `model`.

    Raises UsageError with the parts there are. Pure.
    """
    nested = {str(key): value for key, value in state.items() if isinstance(value, Mapping)}
    part = nested.get(take or "model") if take or nested else state
    if part is None:
        what = f"no part {take!r}" if take else "no part called 'model'"
        raise UsageError(f"there is {what} in it", hint=f"--take one of {', '.join(nested) or 'none: it is flat'}")
    return {str(key): value for key, value in part.items()}


def _one(names: Sequence[str]) -> str:
    if len(names) > 1:
        raise UsageError(f"a file of weights holds one object, not {', '.join(names)}", hint="one --object")
    return names[0] if names else "model"


def entries(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    """Key → node of the state_dict stored as `name`. Raises UsageError."""
    held = {k: v for k, v in checkpoint.state().get("items", []) if isinstance(k, str) and not k.startswith("@")}
    if name not in held:
        raise UsageError(f"{checkpoint.info} holds no {name!r}", hint=f"it holds {', '.join(held) or 'nothing'}")
    node = held[name]
    if not isinstance(node, dict) or node.get("$") not in ("dict", "odict"):
        raise UsageError(f"what is stored as {name!r} is no state_dict", hint="--format pt")
    return {key: value for key, value in node["items"] if isinstance(key, str)}


def _bare_names(names: list[str]) -> dict[str, str]:
    """Each name without the words of wrappers; as they are where two would become one."""
    made = {name: bare(name) or name for name in names}
    return made if len(set(made.values())) == len(names) else {name: name for name in names}
