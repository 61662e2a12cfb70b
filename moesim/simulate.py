"""Simulate a scenario and say what it came to."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesim.bounds import BOUND_KEYS, bounds_summary
from moesim.errors import ScenarioError
from moesim.files import as_path
from moesim.hardware.shapes import ModelShape
from moesim.metrics import (
    bytes_summary,
    cache_summary,
    latency_summary,
    layer_columns,
    ratio,
    request_columns,
    starvation_summary,
    throughput_summary,
    time_summary,
)
from moesim.policies import find
from moesim.result import Result
from moesim.scenario import Scenario, load_scenario
from moesim.serving.invariants import check_lanes, check_run
from moesim.serving.kv import BlockPool
from moesim.serving.ledger import Ledger
from moesim.serving.request import Request
from moesim.serving.residency import ExpertCache
from moesim.serving.server import Server
from moesim.wiring import Plan, SimPrices, build_server, group_by_cache, prepare, serve

__all__ = [
    "Outcome",
    "Plan",
    "Result",
    "SimPrices",
    "bounds_of",
    "build_server",
    "finish",
    "group_by_cache",
    "prepare",
    "result_of",
    "run",
    "simulate",
    "summarise",
]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One simulation that has ended."""

    plan: Plan
    requests: Sequence[Request]
    ledger: Ledger
    caches: Sequence[ExpertCache]
    pool: BlockPool
    now_ns: int


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
    if isinstance(scenario, str | Path) or not isinstance(scenario, Scenario):
        scenario = load_scenario(scenario)
    if scenario.sweep:
        raise ScenarioError.at(
            scenario, "sweep", "one run takes no sweep; use `moesim compare` for the whole grid"
        )
    if out is None:
        return result_of(prepare(scenario))
    from moesim.rundir import reuse, write

    out = as_path(out)
    known = reuse(scenario, out, force=force, draw=draw)
    if known is not None:
        return known
    plan = prepare(scenario)
    return write(scenario, out, lambda: result_of(plan), force=force, draw=draw, point=point)


def simulate(plan: Plan, *, eviction: str | None = None, free_link: bool = False) -> Outcome:
    """Serve the plan's workload on the simulated machine."""
    server, now_ns = serve(plan, eviction=eviction, free_link=free_link)
    outcome = finish(plan, server, now_ns)
    check_lanes(outcome.ledger, outcome.now_ns)
    return outcome


def finish(plan: Plan, server: Server, now_ns: int) -> Outcome:
    """Close the books of a server that has ended, and check that they balance."""
    pool = server.scheduler.pool
    flying = server.ledger.finish(now_ns)
    check_run(server.requests, server.ledger, pool, plan.cost.expert_bytes, flying)
    return Outcome(plan, server.requests, server.ledger, server.caches, pool, now_ns)


def result_of(plan: Plan) -> Result:
    """Simulate a plan, with its bounds if the scenario asks for them."""
    outcome = simulate(plan)
    summary = summarise(outcome)
    bounds = bounds_of(outcome, summary) if plan.scenario.bounds else {}
    summary.update({key: bounds.get(key) for key in BOUND_KEYS})
    columns = {
        "requests": request_columns(outcome.requests),
        "steps": outcome.ledger.step_columns(),
        "layers": layer_columns(outcome.ledger, plan.layers.model_layers, plan.cost.expert_bytes),
        "timeline": outcome.ledger.timeline_columns(),
    }
    return Result(plan.scenario, summary, columns)


def bounds_of(outcome: Outcome, summary: dict[str, Any]) -> dict[str, Any]:
    """Simulate the bounds of an outcome and compare it with them."""
    plan = outcome.plan
    everything = plan.trace.num_layers * plan.trace.num_experts
    return bounds_summary(
        outcome,
        summary,
        cached=simulate(plan.with_slots(everything), eviction="lru"),
        linked=simulate(plan, free_link=True),
    )


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
        **starvation_summary(outcome.requests),
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


def _same(path: Path, other: Path) -> bool:
    return os.path.realpath(path) == os.path.realpath(other)


def _learnt_on(scenario: Scenario, profile: str | None) -> str:
    if not profile or _same(scenario.path(profile), scenario.trace_path):
        return "static was learnt on the replayed trace itself: hindsight, an oracle"
    return f"static was learnt on the trace {profile}"


def _router_note(router: str, shape: ModelShape) -> str | None:
    """What the router reveals and what it is priced as are chosen apart."""
    if router == "layerwise" and shape.router is None:
        return None
    seen = "as its layers run" if router == "layerwise" else "ahead"
    priced = "in the tail of each step" if shape.router else "in each layer, as a layer-wise one"
    return f"the router is {router}: policies see its choices {seen}; it is costed {priced}"


def _notes(plan: Plan, outcome: Outcome) -> list[str]:
    """What a reader must know to not misread the numbers."""
    scenario, trace, shape = plan.scenario, plan.trace, plan.cost.shape
    notes = []
    if scenario.model.shape != "trace" and shape.name != trace.meta.model:
        notes.append(f"a trace of {trace.meta.model} is costed with the sizes of {shape.name}")
    if trace.meta.synthetic:
        notes.append("the trace is synthetic")
    policy = find("eviction", scenario.cache.policy)
    if policy.name == "static":
        notes.append(_learnt_on(scenario, scenario.cache.options.get("profile")))
    if first := scenario.cache.initial_layers:
        notes.append(f"all experts of the first {first} MoE layers are resident from the start")
    if scenario.bounds and (policy.name == "static" or first):
        loaded = "static starts" if policy.name == "static" else "initial layers start"
        notes.append(f"{loaded} loaded; MIN and the infinite cache start empty")
    if note := _router_note(trace.meta.router, shape):
        notes.append(note)
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
