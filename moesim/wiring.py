"""From a scenario to a server: everything loaded, checked and put together, once.

A `Plan` is what stays the same in all simulations of a scenario; `build_server` makes its server
for any machine, `serve` runs it on the simulated one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from moesim.checks import check_parts, policy_of, profile_trace
from moesim.errors import BudgetError, ScenarioError, UsageError
from moesim.hardware.cost import CostModel
from moesim.hardware.operations import cost_of
from moesim.hardware.ops import BatchShape, Op
from moesim.policies import Key, find
from moesim.policies.eviction import CacheContext, Resident
from moesim.policies.guard import make_batching, make_eviction, make_prefetch
from moesim.progress import Progress, counter
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

    def __repr__(self) -> str:
        shape, hardware = self.cost.shape.name, self.cost.hardware.name
        return (
            f"<Plan of {self.scenario.name}: {self.trace!r} as {shape} on {hardware}, "
            f"{sum(self.slots)} slots>"
        )

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
            return dict(json.loads(self.scenario.path(choice).read_text(encoding="utf-8")))
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
    parts = check_parts(scenario, trace)
    # What policies are told of a static router's tokens to come is read from the first row of a
    # request: were rows to differ, it would be false and nobody would notice. Opening a trace reads
    # no values, so all are compared here, once, and for such traces only.
    check_static(trace)
    kv_tokens = [request.max_kv_tokens for request in parts.requests]
    budget = plan_budget(scenario, parts.shape, parts.hardware.vram_bytes, kv_tokens)
    cost = cost_of(parts.hardware, parts.shape, pinned=scenario.hardware.pinned)
    return Plan(scenario, trace, cost, budget, _slots_of_caches(scenario, trace, budget.slots))


def _slots_of_caches(scenario: Scenario, trace: Trace, total: int) -> tuple[int, ...]:
    """The initial layers have a slot for each expert, the others what is left."""
    first, experts = scenario.cache.initial_layers, trace.num_experts
    left, others = total - first * experts, trace.num_layers - first
    if left < 0:
        raise BudgetError(
            f"{scenario.mark('cache.initial_layers')}: all experts of {first} initial layers take "
            f"{first * experts} slots; there are {total}; write cache.initial_layers: "
            f"{total // experts}, or raise cache.slots"
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


def build_server(
    plan: Plan,
    machine: Machine,
    *,
    eviction: str | None = None,
    routing: RoutingSource | None = None,
    what: str = "run",
    progress: Progress | None = None,
    at_once: bool = False,
) -> Server:
    """Return the server of a plan, on any machine.

    `eviction` overrides the policy (for rehearsals), `routing` the trace; `at_once` moves all
    arrivals to zero; `progress` is told of the run under the name `what`.
    """
    scenario, trace = plan.scenario, plan.trace
    requests = build_workload(scenario, trace)
    if at_once:
        for request in requests:
            request.arrival_ns = 0
    routing, knowledge = routing or TraceRouting(trace), KNOWLEDGE[trace.meta.router]
    ledger = Ledger(
        plan.layers,
        trace.num_experts,
        first_step=scenario.timeline.first_step,
        steps=scenario.timeline.steps,
    )
    batching, batching_options = policy_of(scenario, "batching")
    prefetch, prefetch_options = policy_of(scenario, "prefetch")
    batching_policy = make_batching(batching, batching_options)
    scheduler = Scheduler(
        batching_policy if plan.observer is None else plan.observer.batching(batching_policy),
        BlockPool(plan.budget.kv_blocks, scenario.memory.kv_block_tokens),
        token_budget=scenario.batching.token_budget,
        max_sequences=scenario.batching.max_sequences,
        experts=routing.experts if knowledge.queued else None,
        wants=routing.wants if knowledge.for_ever else None,
    )
    return Server(
        machine,
        requests,
        scheduler=scheduler,
        caches=_caches(
            plan, machine, ledger, requests, eviction, partial(_rehearse, plan, what, progress)
        ),
        prefetch=make_prefetch(prefetch, prefetch_options),
        routing=routing,
        layers=plan.layers,
        ledger=ledger,
        knowledge=knowledge,
        sequential=scenario.replay == "sequential",
        progress=counter(progress, what),
    )


def _caches(
    plan: Plan,
    machine: Machine,
    ledger: Ledger,
    requests: Sequence[Request],
    eviction: str | None,
    rehearse: Callable[[], list[list[Key]]],
) -> list[ExpertCache]:
    scenario, trace = plan.scenario, plan.trace
    policy, options = policy_of(scenario, "cache")
    if eviction is not None:
        policy, options = find("eviction", eviction), None
    futures: list[list[list[Key]]] | None = None
    if policy.clairvoyant and all(request.arrival_ns == 0 for request in requests):
        futures = group_by_cache(plan, rehearse())
    popularity = cache(partial(_learnt, plan, ledger))
    staging = Staging(scenario.memory.staging)
    sizes = ExpertSizes(plan.cost.expert_bytes, scenario.cache.write_back)
    initial, caches = scenario.cache.initial_layers, []
    for number, capacity in enumerate(plan.slots):
        context = CacheContext(
            capacity=capacity,
            universe=universe_of(plan, number),
            admission=scenario.cache.admission,
            rng=stream(scenario.seed, "eviction", number),
            popularity=popularity,
            future=None if futures is None else futures[number],
        )
        try:
            made = (
                make_eviction(policy, context, options) if number >= initial else Resident(context)
            )
        except UsageError as error:
            raise ScenarioError.at(scenario, "cache.policy", str(error)) from None
        if plan.observer is not None:
            made = plan.observer.eviction(number, made)
        caches.append(ExpertCache(made, machine, ledger, staging, sizes))
    return [caches[_cache_of(scenario, layer)] for layer in range(trace.num_layers)]


def universe_of(plan: Plan, number: int) -> range:
    """The keys of all experts that cache `number` serves."""
    experts, layers = plan.trace.num_experts, range(plan.trace.num_layers)
    own = [layer for layer in layers if _cache_of(plan.scenario, layer) == number]
    return range(own[0] * experts, (own[-1] + 1) * experts)


def _learnt(plan: Plan, ledger: Ledger, profile: Path | None) -> Mapping[Key, int]:
    """Return what an eviction policy learns from a profile, read-only: all caches share it.

    The ledger notes a profile that counts just what the replayed trace does: the policy then knows
    the future, whatever the profile's path.
    """
    counts = _popularity(plan, profile)
    ledger.hindsight |= profile is None or counts == _popularity(plan, None)
    return MappingProxyType(counts)


def _popularity(plan: Plan, profile: Path | None) -> dict[Key, int]:
    from moesim.curve import trace_popularity

    if profile is None:
        return trace_popularity(plan.trace)
    return trace_popularity(profile_trace(plan.scenario, plan.trace, profile))


def _rehearse(plan: Plan, what: str, progress: Progress | None) -> list[list[Key]]:
    """The layer events of a workload that arrives at once: they do not depend on any time, so a
    run under another eviction policy shows them all."""
    plan = replace(plan, observer=None)
    server, _ = serve(plan, eviction="lru", what=f"{what}: rehearsal", progress=progress)
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
    plan: Plan,
    *,
    eviction: str | None = None,
    free_link: bool = False,
    at_once: bool = False,
    what: str = "run",
    progress: Progress | None = None,
) -> tuple[Server, int]:
    """Run a plan's server on the simulated machine to its end; answers when that was."""
    import simpy

    from moesim.machine.sim import SimMachine

    env = simpy.Environment()
    machine = SimMachine(env, SimPrices(plan.cost, free_link=free_link))
    server = build_server(
        plan, machine, eviction=eviction, at_once=at_once, what=what, progress=progress
    )
    env.run(until=env.process(server.run()))  # a copy still in flight then moves no clock
    return server, machine.now_ns
