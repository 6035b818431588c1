"""Copies out of a device while training goes on, and the fence that keeps writers behind them.

At a step boundary everything on a device is given to a side stream, behind what the compute stream has been given so
far. What somebody may write at any moment is *held* at once: the compute stream waits for those copies, the CPU does
not. What only an optimizer may write, parameters and its own state, is held later: when the first optimizer begins to
step, at the end of the first backward pass (manual updates may follow it, or a step that GradScaler leaves out), at the
next boundary, or when the loop ends, whichever is first. No thread, and no wait of the CPU.

Which technique gets which treatment, and why: docs/concepts/snapshot.md.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch.autograd.graph import register_multi_grad_hook
from torch.optim.optimizer import register_optimizer_step_pre_hook

from holdfast.checkpoint.slots import Slot
from holdfast.checkpoint.snapshot import Copy

_CUDA: Any = torch.cuda  # half of it has no types


class Ticket(Protocol):
    """Copies that were given to a device."""

    def finished(self) -> bool:
        """Whether all are done; never blocks."""

    def wait(self) -> None:
        """Block until all are done."""


class Engine(Protocol):
    """A device with streams, as far as copies need one."""

    def takes(self, tensor: torch.Tensor) -> bool:
        """Whether the tensor is the device's to copy."""

    def is_capturing(self) -> bool:
        """Whether what is launched now is recorded into a graph instead of run."""

    def pin(self, address: int, size_bytes: int) -> Callable[[], object]:
        """Lock host memory for copies at full speed; returns what undoes it. Raises OSError."""

    def copy(self, copies: Sequence[Copy]) -> Any:
        """Begin the copies behind all that the compute stream has been given; returns their Ticket."""

    def hold(self, ticket: Any) -> None:
        """Whatever the compute stream is given from now on waits for the ticket."""


@dataclass(frozen=True, slots=True)
class _Events:
    by_device: tuple[tuple[torch.device, torch.cuda.Event], ...]

    def finished(self) -> bool:
        return all(bool(_CUDA.Event.query(event)) for _, event in self.by_device)

    def wait(self) -> None:
        for _, event in self.by_device:
            event.synchronize()


class Cuda:
    """One side stream a device. Touches no driver before there is a tensor to copy."""

    def __init__(self) -> None:
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def takes(self, tensor: torch.Tensor) -> bool:
        return tensor.is_cuda

    def is_capturing(self) -> bool:
        return bool(_CUDA.is_initialized()) and bool(_CUDA.is_current_stream_capturing())

    def pin(self, address: int, size_bytes: int) -> Callable[[], object]:
        runtime = _CUDA.cudart()
        said = int(runtime.cudaHostRegister(address, size_bytes, 0))
        if said:
            raise OSError(said, f"cudaHostRegister of {size_bytes} bytes gave error {said}")
        return lambda: runtime.cudaHostUnregister(address)

    def copy(self, copies: Sequence[Copy]) -> _Events:
        events = []
        for device in dict.fromkeys(copy.source.device for copy in copies):
            stream = self._streams.get(device)
            if stream is None:
                stream = self._streams[device] = _CUDA.Stream(device, priority=0)  # 0 is the lowest
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                for copy in copies:
                    if copy.source.device == device:
                        copy.target.copy_(copy.source, non_blocking=True)
                event = _CUDA.Event()
                event.record(stream)
            events.append((device, event))
        return _Events(tuple(events))

    def hold(self, ticket: _Events) -> None:
        for device, event in ticket.by_device:
            torch.cuda.current_stream(device).wait_event(event)


def engine_here() -> Engine:
    """The engine of this process."""
    return Cuda()


@dataclass(slots=True)
class Flight:
    """The copies of one save. Sources and slot memory are held on to until `land`."""

    tickets: list[Any]
    copies: list[Copy]
    owned: list[torch.Tensor]  # what only an optimizer may write
    versions: list[int] = field(default_factory=list)
    fenced: bool = False
    spoilt: str = ""  # why the copy must not be used

    def finished(self) -> bool:
        """Whether all copies are done; never blocks."""
        return all(ticket.finished() for ticket in self.tickets)

    def wait(self) -> None:
        """Block until all copies are done."""
        for ticket in self.tickets:
            ticket.wait()


class Fence:
    """Keeps optimizers of this process from writing what is still being copied."""

    def __init__(self, engine: Engine, objects: Mapping[str, Any]) -> None:
        """`objects`: what is registered with `Run`, the optimizers among it."""
        self.engine, self._objects = engine, objects
        self.lazy = True  # until something is seen that cannot be fenced
        self._flights: list[Flight] = []  # not fenced yet
        self._pinned: dict[int, Callable[[], object]] = {}
        self._backward: Any = None
        self._hook = register_optimizer_step_pre_hook(self._before_step)

    def pin(self, slot: Slot) -> str:
        """Lock the slot's memory, once for each mapping. Says why it stays unlocked, which is only slower."""
        if slot.descriptor in self._pinned:
            return ""
        try:
            unpin = self.engine.pin(ctypes.addressof(ctypes.c_char.from_buffer(slot.view)), len(slot.view))
        except OSError as error:
            return f"slots are not page-locked, copies from the device take longer: {error}"
        self._pinned[slot.descriptor] = unpin

        def release() -> None:
            self._pinned.pop(slot.descriptor)()

        slot.before_unmap = release
        return ""

    def copy(self, copies: list[Copy], sources: Mapping[str, torch.Tensor], *, lazily: bool) -> Flight:
        """Begin `copies`. lazily: what an optimizer owns may be copied until one steps, else the fence stands now."""
        owned = owned_storages(self._objects) if lazily and self.lazy else frozenset()
        late = {name for name, tensor in sources.items() if _storage(tensor) in owned}
        flight = Flight([], copies, [sources[name] for name in {c.name for c in copies} & late])
        at_once = [copy for copy in copies if copy.name not in late]
        if at_once:
            flight.tickets.append(self.engine.copy(at_once))
            self.engine.hold(flight.tickets[0])
        flight.fenced = not flight.owned
        if flight.owned:
            flight.tickets.append(self.engine.copy([copy for copy in copies if copy.name in late]))
            flight.versions = [_version(tensor) for tensor in flight.owned]
            self._flights.append(flight)
            self._watch_backward()
        return flight

    def hold(self) -> None:
        """The fence: what the device is given from now on comes after every copy."""
        flights, self._flights = self._flights, []
        if self._backward is not None:
            self._backward.remove()
            self._backward = None
        for flight in flights:
            flight.fenced = True
            if [_version(tensor) for tensor in flight.owned] != flight.versions:
                self._spoil(flight, "a parameter or optimizer state was written before any optimizer stepped")
            for ticket in flight.tickets:
                self.engine.hold(ticket)

    def _before_step(self, _optimizer: Any, _args: Any, _kwargs: Any) -> None:
        if torch.compiler.is_compiling():
            return  # a compiled step runs no Python; the end of the backward pass is its fence
        if self.engine.is_capturing():
            for flight in self._flights:
                self._spoil(flight, "a CUDA graph was captured while it was copied")
            self.lazy = False  # replays of the graph will write unseen
        elif self._flights:
            self.hold()

    def _spoil(self, flight: Flight, why: str) -> None:
        flight.spoilt = f"{why}; from now on training waits for copies"
        self.lazy = False

    def _watch_backward(self) -> None:
        if self._backward is not None:
            self._backward.remove()
        leaves = [p for _, p in _parameters(self._objects) if p.requires_grad and p.is_leaf]
        if leaves:
            self._backward = register_multi_grad_hook(leaves, self._in_backward, mode="any")

    def _in_backward(self, _gradient: torch.Tensor) -> None:
        torch.autograd.Variable._execution_engine.queue_callback(self.hold)  # noqa: SLF001 (as FSDP does)

    def forget(self) -> None:
        """Leave torch as it was, and what is in flight alone: a device has failed, or this is a forked child."""
        self._hook.remove()
        self._flights.clear()
        if self._backward is not None:
            self._backward.remove()
            self._backward = None


def _parameters(objects: Mapping[str, Any]) -> list[tuple[torch.optim.Optimizer, torch.Tensor]]:
    optimizers = [value for value in objects.values() if isinstance(value, torch.optim.Optimizer)]
    return [(one, parameter) for one in optimizers for group in one.param_groups for parameter in group["params"]]


def owned_storages(objects: Mapping[str, Any]) -> frozenset[int]:
    """Addresses of the memory that exactly one optimizer writes, none before its step hooks have run."""
    count: Counter[int] = Counter()
    fenced: set[int] = set()
    for optimizer in objects.values():
        if isinstance(optimizer, torch.optim.Optimizer):
            mine = {_storage(p) for group in optimizer.param_groups for p in group["params"]}
            states = (
                value for state in optimizer.state.values() if isinstance(state, dict) for value in state.values()
            )
            mine |= {_storage(value) for value in states if isinstance(value, torch.Tensor)}
            count.update(mine)
            if _is_hooked(optimizer):
                fenced |= mine
    return frozenset(address for address in fenced if address and count[address] == 1)


def _is_hooked(optimizer: torch.optim.Optimizer) -> bool:
    """Whether hooks run before its steps: not those that wrap another one, nor those made for graph replays."""
    graphs = any(group.get("capturable") for group in optimizer.param_groups)
    return bool(getattr(type(optimizer).step, "hooked", False)) and not graphs


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided else 0


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version  # noqa: SLF001 (moves with most writes, not with all)
