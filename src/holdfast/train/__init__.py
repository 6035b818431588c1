"""What a training script holds: `holdfast.Run`; and what it reads without one: `holdfast.load`, `load_weights`."""

from __future__ import annotations

from holdfast.train.occasions import Occasion
from holdfast.train.run import Run
from holdfast.train.weights import load, load_weights

__all__ = ["Occasion", "Run", "load", "load_weights"]
