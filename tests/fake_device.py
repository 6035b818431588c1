"""A device for machines without one: its side stream copies as late as it may, or as far as a test lets it.

The CPU's own program order is the compute stream. A copy reads its source when it is carried out, so whoever writes
before the fence is caught with the later bytes in the slot.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from holdfast.checkpoint.snapshot import Copy


@dataclass(eq=False)
class FakeTicket:
    """Done when the side stream has come past it."""

    device: FakeDevice
    copies: list[Copy]
    done: bool = False

    def finished(self) -> bool:
        return self.done

    def wait(self) -> None:
        self.device.carry_out(self)


@dataclass
class FakeDevice:
    """`log` tells what was asked of it, `names` what each copy took along."""

    capturing: bool = False
    queue: list[FakeTicket] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    names: list[set[str]] = field(default_factory=list)
    pinned: dict[int, int] = field(default_factory=dict)
    broken: bool = False

    def takes(self, tensor: torch.Tensor) -> bool:
        return tensor.dtype.is_floating_point

    def is_capturing(self) -> bool:
        return self.capturing

    def pin(self, address: int, size_bytes: int) -> Callable[[], object]:
        assert address not in self.pinned, "memory was locked twice"
        self.pinned[address] = size_bytes
        return lambda: self.pinned.pop(address)

    def copy(self, copies: Sequence[Copy]) -> Any:
        ticket = FakeTicket(self, list(copies))
        self.queue.append(ticket)
        self.names.append({copy.name for copy in copies})
        self.log.append("copy")
        return ticket

    def hold(self, ticket: FakeTicket) -> None:
        self.log.append("hold")
        self.carry_out(ticket)

    def carry_out(self, until: FakeTicket | None = None) -> None:
        """Let the side stream run, as far as `until` if that is given."""
        if self.broken:
            raise RuntimeError("the device is gone")
        while self.queue and (until is None or not until.done):
            ticket = self.queue.pop(0)
            for copy in ticket.copies:
                copy.target.copy_(copy.source)
            ticket.done = True
            self.log.append("done")
