"""The machine: its figures, its lanes, and the operations that a lane is asked to do."""

from moesim.hardware.hardware import (
    Disk,
    Figure,
    Hardware,
    Link,
    hardware_from,
    hardware_names,
    load_hardware,
)
from moesim.hardware.ops import BatchShape, Dense, Experts, Front, Op, Tail
from moesim.hardware.topology import Lane, Topology

__all__ = [
    "BatchShape",
    "Dense",
    "Disk",
    "Experts",
    "Figure",
    "Front",
    "Hardware",
    "Lane",
    "Link",
    "Op",
    "Tail",
    "Topology",
    "hardware_from",
    "hardware_names",
    "load_hardware",
]
