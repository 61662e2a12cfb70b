"""The plan of a scenario, and the server that is built from it.

A `Plan` is a scenario with all parts loaded and checked; it stays the same in all simulations of
the scenario. `build_server` builds a server from it for any machine. `serve` runs one on the
simulated machine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from moesim.config.units import format_bytes, format_duration_ns
from moesim.cost.choice import cost_of, cpu_cost_of
from moesim.cost.estimate import CostEstimate
from moesim.cost.prices import SimPrices
from moesim.cost.roofline import CostModel
from moesim.cost.slowest import slowest_figures
from moesim.engines.engine import IDEAL, Engine
from moesim.errors import BudgetError, PolicyViolation, ScenarioError, UsageError
from moesim.hardware.topology import CPU, GPU
from moesim.machine.work import FAR
from moesim.model.hf_config import load_config
from moesim.policies import Key, find, parse_options
from moesim.policies.base import Input
from moesim.policies.event_lists import EventLists
from moesim.policies.eviction import CacheContext, Resident
from moesim.policies.guard import inputs_of, make_batching, make_eviction, make_prefetch
from moesim.policies.placement import Copy
from moesim.policies.prefetch import Lessons
from moesim.progress import Progress, counter
from moesim.scenario import Scenario
from moesim.scenario.policies import FAMILIES
from moesim.serving.budget import (
    STATE_BYTES,
    Budget,
    OnGpu,
    most_sequences,
    plan_budget,
    prefetch_buffers,
    split_bytes,
)
from moesim.serving.experts.host_budget import plan_host
from moesim.serving.experts.host_memory import HostMemory
from moesim.serving.experts.placing import Placing
from moesim.serving.experts.prefetch_buffers import PrefetchBuffers
from moesim.serving.experts.residency import ExpertCache
from moesim.serving.experts.slots import ExpertSizes, Staging
from moesim.serving.issue import Execution, HostTimes
from moesim.serving.knowledge import KNOWLEDGE
from moesim.serving.kv import BlockPool
from moesim.serving.layers import LayerPlan
from moesim.serving.ledger import Ledger
from moesim.serving.long_prompts import check_recomputes
from moesim.serving.prefix import PrefixPool
from moesim.serving.request import Request, all_at_once
from moesim.serving.routing import RoutingSource, TraceRouting
from moesim.serving.run_log import Observer
from moesim.serving.scheduler import Scheduler
from moesim.serving.server import Server
from moesim.simulate.backend import choose_back_end
from moesim.simulate.checks import check_parts, policy_of, prefetch_context, profile_trace
from moesim.simulate.lessons import lessons_of
from moesim.simulate.places import (
    Places,
    build_placement,
    layer_lanes,
    residents_of,
    topology_for,
)
from moesim.simulate.split import SPLIT, slots_by_layer
from moesim.streams import stream
from moesim.trace import Trace, load_trace
from moesim.trace.health import check_static
from moesim.workload.workload import Workload, build_workload

if TYPE_CHECKING:
    from moesim.machine.protocol import Machine
    from moesim.policies.batching.base import Batching
    from moesim.policies.eviction.base import Eviction
    from moesim.serving.standing import Watch


_UNKNOWN_BYTES: Final = 1 << 44  # 16 TiB: host memory whose size is not known limits nothing


@dataclass(frozen=True, slots=True)
class Plan:
    """A scenario with all parts loaded and checked; the same in all its simulations."""

    scenario: Scenario
    trace: Trace
    cost: CostModel
    budget: Budget
    slots: tuple[int, ...]
    """Slots of each cache, by cache number.

    There is one cache per layer; or, with scope `global`, one for each initial layer and one for
    all other layers.
    """
    places: Places
    capacities: tuple[int, ...] = ()
    """Bytes of each cache, by cache number, where experts have unequal sizes; otherwise empty.

    `slots` then says how many experts of the cache's mean size these bytes hold.
    """
    hindsight: frozenset[str] = frozenset()
    """Families whose policy learnt on the replayed trace before the run."""
    engine: Engine = IDEAL
    interface: str | None = None
    """Which of the engine's kernels run on the GPU; None without any."""
    as_named: bool = False
    """Whether trace and engine are what the scenario names, so that its fingerprint tells them."""
    workload: Workload | None = field(default=None, compare=False)
    """The requests of the scenario, drawn when it was checked; None: each run draws them."""

    def __repr__(self) -> str:
        shape, hardware = self.cost.shape.name, self.cost.hardware.name
        return (
            f"<Plan of {self.scenario.name}: {self.trace!r} as {shape} on {hardware}, "
            f"{sum(self.slots)} slots>"
        )

    @property
    def sizes(self) -> tuple[int, ...] | None:
        """The bytes of each expert by key; None where all are equal."""
        return None if self.cost.shape.equal_sizes else self.cost.shape.sizes()

    @property
    def unit_bytes(self) -> int:
        """The bytes of one unit of a cache's capacity: an expert, or a byte if sizes differ."""
        return 1 if self.capacities else self.cost.expert_bytes

    def capacity(self, number: int) -> int:
        """Return the capacity of a cache as its policy counts it: in slots, or in bytes."""
        return self.capacities[number] if self.capacities else self.slots[number]

    @property
    def buffers(self) -> int:
        """The number of expert-sized buffers in GPU memory: slots, staging and for prefetch."""
        others = self.scenario.memory.staging + prefetch_buffers(self.scenario)
        return sum(self.slots) + others

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
        """The order of the model's layers in a step, with the trace layer of each MoE layer."""
        shape = self.cost.shape
        return LayerPlan.of(shape.moe_layers, shape.num_layers)

    def execution(self, *, copies_later: bool = False) -> Execution:
        """Return how decided work is executed; `copies_later` is as in `Execution`."""
        nbytes, engine, sizes = self.cost.expert_bytes, self.engine, self.sizes
        return Execution(
            (lambda _key: nbytes) if sizes is None else sizes.__getitem__,
            self.places.topology,
            state_bytes=self.cost.shape.hidden * STATE_BYTES,
            host=HostTimes(engine.launch_ns, engine.copy_ns, engine.event_ns),
            lanes=self.places.lanes,
            copies_later=copies_later,
            sorts_on_device=engine.sorting == "device",
            kind_of=self.places.host.is_pinned if self.places.host.mixed else None,
        )

    def prices(self, *, free_link: bool = False) -> SimPrices:
        """Return the prices of the simulated machine; `free_link` makes copies take no time."""
        host, sizes = self.places.host, self.sizes
        return SimPrices(
            self.cost,
            free_link=free_link,
            topology=self.places.topology,
            bytes_of=None if sizes is None else sizes.__getitem__,
            is_pinned=host.is_pinned if host.mixed else None,
        )

    def with_all_slots(self) -> Plan:
        """Return the plan with a slot for every expert, even if they do not fit the memory.

        Experts then come and go, also where the placement fixes which are in GPU memory.
        """
        sizes = self.sizes
        every = self.trace.num_layers * self.trace.num_experts if sizes is None else sum(sizes)
        slots, capacities = _capacities(self.scenario, self.trace, every, sizes, set())
        places = replace(self.places, residents=None)
        return replace(self, slots=slots, capacities=capacities, places=places)


def prepare(
    scenario: Scenario, trace: Trace | None = None, *, engine: Engine | None = None
) -> Plan:
    """Return the plan of a scenario, with all parts loaded and checked; simulate nothing.

    `trace` saves reading the scenario's trace again. `engine` replaces the scenario's.

    Raises:
        ScenarioError: with all mistakes of the scenario.
        TraceError: the trace cannot be used.
        BudgetError: the model does not fit the memory.
    """
    as_named = trace is None and engine is None
    trace = trace or load_trace(scenario.trace_path)
    parts = check_parts(scenario, trace)
    # With a static router, the experts of future tokens are read from a request's first row. If the
    # rows differed, policies would receive wrong data without any error. Loading a trace reads no
    # values, so the rows are compared here, and only for a static router.
    check_static(trace)
    kv_tokens = [request.max_kv_tokens for request in parts.requests]
    hindsight: set[str] = set()
    learnt = partial(_learnt, scenario, trace, "placement", hindsight)
    shape, hardware = parts.shape, parts.hardware
    placement = build_placement(scenario, shape, learnt, has_gpu=hardware.has_gpu)
    topology = topology_for(scenario, hardware)
    lanes = layer_lanes(placement, shape, topology)
    on_gpu = OnGpu.of(shape, lanes)
    # A machine without a GPU keeps in host memory what a budget divides.
    memory_bytes = hardware.vram_bytes
    if not hardware.has_gpu:
        memory_bytes = hardware.host_memory_bytes or _UNKNOWN_BYTES
    budget = plan_budget(scenario, shape, memory_bytes, kv_tokens, on_gpu)
    check_recomputes(scenario, parts.requests, budget.kv_blocks)
    kv_tokens_held = budget.kv_blocks * scenario.memory.kv_block_tokens
    kv_bytes_on_host = kv_tokens_held * (shape.kv_bytes_per_token - on_gpu.kv_bytes_per_token)
    states = shape.state_bytes_per_sequence - on_gpu.state_bytes_per_sequence
    kv_bytes_on_host += states * most_sequences(scenario, kv_tokens)
    keys = trace.num_layers * trace.num_experts
    sizes = None if shape.equal_sizes else shape.sizes()
    # The largest experts must fit, because a placement may choose any.
    fitting = budget.slots if sizes is None else budget.slots_bytes // shape.expert_bytes
    residents = residents_of(scenario, placement, fitting, keys)
    # Experts of initial layers have a slot each, so they never leave.
    initial = range(scenario.cache.initial_layers * trace.num_experts)
    host = plan_host(
        scenario,
        shape,
        hardware,
        layers_on_cpu=[layer for layer, lane in enumerate(lanes) if lane != GPU],
        kv_bytes_on_host=kv_bytes_on_host,
        always_on_gpu=frozenset(initial if residents is None else residents),
    )
    topology = topology_for(scenario, hardware, disk=host.needs_disk)
    cost = cost_of(
        hardware,
        shape,
        pinned=host.num_pinned > 0,
        engine=engine or parts.engine,
        interface=parts.interface,
    )
    elsewhere = CPU in topology.names
    places = Places(topology, host, lanes, residents, elsewhere=elsewhere, fitting=fitting)
    if residents is None:
        total = budget.slots if sizes is None else budget.slots_bytes
        slots, capacities = _capacities(scenario, trace, total, sizes, hindsight)
    else:
        slots = _counts_of_caches(scenario, trace, residents)
        nbytes = len(residents) * cost.expert_bytes
        capacities = ()
        if sizes is not None:
            capacities = _counts_of_caches(scenario, trace, residents, sizes)
            nbytes = sum(capacities)
        budget = replace(budget, slots=len(residents), slots_bytes=nbytes)
    return Plan(
        scenario,
        trace,
        cost,
        budget,
        slots,
        places,
        capacities,
        frozenset(hindsight),
        engine=engine or parts.engine,
        interface=parts.interface,
        as_named=as_named,
        workload=Workload(scenario, trace, parts.requests),
    )


def _counts_of_caches(
    scenario: Scenario, trace: Trace, residents: Sequence[Key], sizes: Sequence[int] | None = None
) -> tuple[int, ...]:
    """Return the residents of each cache: their number, or with `sizes` their bytes."""
    counts: Counter[int] = Counter()
    for key in residents:
        counts[_cache_of(scenario, key // trace.num_experts)] += 1 if sizes is None else sizes[key]
    numbers = {_cache_of(scenario, layer) for layer in range(trace.num_layers)}
    return tuple([counts[number] for number in sorted(numbers)])


def _capacities(
    scenario: Scenario,
    trace: Trace,
    total: int,
    sizes: Sequence[int] | None,
    hindsight: set[str],
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the slots of each cache, and where `sizes` are unequal also its bytes.

    `total` is in slots, or where sizes are unequal in bytes. `hindsight` gets `split` if the slots
    of the layers were learnt from the replayed trace.
    """
    if sizes is None:
        return _slots_of_caches(scenario, trace, total, hindsight), ()
    experts, layers = trace.num_experts, range(trace.num_layers)
    by_layer = [sizes[layer * experts : (layer + 1) * experts] for layer in layers]
    capacities = _bytes_of_caches(scenario, by_layer, total)
    whole = [0] * len(capacities)
    for layer in layers:
        whole[_cache_of(scenario, layer)] += sum(by_layer[layer])
    keys = Counter(_cache_of(scenario, layer) for layer in layers)
    slots = [
        nbytes * keys[number] * experts // whole[number] for number, nbytes in enumerate(capacities)
    ]
    return tuple(slots), capacities


def _bytes_of_caches(
    scenario: Scenario, by_layer: Sequence[Sequence[int]], total: int
) -> tuple[int, ...]:
    """Divide `total` bytes among the caches: initial layers get the bytes of all their experts.

    Raises:
        BudgetError: the initial layers alone need more.
    """
    first = scenario.cache.initial_layers
    initial, others = [sum(layer) for layer in by_layer[:first]], by_layer[first:]
    remaining = total - sum(initial)
    if remaining < 0:
        raise BudgetError(
            f"{scenario.mark('cache.initial_layers')}: all experts of {first} initial layers take "
            f"{format_bytes(sum(initial))}; the slots have {format_bytes(total)}; set "
            "cache.initial_layers to fewer, or raise cache.slots"
        )
    if not others:
        return tuple(initial)
    if scenario.cache.scope == "per_layer":
        return (*initial, *split_bytes(remaining, others))
    return (*initial, min(remaining, sum(map(sum, others))))


def _slots_of_caches(
    scenario: Scenario, trace: Trace, total: int, hindsight: set[str]
) -> tuple[int, ...]:
    """Divide `total` slots among the caches: initial layers get a slot for each expert.

    Raises:
        BudgetError: the initial layers alone need more slots.
    """
    first, experts = scenario.cache.initial_layers, trace.num_experts
    remaining, others = total - first * experts, trace.num_layers - first
    if remaining < 0:
        raise BudgetError(
            f"{scenario.mark('cache.initial_layers')}: all experts of {first} initial layers take "
            f"{first * experts} slots; there are {total}; set cache.initial_layers to at most "
            f"{total // experts}, or raise cache.slots"
        )
    rest: Sequence[int]
    if not others:
        rest = ()
    elif scenario.cache.scope == "per_layer":
        split = slots_by_layer(scenario, trace, remaining)
        rest = split.slots
        if split.hindsight:
            hindsight.add(SPLIT)
    else:
        rest = [min(remaining, others * experts)]
    return (*[experts] * first, *rest)


def _cache_of(scenario: Scenario, layer: int) -> int:
    """Return the number of the cache that holds the experts of a trace layer."""
    cache = scenario.cache
    return layer if cache.scope == "per_layer" else min(layer, cache.initial_layers)


def build_server(
    plan: Plan,
    machine: Machine,
    *,
    eviction: str | None = None,
    evictions: Sequence[Eviction] | None = None,
    batching: Batching | None = None,
    routing: RoutingSource | None = None,
    what: str = "run",
    progress: Progress | None = None,
    at_once: bool = False,
    observers: Sequence[Observer] = (),
    free_link: bool = False,
) -> Server:
    """Return a new server of a plan, on any machine.

    `eviction` names another eviction policy (for rehearsals). `evictions`, by cache number, and
    `batching` are policies that replace the scenario's own; each serves one run. `routing` replaces
    the trace. `at_once` moves all arrivals to zero. With `free_link`, placement policies know that
    copies take no time. `progress` receives the progress of the run under the name `what`,
    `observers` its records.

    Raises:
        ScenarioError: a policy refuses its options.
    """
    scenario, trace = plan.scenario, plan.trace
    drawn = plan.workload
    if drawn is not None and drawn.fits(scenario, trace):
        requests = drawn.fresh()
    else:
        requests = build_workload(scenario, trace)
    if at_once:
        for request in requests:
            request.arrival_ns = 0
    routing, knowledge = routing or TraceRouting(trace), KNOWLEDGE[trace.meta.router]
    ledger = Ledger(
        plan.layers,
        trace.num_experts,
        plan.places.topology,
        first_step=scenario.timeline.first_step,
        steps=scenario.timeline.steps,
        per_step=scenario.metrics.window is not None,
    )
    prefetch, prefetch_options = policy_of(scenario, "prefetch")
    scheduler = Scheduler(
        batching or make_batching(*policy_of(scenario, "batching")),
        _pool(plan, requests),
        token_budget=scenario.batching.token_budget,
        max_sequences=scenario.batching.max_sequences,
        whole_prompts=not scenario.batching.chunked_prefill,
        experts=routing.experts if knowledge.queued else None,
        wants=routing.wants if knowledge.future_tokens else None,
        observers=observers,
    )
    ledger.hindsight |= plan.hindsight
    if evictions is None:
        rehearse = partial(_rehearse, plan, what, progress)
        evictions = _evictions(plan, ledger, requests, eviction, rehearse)
    caches = _caches(plan, machine, ledger, evictions, free_link=free_link)
    fixed = all(isinstance(cache.policy, Resident) for cache in caches)
    return Server(
        machine,
        requests,
        scheduler=scheduler,
        caches=caches,
        prefetch=make_prefetch(
            prefetch,
            prefetch_options,
            prefetch_context(
                scenario,
                trace,
                partial(_lessons, scenario, trace),
                _estimate(plan, caches[0].host, free_link=free_link),
            ),
        ),
        routing=routing,
        layers=plan.layers,
        ledger=ledger,
        execution=plan.execution(copies_later=plan.places.elsewhere and not fixed),
        knowledge=knowledge,
        sequential=scenario.replay == "sequential",
        progress=counter(progress, what),
        observers=observers,
    )


def _pool(plan: Plan, requests: Sequence[Request]) -> BlockPool:
    """Return the KV blocks of a plan, with a prefix cache if the scenario wants one."""
    memory, blocks = plan.scenario.memory, plan.budget.kv_blocks
    if not memory.prefix_cache:
        return BlockPool(blocks, memory.kv_block_tokens)
    return PrefixPool(blocks, memory.kv_block_tokens, requests[0].unit_tokens)


def _caches(
    plan: Plan,
    machine: Machine,
    ledger: Ledger,
    evictions: Sequence[Eviction],
    *,
    free_link: bool,
) -> list[ExpertCache]:
    """Return the cache of each trace layer; layers that share a cache have the same object."""
    scenario = plan.scenario
    host = plan.places.host.memory(plan.cost.shape.sizes())
    # `copy` answers nothing. Others are asked even if they name no lanes, so that a wrong answer is
    # refused and not ignored.
    asked = policy_of(scenario, "placement")[0] is not Copy
    place = _placing(plan, host, free_link=free_link) if asked else None
    staging = Staging(scenario.memory.staging)  # all caches share the staging buffers
    ahead = prefetch_buffers(scenario)
    buffers = PrefetchBuffers(staging.slots(ahead)) if ahead else None  # shared too
    sizes = ExpertSizes(plan.cost.expert_bytes, scenario.cache.write_back, plan.sizes)
    prefetches = policy_of(scenario, "prefetch")[0].active
    caches = [
        ExpertCache(
            policy,
            machine,
            ledger,
            staging,
            sizes,
            place=place,
            host=host,
            buffers=buffers,
            cancels=prefetches and scenario.prefetch.cancel,
        )
        for policy in evictions
    ]
    return [caches[_cache_of(scenario, layer)] for layer in range(plan.trace.num_layers)]


def _evictions(
    plan: Plan,
    ledger: Ledger,
    requests: Sequence[Request],
    eviction: str | None,
    rehearse: Callable[[], EventLists],
) -> list[Eviction]:
    """Return the eviction policy of each cache, by cache number."""
    scenario, trace = plan.scenario, plan.trace
    policy, options = policy_of(scenario, "cache")
    if eviction is not None:
        policy = find("eviction", eviction)
        options = parse_options(policy, {})
    # If requests arrive over time, the steps depend on how fast the run is, so no rehearsal can
    # show the layer events. The policy then gets no future (`min` refuses to be built).
    futures: list[EventLists] | None = None
    moves = plan.places.residents is None
    if policy.clairvoyant and moves and all_at_once(requests):
        futures = group_by_cache(plan, rehearse())
    # Counting a trace is slow, so it is done once.
    popularity = cache(partial(_learnt, scenario, trace, "cache", ledger.hindsight))
    policies = []
    unequal = plan.sizes
    for number in range(len(plan.slots)):
        context = CacheContext(
            capacity=plan.capacity(number),
            universe=universe_of(plan, number),
            admission=scenario.cache.admission,
            rng=stream(scenario.seed, "eviction", number),
            popularity=popularity,
            future=None if futures is None else futures[number],
            sizes=unequal,
            experts_per_layer=trace.num_experts,
            top_k=trace.top_k,
        )
        try:
            policies.append(_eviction(plan, number, policy, context, options))
        except UsageError as error:
            raise ScenarioError.at(scenario, "cache.policy", str(error)) from None
    return policies


def _eviction(
    plan: Plan, number: int, policy: type[Eviction], context: CacheContext, options: Any
) -> Eviction:
    """Return the eviction policy of cache `number`: the scenario's, unless experts never leave."""
    residents = plan.places.residents
    if residents is not None:
        universe = set(context.universe)
        return Resident(context, [key for key in residents if key in universe])
    if number < plan.scenario.cache.initial_layers:
        return Resident(context)
    return make_eviction(policy, context, options)


def _placing(plan: Plan, host: HostMemory | None, *, free_link: bool) -> Placing:
    """Return the plan's placement policy, ready to be asked."""
    scenario, cost, places = plan.scenario, plan.cost, plan.places
    learnt = partial(_learnt, scenario, plan.trace, "placement", set())
    placement = build_placement(scenario, cost.shape, learnt, has_gpu=cost.hardware.has_gpu)
    keys = plan.trace.num_layers * plan.trace.num_experts
    # A policy expects this call first, and the answer must be that of the plan. So it gets the
    # slots that the plan asked with, not those that were then given to the residents.
    residents_of(scenario, placement, places.fitting, keys)
    estimate = _estimate(plan, host, free_link=free_link)
    lanes = [lane.name for lane in places.topology.lanes if lane.computes]
    return Placing(placement, estimate, lanes, None if host is None else host.place)


def _estimate(plan: Plan, host: HostMemory | None, *, free_link: bool) -> CostEstimate:
    """Return what policies may know of durations. `host` tells which experts are on disk."""
    cost, places, sizes = plan.cost, plan.places, plan.sizes
    return CostEstimate(
        cost,
        cpu_cost_of(cost) if places.elsewhere else None,
        bytes_of=None if sizes is None else sizes.__getitem__,
        unread_of=None if host is None else host.unread,
        is_pinned=places.host.is_pinned if places.host.mixed else None,
        free_link=free_link,
    )


def residents_in(plan: Plan, slots: int) -> int:
    """Return how many experts the plan's placement would keep in GPU memory with `slots` slots.

    As many as now if it refuses them, or lets experts come and go.
    """
    learnt = partial(_learnt, plan.scenario, plan.trace, "placement", set())
    keys = plan.trace.num_layers * plan.trace.num_experts
    try:
        placement = build_placement(
            plan.scenario, plan.cost.shape, learnt, has_gpu=plan.cost.hardware.has_gpu
        )
        residents = residents_of(plan.scenario, placement, slots, keys)
    except ScenarioError:
        residents = plan.places.residents
    return sum(plan.slots) if residents is None else len(residents)


def universe_of(plan: Plan, number: int) -> range:
    """Return the keys of all experts that cache `number` may hold."""
    experts, layers = plan.trace.num_experts, range(plan.trace.num_layers)
    own = [layer for layer in layers if _cache_of(plan.scenario, layer) == number]
    return range(own[0] * experts, (own[-1] + 1) * experts)


def _learnt(
    scenario: Scenario, trace: Trace, section: str, hindsight: set[str], profile: Path | None
) -> Mapping[Key, int]:
    """Return the popularity of experts in a profile, read-only because all caches share it.

    `hindsight` gets the family of the section's policy if the profile counts the same as the
    replayed trace.

    Raises:
        PolicyViolation: the policy does not name the profile among its inputs.
    """
    from moesim.simulate.curve import part_popularity, trace_popularity

    policy, options = policy_of(scenario, section)
    # A profile that the policy does not declare would be missing in the run's fingerprint.
    named = [*inputs_of(policy, options), Input(None, trace=True)]
    wanted = None if profile is None else Path(profile)
    given = next((each for each in named if each.path == wanted), None)
    if given is None:
        raise PolicyViolation(
            policy.name,
            "popularity",
            f"asks for counts of {str(profile)!r}, which is none of its inputs; return it from "
            "`inputs`, as an Input with `trace=True`",
        )
    learnt = profile_trace(scenario, trace, section, given)
    if given.part is not None:  # of requests that the run does not serve
        return MappingProxyType(part_popularity(learnt, given.part))
    counts = trace_popularity(learnt)
    # Counts are compared, not paths: a copy of the replayed trace is hindsight too.
    if profile is None or counts == trace_popularity(trace):
        hindsight.add(FAMILIES[section])
    return MappingProxyType(counts)


def _lessons(scenario: Scenario, trace: Trace, given: Input) -> Lessons:
    """Return the rows of an input of the prefetch policy.

    Raises:
        PolicyViolation: the policy does not name the input, or no part of it.
    """
    policy, options = policy_of(scenario, "prefetch")
    if given not in inputs_of(policy, options) or given.part is None:
        raise PolicyViolation(
            policy.name,
            "lessons",
            f"asks for the rows of {given!r:.200}, which is none of its inputs; return it from "
            "`inputs`, as an Input with `trace=True` and a `part`",
        )
    return lessons_of(profile_trace(scenario, trace, "prefetch", given), given.part)


def _rehearse(plan: Plan, what: str, progress: Progress | None) -> EventLists:
    """Return all layer events, in order, of a workload that arrives at once.

    They come from a run with LRU: with all requests present from the start, layer events do not
    depend on times, and so not on the eviction policy.
    """
    server, _ = serve(plan, eviction="lru", what=f"{what}: rehearsal", progress=progress)
    return server.ledger.layer_events()


def group_by_cache(plan: Plan, unions: Sequence[Sequence[Key]]) -> list[EventLists]:
    """Return the layer events of each cache that want any expert, in order, by cache number."""
    unions = EventLists.of(unions)
    if plan.scenario.replay == "sequential":  # it looks up key by key, so each is an event
        unions = unions.singles()
    layers, experts = range(plan.trace.num_layers), plan.trace.num_experts
    numbers = [_cache_of(plan.scenario, layer) for layer in layers for _ in range(experts)]
    return unions.filled().grouped(numbers, len(plan.slots))


def serve(
    plan: Plan,
    *,
    eviction: str | None = None,
    evictions: Sequence[Eviction] | None = None,
    batching: Batching | None = None,
    free_link: bool = False,
    at_once: bool = False,
    what: str = "run",
    progress: Progress | None = None,
    observers: Sequence[Observer] = (),
    routing: RoutingSource | None = None,
    watch: Watch | None = None,
) -> tuple[Server, int]:
    """Run a plan's server on the simulated machine; return it and the time of its end in ns.

    Arguments are those of `build_server`; `free_link` makes copies take no time. `watch` gets the
    server before it runs, and may read it whenever `progress` is called.
    """
    import simpy

    from moesim.machine.sim import SimMachine, TimeOverflow

    env = simpy.Environment()
    machine = SimMachine(env, plan.prices(free_link=free_link), plan.places.topology)
    server = build_server(
        plan,
        machine,
        eviction=eviction,
        evictions=evictions,
        batching=batching,
        routing=routing,
        at_once=at_once,
        free_link=free_link,
        what=what,
        progress=progress,
        observers=observers,
    )
    choose_back_end(
        plan,
        server,
        free_link=free_link,
        main=eviction is None and evictions is None,
        memo=routing.memo if isinstance(routing, TraceRouting) else None,
    )
    if watch is not None:
        watch(server)
    # Until the last token, not until the last event: a copy in flight must not prolong the run.
    try:
        env.run(until=env.process(server.run()))
    except TimeOverflow:
        raise _too_slow(plan, server) from None
    return server, machine.now_ns


def unserved(plan: Plan, evictions: Sequence[Eviction]) -> Server:
    """Return a server with these evictions that has served nothing, with its back end."""
    import simpy

    from moesim.machine.sim import SimMachine

    machine = SimMachine(simpy.Environment(), plan.prices(), plan.places.topology)
    server = build_server(plan, machine, evictions=evictions, at_once=True)
    choose_back_end(plan, server, free_link=False, main=False)
    return server


def _too_slow(plan: Plan, server: Server) -> ScenarioError:
    """Return the error about the key whose figure makes the simulated time exceed all limits."""
    last_ns = max(request.arrival_ns for request in server.requests)
    last_ns = max(last_ns, server.arrivals.due_ns or 0)  # a client may think for too long
    scenario = plan.scenario
    if last_ns > FAR // 2:
        key, reason = "workload.arrivals", f"the last arrives after {format_duration_ns(last_ns)}"
    else:
        figures = slowest_figures(plan.cost, plan.places.topology.names)
        key, reason = figures[0][0], "; ".join(text for _, text in figures)
    return ScenarioError.at(scenario, key, f"the simulated time exceeds 146 years: {reason}")
