"""Bytes of the first and the second save beside the bytes that changed, as one PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt

BARS = (
    ("torch_save_bytes", "torch.save, each time", "tab:gray"),
    ("first_bytes", "first save", "tab:blue"),
    ("second_bytes", "second save", "tab:cyan"),
    ("changed_bytes", "changed in between", "tab:orange"),
)


def plot(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write `path`; the scale is logarithmic, since adapters are small beside their base."""
    places = np.arange(len(rows))
    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    for number, (word, label, colour) in enumerate(BARS):
        megabytes = [row[word] / 1e6 for row in rows]
        bars = axes.bar(places + 0.2 * (number - 1.5), [max(each, 1e-3) for each in megabytes], 0.19, color=colour)
        bars.set_label(label)
        axes.bar_label(bars, [f"{each:.3g}" for each in megabytes], padding=2, fontsize=8)
    axes.set_xticks(places, [row["kind"] for row in rows])
    axes.set(ylabel="MB", yscale="log", title="Two saves in a row: bytes written, and bytes changed")
    axes.margins(y=0.15)
    axes.legend(ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.06))
    figure.savefig(path, dpi=130)
    plt.close(figure)
