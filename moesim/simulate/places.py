"""Places: where the experts and layers of a plan are, as its placement policy says.

The placement policy is built from the scenario. It says on which lanes the plan's layers run, and
may fix which experts are in GPU memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moesim.cost.cpu import topology_of
from moesim.errors import PolicyViolation, ScenarioError, UsageError
from moesim.hardware.topology import CPU, GPU, Topology
from moesim.policies import Key
from moesim.policies.guard import make_placement, placement_lanes
from moesim.policies.placement import Placement, PlacementContext, fixes_residents
from moesim.policies.placement.answers import check_layer_lane, check_residents
from moesim.serving.experts.host_budget import HostBudget
from moesim.simulate.checks import policy_of
from moesim.streams import stream

if TYPE_CHECKING:
    from moesim.hardware.hardware import Hardware
    from moesim.model.shapes import ModelShape
    from moesim.scenario import Scenario

__all__ = ["Places", "build_placement", "layer_lanes", "residents_of", "topology_for"]

_RETURN_KEYS = "return keys, or leave the method out if experts come and go"
Popularity = Callable[[Any], Mapping[Key, int]]


@dataclass(frozen=True, slots=True)
class Places:
    """Where the parts of a plan are.

    `lanes[m]` is the compute lane of model layer m without its routed experts, and the last entry
    that of the end of a step; empty if all are on the GPU. `residents` are the experts that are in
    GPU memory for the whole run; None if they come and go. `elsewhere`: experts may run on another
    lane than the GPU. `host` is the split of host memory. `fitting` is the number of slots in which
    every choice of experts fits; each placement policy of the plan is asked with it.
    """

    topology: Topology
    host: HostBudget
    lanes: tuple[str, ...] = ()
    residents: tuple[Key, ...] | None = None
    elsewhere: bool = False
    fitting: int = 0


def build_placement(
    scenario: Scenario,
    shape: ModelShape,
    popularity: Popularity | None = None,
    *,
    has_gpu: bool = True,
) -> Placement:
    """Return a new placement policy of a scenario; `has_gpu` is that of its machine.

    Raises:
        ScenarioError: the policy refuses its options.
    """
    policy, options = policy_of(scenario, "placement")
    context = PlacementContext(
        model_layers=tuple(shape.moe_layers),
        num_model_layers=shape.num_layers,
        num_experts=shape.num_experts,
        top_k=shape.top_k,
        rng=stream(scenario.seed, "placement"),
        popularity=popularity,
        has_gpu=has_gpu,
    )
    try:
        return make_placement(policy, context, options)
    except UsageError as error:
        raise ScenarioError.at(scenario, "placement.options", str(error)) from None


def topology_for(scenario: Scenario, hardware: Hardware, *, disk: bool = False) -> Topology:
    """Return the lanes that a checked scenario's placement and memories need."""
    policy, _ = policy_of(scenario, "placement")
    cpu = CPU in placement_lanes(policy)  # a policy may also name `gpu`, which is always there
    return topology_of(hardware, cpu=cpu, disk=disk)


def layer_lanes(placement: Placement, shape: ModelShape, topology: Topology) -> tuple[str, ...]:
    """Return the lane of each model layer and of the end of a step; empty if all are the GPU's.

    Raises:
        PolicyViolation: the policy names a lane that the machine does not have.
    """
    computing = [lane.name for lane in topology.lanes if lane.computes]
    lanes = tuple([placement.layer_lane(layer) for layer in range(shape.num_layers + 1)])
    for layer, lane in enumerate(lanes):
        check_layer_lane(placement.name, layer, lane, computing)
    return () if set(lanes) == {GPU} else lanes


def residents_of(
    scenario: Scenario, placement: Placement, slots: int, num_keys: int
) -> tuple[Key, ...] | None:
    """Return the experts that are in GPU memory for the whole run; None if they come and go.

    Raises:
        ScenarioError: the options need more slots than there are.
        PolicyViolation: the policy returns impossible keys.
    """
    try:
        keys = placement.residents(slots)
    except UsageError as error:
        raise ScenarioError.at(scenario, "placement.options", str(error)) from None
    if keys is None:
        if fixes_residents(policy_of(scenario, "placement")[0]):
            raise PolicyViolation(placement.name, "residents", "returns None; " + _RETURN_KEYS)
        return None
    check_residents(placement.name, keys, slots, num_keys)
    return tuple(keys)
