"""The debug mode of snapshots: sums of the source at the boundary, against those of the slot when it is sealed."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from holdfast.checkpoint.snapshot import Copy
from holdfast.errors import HoldfastError


class SnapshotChanged(HoldfastError):
    """State was written while it was copied; the copy was thrown away."""

    def __init__(self, step: int, names: Sequence[str]) -> None:
        rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
        super().__init__(
            f"{', '.join(map(repr, names[:3]))}{rest} changed while the snapshot of step {step} was copied",
            hint="write to it after the backward pass or an optimizer step, or only on the stream of the training",
        )


class Check:
    """What the sources were when the copies were about to begin."""

    def __init__(self, copies: Sequence[Copy]) -> None:
        self._expected = [(copy.name, copy.target, digest(copy.source)) for copy in copies]

    def changed(self) -> list[str]:
        """Names of the tensors of which the slot holds something else. Every copy must be done."""
        wrong = [name for name, target, found in self._expected if not torch.equal(digest(target), found.cpu())]
        return list(dict.fromkeys(wrong))


def digest(bits: torch.Tensor) -> torch.Tensor:
    """Two int64 on the tensor's device: the sum of its elements as integers, modulo 2^64, and their torch.hash_tensor.

    Where this torch has no `hash_tensor` the second is 0. Order does not count: a permutation goes unseen.
    """
    integers = bits.contiguous().view(-1)
    integers = integers.view(torch.int64) if integers.dtype == torch.complex128 else integers
    total = integers.sum(dtype=torch.int64)
    if not hasattr(torch, "hash_tensor"):
        return torch.stack([total, torch.zeros_like(total)])
    return torch.stack([total, torch.hash_tensor(integers).view(torch.int64)])
