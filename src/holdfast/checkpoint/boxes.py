"""Boxes of a tensor: where they meet, whether they fill one another, and the copy from one to another.

Pure. A box is where it starts and how far it reaches, in elements of the whole tensor; its bytes are in C order.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_MAX_TANGLED = 512  # boxes that no cut separates, compared pair by pair: no shard plan makes more


@dataclass(frozen=True, slots=True)
class Box:
    """`index` is the first element, `shape` the number of elements, along each axis."""

    index: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Elements in it; 1 without axes."""
        return math.prod(self.shape)

    def meet(self, other: Box) -> Box | None:
        """What both hold, None when that is nothing."""
        index = tuple(map(max, self.index, other.index))
        ends = [min(a + n, b + m) for a, n, b, m in zip(self.index, self.shape, other.index, other.shape, strict=True)]
        shape = tuple(end - start for start, end in zip(index, ends, strict=True))
        return Box(index, shape) if all(size > 0 for size in shape) else None


def whole(shape: Sequence[int]) -> Box:
    """The box that is all of a tensor."""
    return Box((0,) * len(shape), tuple(shape))


def fill(boxes: Sequence[Box], region: Box) -> bool:
    """Whether `boxes`, cut to `region`, hold each of its elements exactly once."""
    met = [part for box in boxes if (part := box.meet(region)) is not None]
    return sum(part.count for part in met) == region.count and _are_disjoint(met)


def _are_disjoint(boxes: list[Box]) -> bool:
    """Cut by cut: boxes on two sides of a plane cannot overlap, so only what no plane separates is compared."""
    waiting = [boxes]
    while waiting:
        group = waiting.pop()
        if len(group) < 2:
            continue
        parts = next((parts for axis in range(len(group[0].index)) if len(parts := _cut(group, axis)) > 1), None)
        if parts is not None:
            waiting += parts
        elif len(group) > _MAX_TANGLED or any(a.meet(b) is not None for a, b in itertools.combinations(group, 2)):
            return False
    return True


def _cut(boxes: list[Box], axis: int) -> list[list[Box]]:
    """Groups that planes across `axis` separate."""
    groups: list[list[Box]] = []
    end = -1
    for box in sorted(boxes, key=lambda box: box.index[axis]):
        if box.index[axis] >= end:
            groups.append([])
        groups[-1].append(box)
        end = max(end, box.index[axis] + box.shape[axis])
    return groups


def cut(box: Box, shape: Sequence[int], item_bytes: int, *, most_bytes: int, row_bytes: int) -> Iterator[Box]:
    """Pieces of `box` in the order of its memory, cut where every other box of the tensor of `shape` is cut.

    As many rows as `most_bytes` hold, counted from the start of the tensor, one at least; a row above `row_bytes` is
    cut itself, down to single elements.
    """
    if not shape or 0 in box.shape:
        yield box
        return
    one_row_bytes = math.prod(shape[1:]) * item_bytes
    first, count = box.index[0], box.shape[0]
    if one_row_bytes > row_bytes:
        inside = Box(box.index[1:], box.shape[1:])
        for row in range(first, first + count):
            for inner in cut(inside, shape[1:], item_bytes, most_bytes=most_bytes, row_bytes=row_bytes):
                yield Box((row, *inner.index), (1, *inner.shape))
        return
    rows = max(1, most_bytes // one_row_bytes)
    for start in range(first - first % rows, first + count, rows):
        begin, end = max(start, first), min(start + rows, first + count)
        yield Box((begin, *box.index[1:]), (end - begin, *box.shape[1:]))


def copy(source: memoryview, held: Box, target: memoryview, wanted: Box, item_bytes: int) -> None:
    """Copy what `held` and `wanted` share from the bytes of the one to the bytes of the other."""
    shared = held.meet(wanted)
    if shared is None:
        return
    axis, run = len(shared.shape), item_bytes
    while axis and shared.shape[axis - 1] == held.shape[axis - 1] == wanted.shape[axis - 1]:
        axis -= 1
        run *= shared.shape[axis]
    if axis:  # along this axis it is still one piece, only a shorter one
        axis -= 1
        run *= shared.shape[axis]
    starts = zip(_starts(shared, held, axis, item_bytes), _starts(shared, wanted, axis, item_bytes), strict=True)
    for read_at, write_at in starts:
        target[write_at : write_at + run] = source[read_at : read_at + run]


def _starts(shared: Box, within: Box, axis: int, item_bytes: int) -> Iterator[int]:
    """The byte offset in `within` of each run of `shared`: one for every place along the axes before `axis`."""
    strides = [item_bytes * math.prod(within.shape[k + 1 :]) for k in range(len(within.shape))]
    first = sum((i - j) * stride for i, j, stride in zip(shared.index, within.index, strides, strict=True))
    for places in itertools.product(*(range(size) for size in shared.shape[:axis])):
        yield first + sum(place * stride for place, stride in zip(places, strides, strict=False))
