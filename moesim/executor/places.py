"""Where a real model that generates keeps and runs its experts, as its placement policy says.

A scenario's are built in `moesim/simulate/places.py` and `moesim/simulate/build.py`. Here sizes
come from the model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from moesim.cost.choice import cost_of
from moesim.cost.cpu import CpuCost, topology_of
from moesim.cost.estimate import CostEstimate
from moesim.errors import UsageError
from moesim.executor.settings import Serving
from moesim.hardware.hardware import Hardware, load_hardware
from moesim.hardware.topology import CPU, GPU, Topology
from moesim.model.hf_config import shape_from_config
from moesim.model.shapes import ModelShape
from moesim.policies import Key, parse_options
from moesim.policies.guard import find_policy, make_placement, placement_lanes
from moesim.policies.placement import Placement, PlacementContext
from moesim.policies.placement.answers import check_residents
from moesim.policies.placement.copy import Copy
from moesim.record.routers import find_moe_layers
from moesim.serving.budget import STATE_BYTES, split_slots
from moesim.serving.experts.host_memory import HostMemory, taken_bytes
from moesim.serving.experts.placing import Placing
from moesim.serving.issue import Execution
from moesim.streams import stream

__all__ = ["ModelPlaces"]


@dataclass(frozen=True, slots=True)
class ModelPlaces:
    """The places of a model's experts.

    `slots` counts those of each cache, by cache number. `residents` are the experts that are in GPU
    memory for the whole run; None if they come and go. `place` says where absent experts run; None:
    all on the GPU. `host` is host memory if it cannot hold all experts.
    """

    expert_bytes: int
    state_bytes: int
    topology: Topology
    slots: tuple[int, ...]
    residents: tuple[Key, ...] | None = None
    place: Placing | None = None
    host: HostMemory | None = None

    @classmethod
    def of(cls, model: nn.Module, serving: Serving) -> ModelPlaces:
        """Return the places of a Hugging Face decoder with routed experts.

        Raise `UsageError` for a placement that cannot be, or that runs whole layers on the CPU.
        """
        layers = find_moe_layers(model)
        num_layers, num_experts = len(layers), layers[0].num_experts
        nbytes = layers[0].expert_bytes or 0  # the executor refuses a model without them
        policy = find_policy("placement", serving.placement)
        on_cpu = CPU in placement_lanes(policy)
        hardware = _hardware_of(serving)
        host = _host_memory(serving, [nbytes] * (num_layers * num_experts))
        topology = topology_of(hardware, cpu=on_cpu, disk=host is not None)
        if policy is Copy:  # it asks nothing of the model's sizes
            slots = _slots(serving, num_layers, num_experts, None)
            return cls(nbytes, 0, topology, slots, host=host)
        shape = _shape_of(model)
        placement, residents = _placement(serving, shape)
        return cls(
            nbytes,
            shape.hidden * STATE_BYTES,
            topology,
            _slots(serving, num_layers, num_experts, residents),
            residents,
            _placing(placement, hardware, shape, topology, host) if on_cpu else None,
            host,
        )

    def execution(self) -> Execution:
        """Return how decided work is executed."""
        return Execution(
            lambda _key: self.expert_bytes,
            self.topology,
            state_bytes=self.state_bytes,
        )


def _shape_of(model: Any) -> ModelShape:
    """Return the sizes of a model, with weights of the type that it has."""
    bits = torch.finfo(model.dtype).bits
    shape = shape_from_config(model.config.to_dict())
    return shape.with_bits(expert_bits=bits, weight_bits=bits, kv_bits=bits)


def _hardware_of(serving: Serving) -> Hardware:
    given = serving.hardware
    return load_hardware(given) if isinstance(given, str) else given


def _placement(serving: Serving, shape: ModelShape) -> tuple[Placement, tuple[Key, ...] | None]:
    """Return the placement policy, and the experts that it keeps in GPU memory."""
    counts = serving.profile
    context = PlacementContext(
        tuple(shape.moe_layers),
        shape.num_layers,
        shape.num_experts,
        shape.top_k,
        stream(serving.seed, "placement"),
        None if counts is None else lambda _: counts,
    )
    policy = find_policy("placement", serving.placement)
    options = parse_options(policy, serving.placement_options or {})
    placement = make_placement(policy, context, options)
    parts = range(shape.num_layers + 1)
    if away := sum(placement.layer_lane(part) != GPU for part in parts):
        raise UsageError(
            f"placement policy {serving.placement!r} runs {away} whole layers on the CPU (the end "
            "of a step counts as one); the real machine runs only experts there"
        )
    keys = placement.residents(serving.slots)
    if keys is None:
        return placement, None
    every = len(context.model_layers) * shape.num_experts
    check_residents(placement.name, keys, serving.slots, every)
    return placement, tuple(keys)


def _host_memory(serving: Serving, sizes: Sequence[int]) -> HostMemory | None:
    """Return host memory; None if it holds all experts, whose bytes are `sizes`."""
    room = serving.host_bytes
    if room is None or sum(taken_bytes(nbytes, serving.host_cache) for nbytes in sizes) <= room:
        return None
    return HostMemory(room, sizes, serving.host_cache)


def _placing(
    placement: Placement,
    hardware: Hardware,
    shape: ModelShape,
    topology: Topology,
    host: HostMemory | None,
) -> Placing:
    estimate = CostEstimate(
        # As in a scenario, experts are page-locked where all of them fit.
        cost_of(hardware, shape, pinned=host is None),
        CpuCost(hardware, shape),
        unread_of=None if host is None else host.unread,
    )
    lanes = [lane.name for lane in topology.lanes if lane.computes]
    return Placing(placement, estimate, lanes, None if host is None else host.place)


def _slots(
    serving: Serving, num_layers: int, num_experts: int, residents: Sequence[Key] | None
) -> tuple[int, ...]:
    """Return the slots of each cache."""
    if serving.scope == "global":
        slots = min(serving.slots, num_layers * num_experts)
        return (slots if residents is None else len(residents),)
    if residents is None:
        return tuple(split_slots(serving.slots, num_layers, num_experts))
    counts = Counter(key // num_experts for key in residents)
    return tuple([counts[layer] for layer in range(num_layers)])
