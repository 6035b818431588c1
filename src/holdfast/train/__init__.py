"""What a training script holds: `holdfast.Run`."""

from __future__ import annotations

from holdfast.train.occasions import Occasion
from holdfast.train.run import Run

__all__ = ["Occasion", "Run"]
