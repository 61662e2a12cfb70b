"""From a scenario to a result: wires trace, workload, policies, server and machine together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesim.errors import ScenarioError, UsageError
from moesim.hardware.cost import CostModel
from moesim.hardware.ops import BatchShape, Op
from moesim.metrics import (
    bytes_summary,
    cache_summary,
    latency_summary,
    layer_columns,
    ratio,
    request_columns,
    throughput_summary,
    time_summary,
)
from moesim.policies import Key, find, parse_options
from moesim.policies.eviction.base import CacheContext
from moesim.scenario import Scenario, load_scenario
from moesim.serving.budget import Budget, plan_budget, split_slots
from moesim.serving.invariants import check_lanes, check_run
from moesim.serving.kv import BlockPool
from moesim.serving.layers import LayerPlan
from moesim.serving.ledger import Ledger
from moesim.serving.request import Request
from moesim.serving.residency import ExpertCache, ExpertSizes, Staging
from moesim.serving.routing import RoutingSource
from moesim.serving.scheduler import Scheduler
from moesim.serving.server import Server
from moesim.serving.workload import build_workload
from moesim.streams import stream
from moesim.trace import Trace, load_trace

if TYPE_CHECKING:
    import pandas as pd

    from moesim.machine.base import Direction, Machine

MachineMaker = Callable[["SimPrices"], "Machine"]


class SimPrices:
    """What a simulated machine asks: the cost model, with the readback of ids beside it.

    `free_link` makes expert copies cost nothing: the bound of an infinite link.
    """

    def __init__(self, cost: CostModel, *, free_link: bool = False) -> None:
        self.compute_ns: Callable[[Op], int] = cost.compute_ns
        self.experts_ns: Callable[[tuple[int, ...]], int] = cost.experts_ns
        self.layers_ns: Callable[[BatchShape], Sequence[int]] = cost.layers_ns
        self._cost = cost
        self._free_link = free_link

    def copy_ns(self, direction: Direction, nbytes: int) -> int:
        return 0 if self._free_link else self._cost.copy_ns(direction, nbytes)

    def readback_ns(self, nbytes: int) -> int:
        return self._cost.hardware.readback_latency_ns + self._cost.copy_ns("d2h", nbytes)

    def chunk_bytes(self, direction: Direction) -> int | None:
        return self._cost.chunk_bytes(direction)


@dataclass(frozen=True, slots=True)
class Plan:
    """A scenario with everything loaded and checked that stays the same in all its simulations."""

    scenario: Scenario
    trace: Trace
    cost: CostModel
    budget: Budget
    slots: tuple[int, ...]
    """Slots of each cache: one a layer, or a single one."""

    @property
    def layers(self) -> LayerPlan:
        shape = self.cost.shape
        return LayerPlan.of(shape.moe_layers, shape.num_layers)

    def with_slots(self, total: int) -> Plan:
        """The same with another number of expert slots, whatever memory says."""
        return replace(self, slots=_slots_of_caches(self.scenario, self.trace, total))


@dataclass(frozen=True, slots=True)
class Outcome:
    """One simulation that has ended."""

    plan: Plan
    requests: Sequence[Request]
    ledger: Ledger
    caches: Sequence[ExpertCache]
    pool: BlockPool
    now_ns: int


@dataclass(frozen=True, slots=True)
class Result:
    """What a run came to: `summary` (flat, units in the names) and the raw columns behind it.

    `path` is the run directory, or None for a result that was not written.
    """

    scenario: Scenario
    summary: dict[str, Any]
    columns: Mapping[str, Mapping[str, Any]]
    path: Path | None = None

    def table(self, name: str) -> pd.DataFrame:
        """`requests`, `steps`, `layers` or `timeline` as a pandas DataFrame."""
        import pandas as pd

        return pd.DataFrame(dict(self.columns[name]))


def run(
    scenario: Scenario | str | Path | Mapping[str, Any],
    *,
    out: str | Path | None = None,
    force: bool = False,
    draw: bool = False,
    point: Mapping[str, Any] | None = None,
) -> Result:
    """Simulate a scenario: an object, a file, or plain data.

    With `out`, everything is written to that run directory; if it already holds this very run
    (same scenario, trace and code), nothing is done. `draw` adds the plots; `point` are the sweep
    values it stands for.

    Raises `ScenarioError`, `BudgetError`, `TraceError`, `PolicyViolation`, `OutputError`.
    """
    if isinstance(scenario, str | Path):
        scenario = load_scenario(Path(scenario))
    elif not isinstance(scenario, Scenario):
        scenario = Scenario.model_validate(dict(scenario))
    if scenario.sweep:
        raise ScenarioError.at(
            scenario, "sweep", "one run takes no sweep; use `moesim compare` for the whole grid"
        )
    if out is None:
        return result_of(prepare(scenario))
    from moesim.rundir import reuse, write

    known = reuse(scenario, Path(out), force=force, draw=draw)
    if known is not None:
        return known
    plan = prepare(scenario)
    return write(scenario, Path(out), lambda: result_of(plan), force=force, draw=draw, point=point)


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
    for family, section in (
        ("eviction", "cache"),
        ("prefetch", "prefetch"),
        ("batching", "batching"),
        ("placement", "placement"),
    ):
        _policy(scenario, family, section)
    if scenario.prefetch.cancel:
        raise ScenarioError.at(
            scenario, "prefetch.cancel", "cancelling prefetches is not available yet"
        )
    requests = build_workload(scenario, trace)
    kv_tokens = [request.max_kv_tokens for request in requests]
    budget = plan_budget(scenario, shape, hardware.vram_bytes, kv_tokens)
    cost = CostModel(hardware, shape, pinned=scenario.hardware.pinned)
    return Plan(scenario, trace, cost, budget, _slots_of_caches(scenario, trace, budget.slots))


def _slots_of_caches(scenario: Scenario, trace: Trace, total: int) -> tuple[int, ...]:
    if scenario.cache.scope == "per_layer":
        return tuple(split_slots(total, trace.num_layers, trace.num_experts))
    return (min(total, trace.num_layers * trace.num_experts),)


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


def build_server(plan: Plan, machine: Machine, *, eviction: str | None = None) -> Server:
    """The server of a plan, on any machine. `eviction` overrides the policy (for rehearsals)."""
    scenario, trace = plan.scenario, plan.trace
    requests = build_workload(scenario, trace)
    ledger = Ledger(
        plan.layers,
        trace.num_experts,
        first_step=scenario.timeline.first_step,
        steps=scenario.timeline.steps,
    )
    batching, batching_options = _policy(scenario, "batching", "batching")
    prefetch, prefetch_options = _policy(scenario, "prefetch", "prefetch")
    scheduler = Scheduler(
        batching(batching_options),
        BlockPool(plan.budget.kv_blocks, scenario.memory.kv_block_tokens),
        token_budget=scenario.batching.token_budget,
        max_sequences=scenario.batching.max_sequences,
    )
    return Server(
        machine,
        requests,
        scheduler=scheduler,
        caches=_caches(plan, machine, ledger, requests, eviction),
        prefetch=prefetch(prefetch_options),
        routing=RoutingSource(trace),
        layers=plan.layers,
        ledger=ledger,
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
    staging = Staging(scenario.memory.staging)
    sizes = ExpertSizes(plan.cost.expert_bytes, scenario.cache.write_back)
    caches = []
    for number, capacity in enumerate(plan.slots):
        context = CacheContext(
            capacity=capacity,
            universe=_universe(plan, number),
            admission=scenario.cache.admission,
            rng=stream(scenario.seed, "eviction", number),
            popularity=lambda profile: _popularity(plan, profile),
            future=None if futures is None else futures[number],
        )
        try:
            made = policy(context, options)
        except UsageError as error:
            raise ScenarioError.at(scenario, "cache.policy", str(error)) from None
        caches.append(ExpertCache(made, machine, ledger, staging, sizes))
    return caches if scenario.cache.scope == "per_layer" else caches * trace.num_layers


def _universe(plan: Plan, number: int) -> range:
    experts = plan.trace.num_experts
    if plan.scenario.cache.scope == "per_layer":
        return range(number * experts, (number + 1) * experts)
    return range(plan.trace.num_layers * experts)


def _popularity(plan: Plan, profile: str | None) -> dict[Key, int]:
    from moesim.curve import trace_popularity

    if profile is None:
        return trace_popularity(plan.trace)
    learnt = load_trace(plan.scenario.path(profile))
    if (learnt.num_layers, learnt.num_experts) != (plan.trace.num_layers, plan.trace.num_experts):
        raise UsageError(f"the profile {profile!r} is of another shape than the trace")
    return trace_popularity(learnt)


def _rehearse(plan: Plan) -> list[list[Key]]:
    """The layer events of a workload that arrives at once: they do not depend on any time, so a
    run under another eviction policy shows them all."""
    return simulate(plan, eviction="lru").ledger.layer_events()


def group_by_cache(plan: Plan, unions: Sequence[list[Key]]) -> list[list[list[Key]]]:
    """Layer events in order, for each cache; sequential replay asks key by key."""
    if plan.scenario.replay == "sequential":
        unions = [[key] for union in unions for key in union]
    if plan.scenario.cache.scope == "global":
        return [list(unions)]
    groups: list[list[list[Key]]] = [[] for _ in plan.slots]
    for union in unions:
        if union:
            groups[union[0] // plan.trace.num_experts].append(union)
    return groups


def simulate(plan: Plan, *, eviction: str | None = None, free_link: bool = False) -> Outcome:
    """Serve the plan's workload on the simulated machine."""
    import simpy

    from moesim.machine.sim import SimMachine

    env = simpy.Environment()
    machine = SimMachine(env, SimPrices(plan.cost, free_link=free_link))
    server = build_server(plan, machine, eviction=eviction)
    env.run(until=env.process(server.run()))  # a copy still in flight then moves no clock
    outcome = finish(plan, server, machine.now_ns)
    check_lanes(outcome.ledger, outcome.now_ns)
    return outcome


def finish(plan: Plan, server: Server, now_ns: int) -> Outcome:
    """Close the books of a server that has ended, and check that they balance."""
    pool = server.scheduler.pool
    flying = server.ledger.finish(now_ns)
    check_run(server.requests, server.ledger, pool, plan.cost.expert_bytes, flying)
    return Outcome(plan, server.requests, server.ledger, server.caches, pool, now_ns)


def result_of(plan: Plan) -> Result:
    outcome = simulate(plan)
    summary = summarise(outcome)
    from moesim.bounds import BOUND_KEYS, bounds_summary

    bounds = bounds_summary(outcome, summary) if plan.scenario.bounds else {}
    summary.update({key: bounds.get(key) for key in BOUND_KEYS})
    columns = {
        "requests": request_columns(outcome.requests),
        "steps": outcome.ledger.step_columns(),
        "layers": layer_columns(outcome.ledger, plan.layers.model_layers, plan.cost.expert_bytes),
        "timeline": outcome.ledger.timeline_columns(),
    }
    return Result(plan.scenario, summary, columns)


def summarise(outcome: Outcome) -> dict[str, Any]:
    """`summary.json` without the bounds."""
    plan, ledger = outcome.plan, outcome.ledger
    scenario, trace, budget, shape = plan.scenario, plan.trace, plan.budget, plan.cost.shape
    total = sum(plan.slots)
    distinct = list({id(cache): cache for cache in outcome.caches}.values())
    unused = sum(cache.unused_prefetches for cache in distinct)
    block_bytes = scenario.memory.kv_block_tokens * shape.kv_bytes_per_token
    return {
        "name": scenario.name,
        "trace": trace.meta.model,
        "model": shape.name,
        "hardware": scenario.hardware.profile,
        "cost_kind": plan.cost.hardware.cost_kind,
        "cache_policy": find("eviction", scenario.cache.policy).name,
        "cache_scope": scenario.cache.scope,
        "cache_slots": total,
        "cache_slots_per_layer": total / trace.num_layers,
        "num_experts": trace.num_experts,
        "num_layers": trace.num_layers,
        "prefetch_policy": find("prefetch", scenario.prefetch.policy).name,
        "batching_policy": find("batching", scenario.batching.policy).name,
        "seed": scenario.seed,
        **throughput_summary(outcome.requests, outcome.now_ns),
        **latency_summary(outcome.requests),
        **cache_summary(ledger),
        **bytes_summary(ledger, plan.cost.expert_bytes, unused),
        "load_bytes": sum(cache.preloaded for cache in distinct) * plan.cost.expert_bytes,
        **time_summary(ledger, outcome.now_ns),
        "vram_bytes": budget.capacity_bytes,
        "fixed_bytes": budget.fixed_bytes,
        "kv_bytes": budget.kv_bytes,
        "slots_bytes": budget.slots_bytes,
        "staging_bytes": budget.staging_bytes,
        "activations_bytes": budget.activations_bytes,
        "peak_vram_bytes": budget.used_bytes - budget.kv_bytes + outcome.pool.peak * block_bytes,
        "peak_kv_blocks": outcome.pool.peak,
        "notes": _notes(plan, outcome),
    }


def _notes(plan: Plan, outcome: Outcome) -> list[str]:
    """What a reader must know to not misread the numbers."""
    scenario, trace, shape = plan.scenario, plan.trace, plan.cost.shape
    notes = []
    if scenario.model.shape != "trace" and shape.name != trace.meta.model:
        notes.append(f"a trace of {trace.meta.model} is costed with the sizes of {shape.name}")
    if trace.meta.synthetic:
        notes.append("the trace is synthetic")
    policy = find("eviction", scenario.cache.policy)
    if policy.name == "static" and not scenario.cache.options.get("profile"):
        notes.append("static was learnt on the replayed trace itself: hindsight, an oracle")
    if policy.name == "static" and scenario.bounds:
        notes.append("static starts loaded; MIN and the infinite cache start empty")
    if trace.meta.router != "layerwise":
        notes.append(f"the router is {trace.meta.router}; costed and shown as a layer-wise one")
    if policy.clairvoyant:
        notes.append(f"{policy.name} knows the future: a bound on misses, not a policy")
    if find("prefetch", scenario.prefetch.policy).clairvoyant:
        notes.append("oracle prefetch knows the future of the step: a bound, not a policy")
    if scenario.replay == "sequential":
        notes.append("sequential replay inflates misses; it is offered only for contrast")
    if scenario.workload.prefill != "recorded":
        notes.append(f"prefill: {scenario.workload.prefill}; prompt rows are not the recorded ones")
    if tiled := sum(request.tiled_rows for request in outcome.requests):
        share = ratio(tiled, sum(len(request.rows) for request in outcome.requests)) or 0
        notes.append(f"{share:.1%} of the rows are tiled from further sequences of the domain")
    if rejected := sum(request.status == "rejected" for request in outcome.requests):
        notes.append(f"{rejected} requests can never fit into KV memory and were rejected")
    return notes
