"""The budget of host memory: what lies in it, and whether experts must be read from disk.

The parts are the weights of layers on the CPU, KV entries on the host, and experts. Pinned experts
are page-locked and stay. The others share the rest: all of them, or what fits in front of a disk.
A split that does not fit is refused before anything runs, with all numbers and with changes that
would make it fit. Unlimited host memory holds everything. Without a disk, experts that never leave
GPU memory need no place in host memory, so they only count where all experts fit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moesim.config.units import format_bytes
from moesim.errors import BudgetError
from moesim.serving.experts.host_memory import HostMemory, Unit, taken_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moesim.hardware.hardware import Hardware
    from moesim.model.shapes import ModelShape
    from moesim.policies.view import Key
    from moesim.scenario import Scenario

__all__ = ["HostBudget", "plan_host"]

_MIB = 2**20


@dataclass(frozen=True, slots=True)
class HostBudget:
    """Bytes of each part of host memory; `capacity_bytes` is None where it is unlimited.

    The experts with the first `num_pinned` keys are page-locked; they take `pinned_bytes`, and all
    experts together `experts_bytes`. With `unit` `page` both count whole pages.
    """

    capacity_bytes: int | None
    weights_bytes: int
    kv_bytes: int
    num_pinned: int
    pinned_bytes: int
    experts_bytes: int
    unit: Unit

    @property
    def room_bytes(self) -> int | None:
        """Bytes for experts, pinned ones included; None where host memory is unlimited."""
        if self.capacity_bytes is None:
            return None
        return self.capacity_bytes - self.weights_bytes - self.kv_bytes

    @property
    def needs_disk(self) -> bool:
        """Whether the experts exceed host memory, so that some are read from disk."""
        return self.room_bytes is not None and self.experts_bytes > self.room_bytes

    def is_pinned(self, key: Key) -> bool:
        """Return whether an expert is page-locked, so that copies of it use the pinned rate."""
        return key < self.num_pinned

    @property
    def mixed(self) -> bool:
        """Whether some experts are page-locked and others are not."""
        return 0 < self.pinned_bytes < self.experts_bytes

    def memory(self, sizes: Sequence[int]) -> HostMemory | None:
        """Return host memory as a run starts with it; `sizes[key]` is the bytes of each expert.

        None if it holds all experts, so that nothing is ever read from disk.
        """
        if not self.needs_disk:
            return None
        assert self.room_bytes is not None
        return HostMemory(self.room_bytes, sizes, self.unit, pinned=range(self.num_pinned))


def plan_host(
    scenario: Scenario,
    shape: ModelShape,
    hardware: Hardware,
    *,
    layers_on_cpu: Collection[int] = (),
    kv_bytes_on_host: int = 0,
    always_on_gpu: Collection[Key] = (),
) -> HostBudget:
    """Return the split of host memory.

    Args:
        scenario: `memory.host`, `host_cache` and `pinned`, and `hardware.pinned` decide.
        shape: the model.
        hardware: the machine; its disk, if it has one, holds the experts that do not fit.
        layers_on_cpu: the model layers whose weights lie in host memory; the number of layers
            stands for embeddings and LM head.
        kv_bytes_on_host: bytes of the KV entries of these layers.
        always_on_gpu: the experts that are in GPU memory for the whole run.

    Raise `BudgetError` with all numbers if the parts exceed the memory, or if experts do not fit
    and there is no disk to read them from.
    """
    memory, sizes = scenario.memory, shape.sizes()
    taken = [taken_bytes(nbytes, memory.host_cache) for nbytes in sizes]
    weights = shape.layers_bytes(layers_on_cpu)
    room = None if memory.host is None else memory.host - weights - kv_bytes_on_host
    if room is not None and sum(taken) > room and hardware.disk is None:
        taken = [0 if key in always_on_gpu else nbytes for key, nbytes in enumerate(taken)]
    pinned = _num_pinned(scenario, taken, fits=room is None or sum(taken) <= room)
    budget = HostBudget(
        capacity_bytes=memory.host,
        weights_bytes=weights,
        kv_bytes=kv_bytes_on_host,
        num_pinned=pinned,
        pinned_bytes=sum(taken[:pinned]),
        experts_bytes=sum(taken),
        unit=memory.host_cache,
    )
    if room is None:
        return budget
    shortage = _Shortage(scenario, budget, taken, has_disk=hardware.disk is not None)
    if room < 0:
        raise shortage.error("leave nothing for experts")
    if budget.pinned_bytes > room:
        raise shortage.error("exceed the memory")
    if budget.needs_disk:
        if room < budget.pinned_bytes + shortage.largest:
            raise shortage.error("leave too little for one more expert")
        if hardware.disk is None:
            raise shortage.error("exceed the memory, and the hardware has no disk")
    return budget


def _num_pinned(scenario: Scenario, taken: Sequence[int], *, fits: bool) -> int:
    """Return the number of page-locked experts; `fits`: all experts fit in host memory.

    `taken` are the bytes of each expert in host memory, by key.
    """
    amount = scenario.memory.pinned
    match amount.kind:
        case "all":
            return len(taken)
        case "share":
            return round(amount.value * len(taken))
        case "bytes":
            left, number = int(amount.value), 0
            while number < len(taken) and taken[number] <= left:
                left -= taken[number]
                number += 1
            return number
        case "none":
            return 0
    return len(taken) if scenario.hardware.pinned and fits else 0


@dataclass(frozen=True, slots=True)
class _Shortage:
    """A split that exceeds host memory: `taken` are the bytes of each expert, by key."""

    scenario: Scenario
    budget: HostBudget
    taken: Sequence[int]
    has_disk: bool

    @property
    def largest(self) -> int:
        """Bytes of the largest expert that is not pinned; 0 if all are."""
        return max(self.taken[self.budget.num_pinned :], default=0)

    @property
    def fixed(self) -> int:
        """Bytes of what is no expert."""
        return self.budget.weights_bytes + self.budget.kv_bytes

    def error(self, what: str) -> BudgetError:
        """Return the error: `what` is wrong, the size of each part, and what to try."""
        budget, capacity = self.budget, self.budget.capacity_bytes
        assert capacity is not None
        parts = {
            "weights of layers on the CPU": budget.weights_bytes,
            "KV entries on the host": budget.kv_bytes,
            f"{budget.num_pinned} pinned experts": budget.pinned_bytes,
            "largest other expert": self.largest,
            f"{self._counted()} experts": budget.experts_bytes,
        }
        lines = [
            f"  {name}: {format_bytes(size)} ({size} bytes)" for name, size in parts.items() if size
        ]
        lines.append(f"  of {format_bytes(capacity)} ({capacity} bytes)")
        lines += [f"  {note}" for note in self.scenario.units_read().values()]
        key = "pinned" if self._pinned_too_many(capacity) else "host"
        remedies = [*self._remedies(capacity), "fewer model.expert_bits"]
        return BudgetError(
            f"{self._place(f'memory.{key}')}: impossible host memory: the parts {what}\n"
            + "\n".join(lines)
            + f"\n  try {', or '.join(remedies)}"
        )

    def _counted(self) -> str:
        """Return how many experts are in host memory: those that never leave the GPU are not."""
        number = sum(size > 0 for size in self.taken)
        return f"all {number}" if number == len(self.taken) else str(number)

    def _place(self, key: str) -> str:
        """Return the place of a key, or that of the text which gives its value."""
        if key == "memory.host" and self.scenario.document().at(("memory", "host")) is None:
            return self.scenario.mark("hardware.memory")
        return self.scenario.mark(key)

    def _remedies(self, capacity: int) -> Iterator[str]:
        """Yield changes of which each alone makes everything fit, as `key: value`."""
        if self._pinned_too_many(capacity):
            yield "memory.pinned: none"
        experts = self.budget.experts_bytes
        if self.has_disk:
            experts = self.budget.pinned_bytes + self.largest
        elif capacity - self.fixed >= self.budget.pinned_bytes + self.largest:
            yield "a disk, like hardware.disk: {bandwidth: 3GB/s, latency: 100us}"
        yield f"memory.host: {-(-(self.fixed + experts) // _MIB)}MiB"

    def _pinned_too_many(self, capacity: int) -> bool:
        """Return whether everything would fit if no expert were pinned."""
        return self.has_disk and capacity - self.fixed >= max(self.taken)
