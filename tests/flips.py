"""Which bytes of a file a test damages."""

from __future__ import annotations


def places(raw: bytes, *, of_padding: int = 31) -> list[int]:
    """Every byte that is not zero, the zeros beside one, and one in `of_padding` of the other zeros; 1 means all."""
    return [at for at in range(len(raw)) if at % of_padding == 0 or any(raw[max(0, at - 1) : at + 2])]
