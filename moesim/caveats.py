"""Caveats: what a scenario asked for and a run could not do, or not in full.

What is surely a mistake is refused before a run. What may be wanted is simulated, and said: in a
few words under every figure, in full among the notes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from moesim.config.units import format_bytes
from moesim.metrics import ratio
from moesim.policies import find, parse_options
from moesim.scenario.sections import Csv, Recorded
from moesim.serving.workload import drawn_from

if TYPE_CHECKING:
    from moesim.simulate import Outcome
    from moesim.wiring import Plan

Caveat = tuple[str, str]
"""In a few words, without numbers that differ from run to run; and in full."""


def caveats(outcome: Outcome) -> list[Caveat]:
    """What was asked for and could not be done, or not in full."""
    plan = outcome.plan
    return [*_memory(plan), *_prefetch(outcome), *_workload(outcome), *_timeline(outcome)]


def _memory(plan: Plan) -> Iterator[Caveat]:
    scenario, trace, budget = plan.scenario, plan.trace, plan.budget
    asked, total = scenario.cache.slots, trace.num_layers * trace.num_experts
    if asked.kind == "bytes" and asked.value >= (total + 1) * plan.cost.expert_bytes:
        yield (
            "cache.slots is more than all experts take",
            f"cache.slots is {format_bytes(int(asked.value))}; all {total} experts take "
            f"{format_bytes(budget.slots_bytes)}, and no more is used",
        )
    vram_bytes = plan.cost.hardware.vram_bytes
    if budget.capacity_bytes > vram_bytes:
        yield (
            f"memory.capacity is more than {scenario.hardware.profile} has",
            f"memory.capacity is {format_bytes(budget.capacity_bytes)}; "
            f"{scenario.hardware.profile} has {format_bytes(vram_bytes)}",
        )


def _prefetch(outcome: Outcome) -> Iterator[Caveat]:
    plan, ledger = outcome.plan, outcome.ledger
    chosen = plan.scenario.prefetch
    policy = find("prefetch", chosen.policy)
    options: Any = parse_options(policy, chosen.options)
    depth, layers = getattr(options, "depth", 1), plan.trace.num_layers
    recorded = plan.trace.meta.prediction_depth
    if policy.needs_predictions and depth > recorded:
        yield (
            f"the trace predicts {recorded} layers ahead, not {depth}",
            f"prefetch.options.depth is {depth}; the trace predicts {recorded} layers ahead",
        )
    elif depth >= 2 * layers:  # past the last layer, the next step's layers may be known
        yield (
            f"prefetch looks {depth} layers ahead of {layers}",
            f"prefetch.options.depth is {depth}; two steps have {2 * layers} layers",
        )
    if policy.active and not sum(ledger.prefetch_copies):
        eviction = find("eviction", plan.scenario.cache.policy).name
        refused = ledger.prefetch_refused
        why = f"; {eviction} refused {refused} a slot" if refused else ""
        yield "nothing was prefetched", f"{policy.name} prefetch fetched nothing{why}"


def _workload(outcome: Outcome) -> Iterator[Caveat]:
    scenario, requests = outcome.plan.scenario, outcome.requests
    pool = len(drawn_from(scenario, outcome.plan.trace))
    if scenario.workload.order != "resampled" and len(requests) > pool:
        yield (
            "requests repeat those of the trace",
            f"{len(requests)} requests repeat the {pool} of the trace that may be drawn",
        )
    if tiled := sum(request.tiled_rows for request in requests):
        share = ratio(tiled, sum(len(request.rows) for request in requests)) or 0
        yield (
            "rows are tiled beyond recorded sequences",
            f"{share:.1%} of the rows are tiled from further sequences of the domain",
        )
    if rejected := sum(request.status == "rejected" for request in requests):
        yield (
            "requests were rejected",
            f"{rejected} requests can never fit into KV memory and were rejected",
        )
    recorded = isinstance(scenario.workload.arrivals, Recorded | Csv)
    if recorded and len(requests) > 1 and not any(request.arrival_ns for request in requests):
        yield (
            "all recorded arrivals are at zero",
            "all recorded arrivals are at zero, so all requests arrive at once",
        )


def _timeline(outcome: Outcome) -> Iterator[Caveat]:
    asked, steps = outcome.plan.scenario.timeline, outcome.ledger.num_steps
    if asked.steps and asked.first_step >= max(1, steps):
        yield (
            "the timeline starts after the last step",
            f"timeline.first_step is {asked.first_step}; the run has {steps} steps, from 0 on",
        )
