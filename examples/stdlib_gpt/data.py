"""Text that is already on every machine that runs Python: the source of its own standard library."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

HELD_OUT = 0.02  # of all bytes, the last ones


def stdlib_source() -> bytes:
    """Every .py file of the standard library, in order of its path, without installed packages."""
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(path for path in root.rglob("*.py") if "site-packages" not in path.parts)
    return b"\0".join(path.read_bytes() for path in files)


class Windows(Dataset):
    """Every window of `context` + 1 bytes: inputs (context,) and, one byte later, targets (context,)."""

    def __init__(self, text: Tensor, context: int) -> None:
        self.text, self.context = text, context

    def __len__(self) -> int:
        return len(self.text) - self.context

    def __getitem__(self, start: int) -> tuple[Tensor, Tensor]:
        window = self.text[start : start + self.context + 1].long()
        return window[:-1], window[1:]


def windows(context: int) -> tuple[Windows, Windows]:
    """Training and held-out windows."""
    text = torch.frombuffer(bytearray(stdlib_source()), dtype=torch.uint8)
    cut = int(len(text) * (1 - HELD_OUT))
    return Windows(text[:cut], context), Windows(text[cut:], context)
