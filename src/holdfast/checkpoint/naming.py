"""How a checkpoint is called: `checkpoint.name` of the run file, filled in. For people; nothing parses it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from string import Formatter
from typing import Any


def render(template: str, project: str, head: Mapping[str, Any], metric: str | None) -> str:
    """The name of the checkpoint with rank 0's table `head`; `metric` is what `keep.best` goes by.

    A field without a value (no such metric was logged, or it is no number) becomes `-`.
    """
    values: dict[str, Any] = {
        "project": project,
        "step": head["step"],
        "epoch": head["epoch"],
        "metric": head["metrics"].get(metric),
        "time": time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(head["time_s"])),
    }
    parts = []
    for text, name, spec, _ in Formatter().parse(template):
        parts += [text, _filled(values.get(name), spec or "") if name is not None else ""]
    return "".join(parts)


def _filled(value: Any, spec: str) -> str:
    try:
        return "-" if value is None else format(value, spec)
    except (ValueError, TypeError):
        return "-"
