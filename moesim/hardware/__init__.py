"""The machine and the model's sizes, and from both the duration of operations and copies."""

from moesim.hardware.cost import CostModel
from moesim.hardware.cpu import CpuCost, topology_of
from moesim.hardware.estimate import CostEstimate
from moesim.hardware.hardware import (
    Disk,
    Figure,
    Hardware,
    Link,
    hardware_from,
    hardware_names,
    load_hardware,
)
from moesim.hardware.model_config import load_shape, shape_from_config
from moesim.hardware.operations import OperationCost, cost_of
from moesim.hardware.ops import BatchShape, Dense, Experts, Front, Op, Tail
from moesim.hardware.shapes import DecoupledRouter, Mla, ModelShape, named_shape, shape_names

__all__ = [
    "BatchShape",
    "CostEstimate",
    "CostModel",
    "CpuCost",
    "DecoupledRouter",
    "Dense",
    "Disk",
    "Experts",
    "Figure",
    "Front",
    "Hardware",
    "Link",
    "Mla",
    "ModelShape",
    "Op",
    "OperationCost",
    "Tail",
    "cost_of",
    "hardware_from",
    "hardware_names",
    "load_hardware",
    "load_shape",
    "named_shape",
    "shape_from_config",
    "shape_names",
    "topology_of",
]
