"""Which cost model a plan has: that of its engine, measured operations, or a roofline."""

from __future__ import annotations

from moesim.cost.cpu import CpuCost
from moesim.cost.engine import EngineCost, EngineCpuCost
from moesim.cost.measured import OperationCost
from moesim.cost.roofline import CostModel
from moesim.engines.engine import IDEAL, Engine
from moesim.hardware.hardware import Hardware
from moesim.model.shapes import ModelShape

__all__ = ["cost_of", "cpu_cost_of"]


def cost_of(
    hardware: Hardware,
    shape: ModelShape,
    *,
    pinned: bool = True,
    engine: Engine = IDEAL,
    interface: str | None = None,
) -> CostModel:
    """Return the costs of a model on a machine under an engine.

    An engine without kernels on the GPU, like the ideal one, takes measured operations where the
    hardware has them for exactly these sizes, else a roofline. `pinned`: the experts lie in
    page-locked host memory. `interface` chooses among an engine's kernels (cuda, hip, vulkan, ...).

    Raises:
        UsageError: the engine has no kernels for the interface.
    """
    if engine.gpu:
        return EngineCost(hardware, shape, engine, interface=interface, pinned=pinned)
    times = hardware.operations_of(shape)
    if times is None:
        return CostModel(hardware, shape, pinned=pinned, engine=engine)
    return OperationCost(hardware, shape, times, pinned=pinned, engine=engine)


def cpu_cost_of(cost: CostModel) -> CpuCost:
    """Return the costs on the CPU beside those on the GPU, under the same engine.

    Raises:
        UsageError: the hardware lacks a figure of the CPU.
    """
    engine = cost.engine
    if engine.cpu is not None:
        return EngineCpuCost(cost.hardware, cost.shape, engine.cpu, engine)
    return CpuCost(cost.hardware, cost.shape, engine)
