"""What a task takes over SSH, way beside way, as one PNG: a column for each distance, a row for each kind of task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

TASKS = (
    "ping",
    "ping after rest",
    "call",
    "call after rest",
    "command",
    "stream",
    "upload",
    "sync",
    "unchanged",
    "first call",
)
OURS, OTHER = "tab:blue", "tab:gray"
# of each panel: its tasks, and what a bar is long for
_PANELS = (
    (("ping", "ping after rest", "call", "call after rest", "command"), "ms of a call or a command"),
    (("stream", "upload"), "MB/s of a stream or an upload"),
    (("sync", "unchanged"), "ms of a folder of {files} files"),
    (("first call",), "ms from a bare host to its first answer"),
)


def plot(path: Path, facts: dict[str, Any]) -> None:
    """Write `path`: fastest on top, whiskers are quartiles; the dashed line is the round trip without SSH."""
    panels = [(tasks, words.format(**facts)) for tasks, words in _PANELS]
    panels = [panel for panel in panels if any(row["task"] in panel[0] for row in facts["rows"])]
    columns = len(facts["trips"])
    most = [max(len(_chosen(facts, trip, tasks)) for trip in facts["trips"]) for tasks, _ in panels]
    figure, grid = plt.subplots(
        len(panels), columns, figsize=(7.5 * columns, 1.5 + sum(0.75 + 0.34 * n for n in most)),
        squeeze=False, layout="constrained", height_ratios=[1 + n for n in most],
    )  # fmt: skip
    for line, (tasks, words) in zip(grid, panels, strict=True):
        for axes, trip in zip(line, facts["trips"], strict=True):
            _bars(axes, _chosen(facts, trip, tasks))
            axes.set(xlabel=words)
            if "call" in tasks:
                axes.set(xscale="log", title=f"round trip {trip['wanted_s'] * 1000:g} ms")
                axes.xaxis.set_minor_formatter(NullFormatter())  # they lie on each other
                axes.axvline(trip["measured_s"] * 1000, color="black", lw=0.8, ls="--")
    figure.suptitle(f"SSH, way beside way: medians and quartiles of {facts['rounds']} rounds (holdfast blue)")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _chosen(facts: dict[str, Any], trip: dict[str, Any], tasks: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of one panel, from the bottom up."""
    found = [row for row in facts["rows"] if row["trip_s"] == trip["wanted_s"] and row["task"] in tasks]
    return sorted(found, key=lambda row: (tasks.index(row["task"]), row["median_s"]), reverse=True)


def _bars(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    names = [f"{row['way']} · {row['task']}" for row in rows]
    shown = [[_shown(row, row[word]) for word in ("median_s", "low_s", "high_s")] for row in rows]
    colours = [OURS if row["way"].startswith("holdfast") else OTHER for row in rows]
    axes.barh(names, [middle for middle, _, _ in shown], color=colours)
    for name, (middle, *ends) in zip(names, shown, strict=True):
        axes.plot(ends, [name, name], color="black", lw=1)
        words = f"{middle:.0f}" if middle >= 100 else f"{middle:.3g}"
        axes.annotate(words, (max(ends), name), xytext=(5, 0), textcoords="offset points", va="center")
    axes.margins(x=0.15)


def _shown(row: dict[str, Any], seconds: float) -> float:
    """Milliseconds, or 10^6 bytes a second where the row has a speed."""
    if "bytes_per_s" in row:
        return float(row["bytes_per_s"] * row["median_s"] / seconds / 1e6)
    return seconds * 1000
