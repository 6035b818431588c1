"""Declare a deep-learning training run once, in one file. It finishes, whatever breaks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from holdfast.train import Run

__version__ = "0.1.0"
__all__ = ["Run", "__version__"]


def __getattr__(name: str) -> Any:
    """Import torch only when `holdfast.Run` is asked for: `import holdfast` stays fast (PEP 562)."""
    if name == "Run":
        from holdfast.train import Run

        return Run
    raise AttributeError(f"module 'holdfast' has no attribute {name!r}")
