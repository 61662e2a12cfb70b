"""Simulate a scenario and say what it came to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from moesim.bounds import BOUND_KEYS, Loaded, Remedy, Steps, bounds_summary, endless, hindsight
from moesim.caveats import caveats
from moesim.errors import OutputError, ScenarioError
from moesim.facts import knows_the_future, routing_facts
from moesim.hardware.shapes import ModelShape
from moesim.metrics import (
    bytes_summary,
    cache_summary,
    latency_summary,
    layer_columns,
    request_columns,
    starvation_summary,
    throughput_summary,
    time_summary,
)
from moesim.policies import find
from moesim.policies.eviction import Eviction
from moesim.progress import Progress
from moesim.result import Result
from moesim.scenario import Scenario, load_scenario
from moesim.scenario.unused import unused_keys
from moesim.serving.budget import useful_blocks
from moesim.serving.invariants import check_lanes, check_run
from moesim.serving.kv import BlockPool
from moesim.serving.ledger import Ledger
from moesim.serving.replay import Ask
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
    schedule: Sequence[Ask] | None = None
    """The steps as the batching policy formed them; None where all requests arrive at once, or
    without bounds."""

    @property
    def distinct_caches(self) -> list[ExpertCache]:
        """Each cache once, in the order of its number."""
        return list({id(cache): cache for cache in self.caches}.values())

    @property
    def loaded(self) -> Loaded:
        """Of each cache, the keys that were loaded before time zero."""
        return [cache.preloaded for cache in self.distinct_caches]

    def __repr__(self) -> str:
        name, steps = self.plan.scenario.name, self.ledger.num_steps
        requests = len(self.requests)
        return f"<Outcome of {name}: {requests} requests, {steps} steps, {self.now_ns} ns>"


def run(
    scenario: Scenario | str | Path | Mapping[str, Any],
    *,
    out: str | Path | None = None,
    force: bool = False,
    draw: bool = False,
    point: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Result:
    """Simulate a scenario: an object, a file, or plain data.

    With `out`, everything is written to that run directory; if it already holds this very run
    (same scenario, trace, code and policies), nothing is done. `draw` adds the plots; `point` are
    the sweep values it stands for. `progress(what, done, total)` is told, after each step, how many
    rows of the run and of its bounds are served.

    Raises `ScenarioError`, `BudgetError`, `TraceError`, `PolicyViolation`, `OutputError`.
    """
    if isinstance(scenario, str | Path):
        scenario = load_scenario(Path(scenario))
    elif not isinstance(scenario, Scenario):
        scenario = load_scenario(scenario)
    if scenario.sweep:
        raise ScenarioError.at(
            scenario, "sweep", "one run takes no sweep; use `moesim compare` for the whole grid"
        )
    if out is None:
        return result_of(prepare(scenario), progress)
    from moesim.rundir import holds, reuse, write

    out = Path(out)
    known = reuse(scenario, out, force=force, draw=draw)
    if known is not None:
        return known
    simulated = partial(result_of, prepare(scenario), progress)
    try:
        return write(
            scenario, out, simulated, force=force, draw=draw, point=point, progress=progress
        )
    except OutputError:
        # Another process may have written this very run since we looked: it will do.
        known = reuse(scenario, out, force=force, draw=draw) if holds(scenario, out) else None
        if known is None:
            raise
        return known


def simulate(
    plan: Plan,
    *,
    eviction: str | None = None,
    free_link: bool = False,
    at_once: bool = False,
    what: str = "run",
    progress: Progress | None = None,
) -> Outcome:
    """Serve the plan's workload on the simulated machine.

    `at_once` moves all arrivals to zero; `progress` is told under `what`.
    """
    asks: list[Ask] | None = None
    if plan.scenario.bounds and plan.observer is None and _spread(plan.scenario):
        asks = []
        observed = replace(plan, observer=Steps(asks))
    else:
        observed = plan
    server, now_ns = serve(
        observed,
        eviction=eviction,
        free_link=free_link,
        at_once=at_once,
        what=what,
        progress=progress,
    )
    outcome = replace(finish(plan, server, now_ns), schedule=asks)
    check_lanes(outcome.ledger, outcome.now_ns)
    return outcome


def _spread(scenario: Scenario) -> bool:
    """Whether requests may arrive at different times."""
    return scenario.workload.arrivals.kind != "all_at_once"


def finish(plan: Plan, server: Server, now_ns: int) -> Outcome:
    """Close the books of a server that has ended, and check that they balance."""
    pool = server.scheduler.pool
    flying = server.ledger.finish(now_ns)
    check_run(server.requests, server.ledger, pool, plan.cost.expert_bytes, flying)
    return Outcome(plan, server.requests, server.ledger, server.caches, pool, now_ns)


def result_of(plan: Plan, progress: Progress | None = None) -> Result:
    """Simulate a plan, with its bounds if the scenario asks for them."""
    outcome = simulate(plan, progress=progress)
    summary = summarise(outcome)
    bounds = bounds_of(outcome, progress) if plan.scenario.bounds else {}
    summary.update({key: bounds.get(key) for key in BOUND_KEYS})
    columns = {
        "requests": request_columns(outcome.requests),
        "steps": outcome.ledger.step_columns(),
        "layers": layer_columns(outcome.ledger, plan.layers.model_layers, plan.cost.expert_bytes),
        "timeline": outcome.ledger.timeline_columns(),
    }
    return Result(plan.scenario, summary, columns)


def bounds_of(outcome: Outcome, progress: Progress | None = None) -> dict[str, Any]:
    """Simulate the bounds of an outcome and compare it with them.

    Where arrivals are spread out, a faster run would form other steps, and MIN's future would not
    exist. There the remedies time the very steps that the run formed, without waiting in between.
    """
    plan, ledger, loaded = outcome.plan, outcome.ledger, outcome.loaded
    roomy = plan.with_slots(plan.trace.num_layers * plan.trace.num_experts)
    schedule = None
    if any(request.arrival_ns for request in outcome.requests):
        schedule = outcome.schedule
        assert schedule is not None, "a run with bounds notes the steps that it forms"

    def remedied(
        what: str, plan: Plan, evictions: Sequence[Eviction], steps: Sequence[Ask] | None
    ) -> Outcome:
        observed = replace(plan, observer=Remedy(evictions, steps))
        return simulate(
            observed, eviction="lru", at_once=steps is not None, what=what, progress=progress
        )

    best = remedied("MIN", plan, hindsight(outcome, ledger.layer_events()), schedule)
    cached = remedied("infinite cache", roomy, endless(roomy.slots, loaded), None)
    linked = simulate(plan, free_link=True, what="infinite link", progress=progress)
    steps_ns = {
        "policy": best.ledger.stepping_ns,
        "memory": cached.ledger.stepping_ns,
        "link": linked.ledger.stepping_ns,
    }
    if schedule is not None:
        same_steps = remedied("infinite cache", roomy, endless(roomy.slots, loaded), schedule)
        steps_ns["memory"] = same_steps.ledger.stepping_ns
        steps_ns["link"] = ledger.stepping_ns - sum(map(sum, ledger.copy_stalls_ns))
    return bounds_summary(outcome, cached=cached, linked=linked, steps_ns=steps_ns)


def summarise(outcome: Outcome) -> dict[str, Any]:
    """`summary.json` without the bounds."""
    plan, ledger = outcome.plan, outcome.ledger
    scenario, trace, budget, shape = plan.scenario, plan.trace, plan.budget, plan.cost.shape
    total = sum(plan.slots)
    distinct, asked = outcome.distinct_caches, caveats(outcome)
    unused = sum(cache.unused_prefetches for cache in distinct)
    block_bytes = scenario.memory.kv_block_tokens * shape.kv_bytes_per_token
    return {
        "name": scenario.name,
        "trace": trace.meta.model,
        "model": shape.name,
        "hardware": scenario.hardware.profile,
        "cost_kind": plan.cost.hardware.cost_kind,
        **routing_facts(scenario, trace.meta, shape),
        "cache_policy": find("eviction", scenario.cache.policy).name,
        "cache_scope": scenario.cache.scope,
        "cache_slots": total,
        "cache_slots_per_layer": total / trace.num_layers,
        "num_experts": trace.num_experts,
        "num_layers": trace.num_layers,
        "prefetch_policy": find("prefetch", scenario.prefetch.policy).name,
        "batching_policy": find("batching", scenario.batching.policy).name,
        "knows_the_future": ", ".join(knows_the_future(scenario, hindsight=ledger.hindsight)),
        "seed": scenario.seed,
        **throughput_summary(outcome.requests, outcome.now_ns),
        **latency_summary(outcome.requests),
        **starvation_summary(outcome.requests),
        **cache_summary(ledger),
        **bytes_summary(ledger, plan.cost.expert_bytes, unused),
        "load_bytes": sum(len(cache.preloaded) for cache in distinct) * plan.cost.expert_bytes,
        **time_summary(ledger, outcome.now_ns),
        "vram_bytes": budget.capacity_bytes,
        "fixed_bytes": budget.fixed_bytes,
        "kv_bytes": budget.kv_bytes,
        "slots_bytes": budget.slots_bytes,
        "staging_bytes": budget.staging_bytes,
        "activations_bytes": budget.activations_bytes,
        "peak_vram_bytes": budget.used_bytes - budget.kv_bytes + outcome.pool.peak * block_bytes,
        "peak_kv_blocks": outcome.pool.peak,
        "caveats": [short for short, _ in asked],
        "notes": [*_notes(plan, outcome), *(full for _, full in asked)],
    }


def _foresight(scenario: Scenario, *, hindsight: bool) -> list[str]:
    """What a reader must know of policies that see ahead, and of profiles that do not."""
    eviction = find("eviction", scenario.cache.policy)
    profile = scenario.cache.options.get("profile")
    notes = [
        f"{name} knows the future: a bound, not a policy"
        for name in map(_as_said, knows_the_future(scenario))
    ]
    if hindsight:
        notes.append(
            f"{eviction.name} was learnt on the replayed trace itself: hindsight, an oracle"
        )
    elif profile:
        notes.append(f"{eviction.name} was learnt on the trace {profile}")
    return notes


def _as_said(policy: str) -> str:
    """Return `min eviction` for `eviction min`."""
    family, _, name = policy.partition(" ")
    return f"{name} {family}"


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
    notes = unused_keys(scenario)
    if routing_facts(scenario, trace.meta, shape)["sizes"] == "foreign":
        notes.append(f"a trace of {trace.meta.model} is costed with the sizes of {shape.name}")
    if trace.meta.synthetic:
        notes.append("the trace is synthetic")
    notes += _foresight(scenario, hindsight=outcome.ledger.hindsight)
    if first := scenario.cache.initial_layers:
        notes.append(f"all experts of the first {first} MoE layers are resident from the start")
    if scenario.bounds and any(request.arrival_ns for request in outcome.requests):
        notes.append("arrivals are spread out: the verdict times the steps that this run formed")
    if note := _router_note(trace.meta.router, shape):
        notes.append(note)
    if scenario.replay == "sequential":
        notes.append("sequential replay inflates misses; it is offered only for contrast")
    if scenario.workload.prefill != "recorded":
        notes.append(f"prefill: {scenario.workload.prefill}; prompt rows are not the recorded ones")
    budget = plan.budget
    useful = useful_blocks(scenario, [request.max_kv_tokens for request in outcome.requests])
    if scenario.memory.kv.kind in ("bytes", "share") and budget.kv_blocks > useful:
        notes.append(
            f"memory.kv holds {budget.kv_blocks} KV blocks; these requests use at most {useful}"
        )
    return notes
