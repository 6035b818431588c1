"""Step records and library events of one rank: JSON lines, one write(2) each, so that a killed trainer loses none.

Values that JSON has no number for are the strings "NaN", "Infinity" and "-Infinity". On a full disk lines wait in
memory and are written when there is room again.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from holdfast.errors import UsageError

try:
    import numpy as np
except ImportError:
    np = None  # type: ignore[assignment]

_SAID = ("t", "step", "epoch", "attempt")  # in every step record


WAITING_BYTES = 16 << 20  # of lines in memory; beyond that the oldest are given up
_OWN = ("t", "step", "epoch", "attempt")  # in every record: a value logged under such a name is not kept


def tell(sentence: str) -> None:
    """Say it on the terminal, where there is one with room for it."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"holdfast: {sentence}\n")


class Records:
    """Appends to `records/rank-N.jsonl`."""

    def __init__(self, path: Path, *, attempt: int, sync_always: bool) -> None:
        """Raises OSError when the file cannot be opened."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._attempt, self._sync_always = attempt, sync_always
        size = os.fstat(self._descriptor).st_size
        torn = size > 0 and os.pread(self._descriptor, 1, size - 1) != b"\n"  # by a power cut or a full disk
        self._waiting = bytearray(b"\n" if torn else b"")  # what the disk had no room for yet

    def step(self, step: int, epoch: int, values: dict[str, Any]) -> None:
        """One completed step's values, already plain."""
        self._write({"t": time.time(), "step": step, "epoch": epoch, "attempt": self._attempt, **values})

    def event(self, name: str, **facts: Any) -> None:
        """Something the library did, or that somebody should know."""
        self._write({"t": time.time(), "event": name, "attempt": self._attempt, **facts})

    def _write(self, record: dict[str, Any]) -> None:
        self._waiting += json.dumps(record, separators=(",", ":")).encode() + b"\n"
        try:
            del self._waiting[: os.write(self._descriptor, self._waiting)]
            if self._sync_always:
                os.fsync(self._descriptor)
        except OSError:  # training goes on; the save that fails for the same reason is what alerts
            beyond = max(0, len(self._waiting) - WAITING_BYTES)
            del self._waiting[: self._waiting.index(b"\n", beyond) if beyond else 0]

    def close(self) -> None:
        """No record may follow."""
        with contextlib.suppress(OSError):  # as above
            os.write(self._descriptor, self._waiting)
        os.close(self._descriptor)


class Pending:
    """Values given to `run.log`, read when that is free: on the CPU at the step's end, from a GPU a step later."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._now: dict[str, Any] = {}
        self._late: tuple[int, int, dict[str, Any], list[torch.cuda.Event]] | None = None
        self.metrics: dict[str, float] = {}  # latest finite value of each name

    def add(self, values: dict[str, Any]) -> None:
        """Keep `values` for the step in progress; what a record says anyway (step, epoch) is left out.

        Raises UsageError for what is not one number or text.
        """
        for name, value in values.items():
            if name == "event":
                raise UsageError("run.log(event=…): lines with that name are the library's own", hint="another name")
            if name not in _SAID:
                self._now[name] = _kept(name, value)

    def end_step(self, step: int, epoch: int) -> None:
        """The step is complete: write what can be read now, and what the step before left to read."""
        self.flush()
        if not self._now:
            return
        values, self._now = self._now, {}
        on_gpu = {name: value for name, value in values.items() if isinstance(value, torch.Tensor) and value.is_cuda}
        if on_gpu:
            copies = {name: value.to("cpu", non_blocking=True) for name, value in on_gpu.items()}
            self._late = step, epoch, {**values, **copies}, _events(on_gpu)
        else:
            self._write(step, epoch, values)

    def flush(self) -> None:
        """Write what still waits for a GPU."""
        if self._late is not None:
            (step, epoch, values, events), self._late = self._late, None
            for event in events:
                event.synchronize()
            self._write(step, epoch, values)

    def _write(self, step: int, epoch: int, values: dict[str, Any]) -> None:
        plain = {name: value.item() if isinstance(value, torch.Tensor) else value for name, value in values.items()}
        for name, value in plain.items():
            if isinstance(value, float) and not math.isfinite(value):
                plain[name] = "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
            elif isinstance(value, (int, float)) and name not in _OWN:
                self.metrics[name] = value
        self._records.step(step, epoch, plain)


def _events(tensors: dict[str, torch.Tensor]) -> list[torch.cuda.Event]:
    """One mark on the current stream of each device: the copies begun so far are done when it is passed."""
    made = []
    for device in {tensor.device for tensor in tensors.values()}:
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(device))
        made.append(event)
    return made


def _kept(name: str, value: Any) -> Any:
    if type(value) in (float, int, bool, str):
        return value
    if isinstance(value, torch.Tensor) and value.numel() == 1 and not value.is_complex():
        return value.detach()
    if np is not None and isinstance(value, (np.generic, np.ndarray)) and value.size == 1:
        return value.item()
    if value is None or isinstance(value, (float, int, str)):
        return value
    what = f"of shape {tuple(value.shape)}" if hasattr(value, "shape") else type(value).__name__
    raise UsageError(
        f"run.log({name}=…) takes one number or text, not a value {what}", hint=f"log its mean: {name}.mean()"
    )
