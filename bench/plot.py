"""The loss of every attempt over the steps, and the steps over the time, as one PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt

from bench.attempts import Attempt

SMOOTH = 15  # steps


def smooth(losses: Sequence[float]) -> np.ndarray:
    """Running mean over `SMOOTH` steps, shorter at the ends."""
    kernel = np.ones(min(SMOOTH, len(losses)))
    return np.convolve(losses, kernel, mode="same") / np.convolve(np.ones(len(losses)), kernel, mode="same")


def plot(path: Path, *, uninterrupted: Attempt, killed: list[Attempt], kills_s: Sequence[float]) -> None:
    """Write `path`; `kills_s` are the unix seconds of the kills."""
    figure, (loss, progress) = plt.subplots(2, 1, figsize=(9, 8), layout="constrained")
    loss.plot(uninterrupted.steps, smooth(uninterrupted.losses), color="black", lw=4, alpha=0.2, label="uninterrupted")
    start_s = min(attempt.times_s[0] for attempt in killed if attempt.steps)
    for attempt in killed:
        if attempt.steps:
            (line,) = loss.plot(attempt.steps, smooth(attempt.losses), lw=1.2, label=f"attempt {attempt.number}")
            elapsed_s = [time_s - start_s for time_s in attempt.times_s]
            progress.plot(elapsed_s, attempt.steps, lw=2, color=line.get_color())
    for kill_s in kills_s:
        progress.axvline(kill_s - start_s, color="firebrick", lw=0.8, ls="--")
    loss.set(xlabel="step", ylabel="training loss", title="One training, killed with -9 at the red lines", yscale="log")
    loss.legend(ncols=2)
    progress.set(xlabel="seconds", ylabel="step")
    figure.savefig(path, dpi=130)
    plt.close(figure)
