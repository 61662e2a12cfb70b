"""From a scenario to a server: everything loaded, checked and put together, once.

A `Plan` is what stays the same in all simulations of a scenario; `build_server` makes its server
for any machine, `serve` runs it on the simulated one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Protocol

from moesim.errors import BudgetError, ScenarioError, UsageError
from moesim.hardware.cost import CostModel
from moesim.hardware.operations import cost_of
from moesim.hardware.ops import BatchShape, Op
from moesim.hardware.shapes import load_config
from moesim.policies import Key, find, parse_options
from moesim.policies.batching.base import unknown_experts, unknown_wants
from moesim.policies.eviction import CacheContext, Resident
from moesim.scenario import Scenario
from moesim.serving.budget import Budget, plan_budget, split_slots
from moesim.serving.knowledge import KNOWLEDGE
from moesim.serving.kv import BlockPool
from moesim.serving.layers import LayerPlan
from moesim.serving.ledger import Ledger
from moesim.serving.request import Request
from moesim.serving.residency import ExpertCache, ExpertSizes, Staging
from moesim.serving.routing import RoutingSource, TraceRouting
from moesim.serving.scheduler import Scheduler
from moesim.serving.server import Server
from moesim.serving.workload import build_workload
from moesim.streams import stream
from moesim.trace import Trace, load_trace
from moesim.trace.health import check_static

if TYPE_CHECKING:
    from moesim.machine.base import Direction, Machine
    from moesim.policies.batching.base import Batching
    from moesim.policies.eviction.base import Eviction


class SimPrices:
    """What a simulated machine asks: the cost model, with the readback of ids beside it.

    `free_link` makes expert copies cost nothing: the bound of an infinite link.
    """

    def __init__(self, cost: CostModel, *, free_link: bool = False) -> None:
        self.compute_ns: Callable[[Op], int] = cost.compute_ns
        self.experts_ns: Callable[[tuple[int, ...]], int] = cost.experts_ns
        self.landing_ns: int = cost.landing_ns
        self.layers_ns: Callable[[BatchShape], Sequence[int]] = cost.layers_ns
        self._cost = cost
        self._free_link = free_link

    def copy_ns(self, direction: Direction, nbytes: int) -> int:
        return 0 if self._free_link else self._cost.copy_ns(direction, nbytes)

    def readback_ns(self, nbytes: int) -> int:
        return self._cost.readback_ns(nbytes)

    def chunk_bytes(self, direction: Direction) -> int | None:
        return self._cost.chunk_bytes(direction)


class PolicyObserver(Protocol):
    """Stands between a server and its policies: notes what they answer, or answers instead."""

    def batching(self, policy: Batching) -> Batching:
        """What the scheduler asks instead of the scenario's policy."""

    def eviction(self, cache: int, policy: Eviction) -> Eviction:
        """What cache number `cache` asks instead of the scenario's policy."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A scenario with everything loaded and checked that stays the same in all its simulations."""

    scenario: Scenario
    trace: Trace
    cost: CostModel
    budget: Budget
    slots: tuple[int, ...]
    """Slots of each cache: one a layer, or one for each initial layer and one for all others."""
    observer: PolicyObserver | None = None

    @property
    def buffers(self) -> int:
        """Expert-sized buffers in GPU memory: slots and staging."""
        return sum(self.slots) + self.scenario.memory.staging

    @property
    def model_config(self) -> dict[str, Any] | None:
        """The Hugging Face configuration that sizes were read from; None for a shipped shape."""
        choice = self.scenario.model.shape
        if choice == "trace":
            return self.trace.meta.model_config
        if choice.endswith(".json"):
            return load_config(self.scenario.path(choice))
        return None

    @property
    def layers(self) -> LayerPlan:
        shape = self.cost.shape
        return LayerPlan.of(shape.moe_layers, shape.num_layers)

    def with_slots(self, total: int) -> Plan:
        """The same with another number of expert slots, whatever memory says."""
        return replace(self, slots=_slots_of_caches(self.scenario, self.trace, total))


def prepare(scenario: Scenario, trace: Trace | None = None) -> Plan:
    """Load and check all parts; nothing is simulated yet."""
    trace = trace or load_trace(scenario.trace_path)
    hardware = scenario.load_hardware()
    shape = scenario.load_shape(trace.meta.model_config)
    ours = (trace.num_layers, trace.num_experts, trace.top_k)
    theirs = (len(shape.moe_layers), shape.num_experts, shape.top_k)
    if ours != theirs:
        raise ScenarioError.at(
            scenario,
            "model",
            f"the trace has {ours[0]} MoE layers, {ours[1]} experts, top-{ours[2]}; "
            f"{shape.name} has {theirs[0]}, {theirs[1]}, top-{theirs[2]}",
        )
    for family, section in (("eviction", "cache"), ("placement", "placement")):
        _policy(scenario, family, section)
    _check_knowledge(scenario, trace.meta.router)
    # What policies are told of a static router's tokens to come is read from the first row of a
    # request: were rows to differ, it would be false and nobody would notice. Opening a trace reads
    # no values, so all are compared here, once, and for such traces only.
    check_static(trace)
    if scenario.prefetch.cancel:
        raise ScenarioError.at(
            scenario, "prefetch.cancel", "cancelling prefetches is not available yet"
        )
    requests = build_workload(scenario, trace)
    kv_tokens = [request.max_kv_tokens for request in requests]
    budget = plan_budget(scenario, shape, hardware.vram_bytes, kv_tokens)
    cost = cost_of(hardware, shape, pinned=scenario.hardware.pinned)
    return Plan(scenario, trace, cost, budget, _slots_of_caches(scenario, trace, budget.slots))


def _check_knowledge(scenario: Scenario, router: str) -> None:
    """No policy asks for more than the router reveals."""
    knowledge = KNOWLEDGE[router]
    batching, _ = _policy(scenario, "batching", "batching")
    if batching.needs_routing and not knowledge.queued:
        raise ScenarioError.at(
            scenario,
            "batching.policy",
            f"{batching.name} asks which experts queued tokens want; the trace's router is "
            f"{router}, which reveals it layer by layer only",
        )
    if batching.needs_static and not knowledge.for_ever:
        raise ScenarioError.at(
            scenario,
            "batching.policy",
            f"{batching.name} asks what requests will ever want; the trace's router is {router}, "
            "and only a static one reveals it",
        )
    prefetch, options = _policy(scenario, "prefetch", "prefetch")
    if prefetch.needs_routing and options.depth > knowledge.reach:
        raise ScenarioError.at(
            scenario,
            "prefetch.policy",
            f"{prefetch.name} looks {options.depth} layers ahead; the trace's router is "
            f"{router}, which reveals {knowledge.reach}",
        )


def _slots_of_caches(scenario: Scenario, trace: Trace, total: int) -> tuple[int, ...]:
    """The initial layers have a slot for each expert, the others what is left."""
    first, experts = scenario.cache.initial_layers, trace.num_experts
    left, others = total - first * experts, trace.num_layers - first
    if others < 0:
        raise ScenarioError.at(
            scenario, "cache.initial_layers", f"is {first}; the trace has {trace.num_layers}"
        )
    if left < 0:
        raise BudgetError(
            f"{scenario.mark('cache.initial_layers')}: all experts of {first} initial layers take "
            f"{first * experts} slots; there are {total}"
        )
    if not others:
        rest = []
    elif scenario.cache.scope == "per_layer":
        rest = split_slots(left, others, experts)
    else:
        rest = [min(left, others * experts)]
    return (*[experts] * first, *rest)


def _cache_of(scenario: Scenario, layer: int) -> int:
    """The number of the cache that serves a trace layer."""
    cache = scenario.cache
    return layer if cache.scope == "per_layer" else min(layer, cache.initial_layers)


def _policy(scenario: Scenario, family: str, section: str) -> tuple[type[Any], Any]:
    """A policy's class and options; a mistake points at its line."""
    chosen = getattr(scenario, section)
    try:
        policy = find(family, chosen.policy)
    except UsageError as error:
        raise ScenarioError.at(scenario, f"{section}.policy", str(error)) from None
    try:
        return policy, parse_options(policy, chosen.options)
    except UsageError as error:
        raise ScenarioError.at(scenario, f"{section}.options", str(error)) from None


def build_server(
    plan: Plan,
    machine: Machine,
    *,
    eviction: str | None = None,
    routing: RoutingSource | None = None,
) -> Server:
    """The server of a plan, on any machine. `eviction` overrides the policy (for rehearsals),
    `routing` the trace."""
    scenario, trace = plan.scenario, plan.trace
    requests = build_workload(scenario, trace)
    routing, knowledge = routing or TraceRouting(trace), KNOWLEDGE[trace.meta.router]
    ledger = Ledger(
        plan.layers,
        trace.num_experts,
        first_step=scenario.timeline.first_step,
        steps=scenario.timeline.steps,
    )
    batching, batching_options = _policy(scenario, "batching", "batching")
    prefetch, prefetch_options = _policy(scenario, "prefetch", "prefetch")
    batching_policy = batching(batching_options)
    scheduler = Scheduler(
        batching_policy if plan.observer is None else plan.observer.batching(batching_policy),
        BlockPool(plan.budget.kv_blocks, scenario.memory.kv_block_tokens),
        token_budget=scenario.batching.token_budget,
        max_sequences=scenario.batching.max_sequences,
        experts=routing.experts if knowledge.queued else unknown_experts,
        wants=routing.wants if knowledge.for_ever else unknown_wants,
    )
    return Server(
        machine,
        requests,
        scheduler=scheduler,
        caches=_caches(plan, machine, ledger, requests, eviction),
        prefetch=prefetch(prefetch_options),
        routing=routing,
        layers=plan.layers,
        ledger=ledger,
        knowledge=knowledge,
        sequential=scenario.replay == "sequential",
    )


def _caches(
    plan: Plan,
    machine: Machine,
    ledger: Ledger,
    requests: Sequence[Request],
    eviction: str | None,
) -> list[ExpertCache]:
    scenario, trace = plan.scenario, plan.trace
    policy, options = _policy(scenario, "eviction", "cache")
    if eviction is not None:
        policy, options = find("eviction", eviction), None
    futures: list[list[list[Key]]] | None = None
    if policy.clairvoyant and all(request.arrival_ns == 0 for request in requests):
        futures = group_by_cache(plan, _rehearse(plan))
    popularity = cache(partial(_popularity, plan))
    staging = Staging(scenario.memory.staging)
    sizes = ExpertSizes(plan.cost.expert_bytes, scenario.cache.write_back)
    initial, caches = scenario.cache.initial_layers, []
    for number, capacity in enumerate(plan.slots):
        context = CacheContext(
            capacity=capacity,
            universe=_universe(plan, number),
            admission=scenario.cache.admission,
            rng=stream(scenario.seed, "eviction", number),
            popularity=popularity,
            future=None if futures is None else futures[number],
        )
        try:
            made = policy(context, options) if number >= initial else Resident(context)
        except UsageError as error:
            raise ScenarioError.at(scenario, "cache.policy", str(error)) from None
        if plan.observer is not None:
            made = plan.observer.eviction(number, made)
        caches.append(ExpertCache(made, machine, ledger, staging, sizes))
    return [caches[_cache_of(scenario, layer)] for layer in range(trace.num_layers)]


def _universe(plan: Plan, number: int) -> range:
    experts, layers = plan.trace.num_experts, range(plan.trace.num_layers)
    own = [layer for layer in layers if _cache_of(plan.scenario, layer) == number]
    return range(own[0] * experts, (own[-1] + 1) * experts)


def _popularity(plan: Plan, profile: str | None) -> dict[Key, int]:
    from moesim.curve import trace_popularity

    if profile is None:
        return trace_popularity(plan.trace)
    if not os.path.isdir(plan.scenario.path(profile)):
        raise UsageError(f"there is no trace folder {profile!r} to learn from")
    learnt = load_trace(plan.scenario.path(profile))
    if (learnt.num_layers, learnt.num_experts) != (plan.trace.num_layers, plan.trace.num_experts):
        raise UsageError(f"the profile {profile!r} is of another shape than the trace")
    return trace_popularity(learnt)


def _rehearse(plan: Plan) -> list[list[Key]]:
    """The layer events of a workload that arrives at once: they do not depend on any time, so a
    run under another eviction policy shows them all."""
    server, _ = serve(replace(plan, observer=None), eviction="lru")
    return server.ledger.layer_events()


def group_by_cache(plan: Plan, unions: Sequence[list[Key]]) -> list[list[list[Key]]]:
    """Layer events in order, for each cache; sequential replay asks key by key."""
    if plan.scenario.replay == "sequential":
        unions = [[key] for union in unions for key in union]
    groups: list[list[list[Key]]] = [[] for _ in plan.slots]
    for union in unions:
        if union:
            layer = union[0] // plan.trace.num_experts
            groups[_cache_of(plan.scenario, layer)].append(union)
    return groups


def serve(
    plan: Plan, *, eviction: str | None = None, free_link: bool = False
) -> tuple[Server, int]:
    """Run a plan's server on the simulated machine to its end; answers when that was."""
    import simpy

    from moesim.machine.sim import SimMachine

    env = simpy.Environment()
    machine = SimMachine(env, SimPrices(plan.cost, free_link=free_link))
    server = build_server(plan, machine, eviction=eviction)
    env.run(until=env.process(server.run()))  # a copy still in flight then moves no clock
    return server, machine.now_ns
