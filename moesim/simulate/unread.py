"""Rates of a machine that an engine does not read for this model and these places.

Quantised weights are multiplied as integers, and weights of 16 bits as floats. So which rate acts
follows from the formats of the model, which a scenario alone does not tell.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from moesim.cost.parts import families_of
from moesim.hardware.topology import CPU

if TYPE_CHECKING:
    from moesim.simulate.build import Plan

__all__ = ["missing_rates", "unread_keys"]

_FLOATS = {"float"}


def missing_rates(plan: Plan) -> list[str]:
    """Return the rates of integers that the engine's kernels need and the machine does not have."""
    engine, hardware = plan.engine, plan.cost.hardware
    needed = {
        "int8_ops": engine.gpu and hardware.has_gpu and _families(plan) - _FLOATS,
        "cpu_int8_ops": engine.cpu and plan.places.elsewhere and _families(plan, CPU) - _FLOATS,
    }
    rates = {"int8_ops": hardware.int8_ops_per_s, "cpu_int8_ops": hardware.cpu_int8_ops_per_s}
    return [key for key in rates if needed[key] and not rates[key]]


def unread_keys(plan: Plan) -> Iterator[tuple[str, str]]:
    """Yield the keys of rates that a scenario sets and its engine does not read, with the reason.

    Keys that act in no scenario with this engine are those of `moesim.scenario.unused`.
    """
    engine, chosen, name = plan.engine, plan.scenario.hardware, plan.scenario.engine.profile
    if engine.gpu and chosen.int8_ops is not None and _families(plan) == _FLOATS:
        yield "hardware.int8_ops", "all weights are floats"
    if engine.cpu is None or not plan.places.elsewhere:
        return
    families = _families(plan, CPU)
    if chosen.cpu_int8_ops is not None and families == _FLOATS:
        yield "hardware.cpu_int8_ops", "all weights on the CPU are floats"
    # Attention uses floats whatever the formats.
    reads_floats = "float" in families or CPU in plan.places.lanes
    if chosen.cpu_flops is not None and not reads_floats and plan.cost.hardware.cpu_int8_ops_per_s:
        yield (
            "hardware.cpu_flops",
            f"engine {name} multiplies the quantised experts on the CPU as integers, at "
            "cpu_int8_ops",
        )


def _families(plan: Plan, lane: str | None = None) -> set[str]:
    """Return the families of all weights, or of those that the CPU computes with."""
    layers = lane is None or CPU in plan.places.lanes
    return families_of(plan.cost.shape, layers=layers)
