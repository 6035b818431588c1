"""Declare a deep-learning training run once, in one file. It finishes, whatever breaks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from holdfast.train import Run, load, load_weights

__version__ = "0.1.0"
__all__ = ["Run", "__version__", "load", "load_weights"]


def __getattr__(name: str) -> Any:
    """Import torch only when one of the public names is asked for: `import holdfast` stays fast (PEP 562)."""
    if name in __all__:
        from holdfast import train

        return getattr(train, name)
    raise AttributeError(f"module 'holdfast' has no attribute {name!r}")
