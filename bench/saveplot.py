"""What a checkpoint adds and blocks, engine beside engine, as one PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

OURS, DURABLE, OTHER = "tab:blue", "tab:green", "tab:gray"


def plot(path: Path, rows: Sequence[dict[str, Any]], facts: dict[str, Any]) -> None:
    """Write `path`: bars from the cheapest down; colour says whose, and whether "saved" means durable."""
    found = sorted((row for row in rows if "failed" not in row), key=lambda row: -row["added_s"])
    names = [row["title"] for row in found]
    figure, (added, worst) = plt.subplots(
        1, 2, figsize=(12, 1.6 + 0.42 * len(found)), sharey=True, layout="constrained"
    )
    bars = added.barh(names, [max(row["added_s"], 0) * 1000 for row in found], color=[_colour(row) for row in found])
    added.bar_label(bars, fmt="%.0f", padding=3)
    added.plot([row["blocked_s"] * 1000 for row in found], names, "k|", ms=12, mew=2, label="blocked in the call")
    bars = worst.barh(names, [row["worst_step_s"] * 1000 for row in found], color=[_colour(row) for row in found])
    worst.bar_label(bars, fmt="%.0f", padding=3)
    worst.axvline(
        1000 * sum(row["step_s"] for row in found) / len(found), color="black", lw=0.8, ls="--", label="a step"
    )
    added.set(xlabel="ms that a checkpoint adds to training")
    worst.set(xlabel="ms of the longest step")
    for axes in (added, worst):
        axes.margins(x=0.15)
    handles, labels = added.get_legend_handles_labels()
    words = {OURS: "holdfast: durable and verified", DURABLE: "durable", OTHER: "not durable when it says saved"}
    handles += [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in words]
    handles += worst.get_legend_handles_labels()[0]
    figure.legend(handles, [*labels, *words.values(), "a step alone"], loc="outside lower center", ncols=5)
    figure.suptitle(title(facts))
    figure.savefig(path, dpi=130)
    plt.close(figure)


def title(facts: dict[str, Any]) -> str:
    """What was measured."""
    threads = f", training on {facts['threads']} threads" if facts.get("threads", 1) > 1 else ""
    return f"A checkpoint of {facts['state_bytes'] / 1e6:g} MB every {facts['steps']} steps{threads}"


def _colour(row: dict[str, Any]) -> str:
    if row["engine"].startswith("holdfast"):
        return OURS
    return DURABLE if row["durable"] == "all durable" else OTHER
