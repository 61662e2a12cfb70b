"""The topology of a machine: its memories, its lanes, and the bandwidths that lanes share.

A *memory* is where bytes live. A *lane* does one thing at a time: it computes beside one memory, or
copies from one memory to another. A *resource* is a bandwidth that several lanes use, like that of
host memory, from which the CPU reads experts and copies to the GPU read them too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

__all__ = ["CPU", "D2H", "DISK", "GPU", "H2D", "HOST", "HOST_BANDWIDTH", "Lane", "Topology"]

GPU: Final = "gpu"
"""The memory of the GPU, and the lane that computes on it."""
HOST: Final = "host"
DISK: Final = "disk"
"""The disk, and the lane that reads from it into host memory."""
CPU: Final = "cpu"
H2D: Final = "h2d"
D2H: Final = "d2h"
HOST_BANDWIDTH: Final = "host_memory"
"""The bandwidth of host memory, as a shared resource."""


@dataclass(frozen=True, slots=True)
class Lane:
    """One lane: it copies from `source` to `target`, or computes where both are the same."""

    name: str
    source: str
    target: str

    @property
    def computes(self) -> bool:
        """Whether the lane computes; the others copy."""
        return self.source == self.target


_SINGLE_GPU: Final = (Lane(GPU, GPU, GPU), Lane(H2D, HOST, GPU), Lane(D2H, GPU, HOST))


@dataclass(frozen=True, slots=True)
class Topology:
    """The lanes of a machine in the order of its reports, and its shared resources.

    `resources` gives the capacity of each shared bandwidth in bytes/s, by name.
    """

    lanes: tuple[Lane, ...]
    resources: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))

    @classmethod
    def single_gpu(cls) -> Topology:
        """Return one GPU with a copy engine for each direction, and nothing shared."""
        return cls(_SINGLE_GPU)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the lanes."""
        return tuple(lane.name for lane in self.lanes)

    def route(self, source: str, target: str) -> str:
        """Return the lane that copies from one memory to another. Raise `KeyError` for none."""
        for lane in self.lanes:
            if (lane.source, lane.target) == (source, target):
                return lane.name
        raise KeyError((source, target))

    def memory_of(self, name: str) -> str:
        """Return the memory into which a lane writes. Raise `KeyError` for an unknown lane."""
        for lane in self.lanes:
            if lane.name == name:
                return lane.target
        raise KeyError(name)
