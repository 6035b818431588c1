"""What a laptop pushes to a node: its own holdfast and what that needs, unpacked and ready to start there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from holdfast.bundle.bootstrap import ensure, start
    from holdfast.bundle.places import Node

__all__ = ["Node", "ensure", "start"]


def __getattr__(name: str) -> Any:
    """The laptop's part is imported when it is asked for: code on a node asks `places` alone (PEP 562)."""
    if name in __all__:
        from holdfast.bundle import bootstrap

        return getattr(bootstrap, name)
    raise AttributeError(f"module 'holdfast.bundle' has no attribute {name!r}")
