"""Time until the state is back, cold and warm, as one PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt


def plot(path: Path, rows: Sequence[dict[str, Any]], size_bytes: int) -> None:
    """Write `path`: a pair of bars an engine, the raw read as lines."""
    found = sorted((row for row in rows if row["cold_s"] and row["engine"] != "raw"), key=lambda row: -row["cold_s"])
    places = np.arange(len(found))
    figure, axes = plt.subplots(figsize=(9, 1.6 + 0.5 * len(found)), layout="constrained")
    for word, shift, colour in (("cold_s", 0.2, "tab:blue"), ("warm_s", -0.2, "tab:orange")):
        times = [(row[word] or 0) * 1000 for row in found]
        bars = axes.barh(places + shift, times, height=0.38, color=colour, label=word.removesuffix("_s"))
        axes.bar_label(bars, fmt="%.0f", padding=3, fontsize=8)
        raw_ms = rows[0][f"{word}_raw"] * 1000
        axes.axvline(raw_ms, color=colour, lw=1, ls="--", label=f"raw read, {word.removesuffix('_s')}")
    axes.set_yticks(places, [row["title"] for row in found])
    axes.set(xlabel="ms until the state is restored", title=f"Restoring {size_bytes / 1e6:g} MB")
    axes.margins(x=0.12)
    axes.legend(loc="upper right")
    figure.savefig(path, dpi=130)
    plt.close(figure)
