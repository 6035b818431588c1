"""One file that `torch.load(weights_only=True)` reads: what `holdfast.load` gives, the registered objects by name."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from holdfast.checkpoint.reading import Checkpoint
from holdfast.errors import UsageError
from holdfast.formats.base import Choice, Unreadable

SAYS = "one file for torch.load(weights_only=True): every registered object by name"
_ZIP = b"PK\3\4"
SUFFIXES: tuple[str, ...] = (".pt", ".pth", ".bin", ".ckpt")


def export(checkpoint: Checkpoint, into: Path, choice: Choice) -> list[str]:
    """The state_dicts, gathered in a file beside `into`.

    Raises StoreRefused where there is no room for that, UsageError for what weights_only does not take.
    """
    import torch

    from holdfast.checkpoint import rebuild

    state = rebuild.objects(checkpoint, choice.names or None, allocate=rebuild.in_file(into.parent))
    with into.open("xb") as file:  # a full disk is told by Python's files only
        torch.save(state, file)
    try:
        read(into)
    except Unreadable as error:
        raise UsageError(
            f"the state holds what torch.load(weights_only=True) does not take: {error}",
            hint=f"leave that out: --object {next(iter(state), 'model')}",
        ) from error
    return []


def read(source: Path) -> dict[str, Any]:
    """What the file holds, by `weights_only=True` alone. Raises Unreadable, OSError."""
    with source.open("rb") as file:
        begin = file.read(len(_ZIP))
    if not begin:
        raise Unreadable(f"{source.name} is empty")
    zipped = begin == _ZIP  # as torch.load decides; zipfile raises for some damage at the end
    found = load(source, source.name, mmap=zipped)
    if not isinstance(found, dict):
        raise Unreadable(f"{source.name} holds a {type(found).__name__}, not a dictionary of weights")
    return found


def load(source: Any, what: str, **options: Any) -> Any:
    """`torch.load(weights_only=True)` on the CPU, for files that may be hostile. Raises Unreadable, OSError."""
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols
            return torch.load(source, map_location="cpu", weights_only=True, **options)
    except OSError:
        raise
    except Exception as error:  # a hostile file may make it raise anything
        said = " ".join(str(error).split()).partition(" Check the documentation")[0]
        at = max(said.find("Unsupported"), said.find("WeightsUnpickler error"), 0)
        raise Unreadable(
            f"{what} is not loaded: {said[at : at + 150] or type(error).__name__}",
            hint="only tensors and plain values are read, never code; save its state_dict anew with torch.save",
        ) from error
