"""Validate one scenario: run it for real a few times, simulate it once, compare.

If requests arrive over time, the first real run is batched freely. All other runs, real and
simulated, replay its schedule, so that only time is compared. The simulator's own schedule is
reported too, under other names (`open_...`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from moesim.cost.measured import OperationCost
from moesim.hardware.profile_schema import Kind
from moesim.hardware.topology import CPU, DISK
from moesim.policies import find
from moesim.progress import Progress
from moesim.serving.run_log import PlanRecord
from moesim.simulate.build import Plan
from moesim.simulate.facts import engine_facts, routing_facts
from moesim.validate.comparison import Comparison, compare
from moesim.validate.observation import Observation
from moesim.validate.runs import Bench, arrives_at_once, simulate_observed

__all__ = ["Validation", "assess", "measure", "validate_plan"]

WARMUPS: Final = 1
# A calibration measures none of them.
_CPU_FIGURES: Final = ("cpu_flops", "cpu_overhead", "cpu_efficiency", "host_memory_bandwidth")
OPEN_KEYS: Final = (
    "open_total_time_bias_pct",
    "open_ttft_mean_bias_pct",
    "open_e2e_mean_bias_pct",
    "open_steps_real",
    "open_steps_simulated",
)


@dataclass(frozen=True, slots=True)
class Validation:
    """One scenario on one device: `summary` (flat, units in the names) and the rows behind it."""

    plan: Plan
    device: str
    comparison: Comparison
    summary: dict[str, Any] = field(repr=False)


def validate_plan(
    plan: Plan,
    bench: Bench,
    *,
    runs: int = 5,
    progress: Progress | None = None,
    between: Callable[[], None] | None = None,
    priced: Callable[[Plan], Plan] | None = None,
) -> Validation:
    """Run `plan` on the bench `runs` times after a warm-up that does not count, and compare.

    `between` is called before each run that counts. `priced` gives the plan's final costs after the
    last run.
    """
    real: list[Observation] = []
    for number in range(WARMUPS + runs):
        if between is not None and number >= WARMUPS:
            between()
        run = measure(plan, bench, real)
        if number >= WARMUPS:
            real.append(run)
        if progress is not None:
            progress("runs", number + 1, WARMUPS + runs)
    if priced is not None:
        plan = priced(plan)
    return assess(plan, bench.device, real)


def measure(plan: Plan, bench: Bench, earlier: Sequence[Observation]) -> Observation:
    """Run the plan once more for real.

    If batches depend on time, the run replays the schedule of the first of the `earlier` runs.
    """
    return bench.run(plan, _script(plan, earlier))


def assess(plan: Plan, device: str, real: Sequence[Observation]) -> Validation:
    """Compare finished real runs with the simulation."""
    script = _script(plan, real)
    comparison = compare(real, simulate_observed(plan, script))
    own_schedule = dict.fromkeys(OPEN_KEYS)
    # With a replayed schedule the simulator's own batching is not tested, so simulate it too.
    if script is not None:
        own_schedule = _open(real[0], simulate_observed(plan))
    described = _what(plan, device, replayed=script is not None)
    summary = {**described, **comparison.summary, **own_schedule}
    return Validation(plan, device, comparison, summary)


def _script(plan: Plan, earlier: Sequence[Observation]) -> tuple[PlanRecord, ...] | None:
    # If all requests arrive at once, batches cannot depend on time, so there is nothing to replay.
    if not earlier or arrives_at_once(plan):
        return None
    return earlier[0].decisions.schedule


def _what(plan: Plan, device: str, *, replayed: bool) -> dict[str, Any]:
    scenario, hardware = plan.scenario, plan.cost.hardware
    timed_by = _decides_by_time(plan)
    return {
        "name": scenario.name,
        "device": device,
        "hardware": hardware.name,
        "cost_kind": "measured" if isinstance(plan.cost, OperationCost) else hardware.cost_kind,
        **engine_facts(plan),
        "trace": plan.trace.meta.model,
        **routing_facts(scenario, plan.trace.meta, plan.cost.shape),
        "model": plan.cost.shape.name,
        "cache_policy": find("eviction", scenario.cache.policy).name,
        "cache_scope": scenario.cache.scope,
        "cache_slots": sum(plan.slots),
        "num_experts": plan.trace.num_experts,
        "num_layers": plan.trace.num_layers,
        "prefetch_policy": find("prefetch", scenario.prefetch.policy).name,
        "placement_policy": find("placement", scenario.placement.policy).name,
        "decisions_timed": bool(timed_by),
        "decisions_timed_by": timed_by,
        "cpu_cost_kind": _kind(plan, CPU, _CPU_FIGURES),
        "disk_cost_kind": _kind(plan, DISK, ("disk.latency", "disk.bandwidth")),
        "batching_policy": find("batching", scenario.batching.policy).name,
        "max_sequences": scenario.batching.max_sequences,
        "token_budget": scenario.batching.token_budget,
        "expert_bytes": plan.cost.expert_bytes,
        "copy_ms": plan.cost.copy_ns("h2d", plan.cost.expert_bytes) / 1e6,
        "link": "emulated" if device == "cpu" else "real",
        "seed": scenario.seed,
        "schedule": "replayed" if replayed else "all at once",
        "warmup_runs": WARMUPS,
    }


def _decides_by_time(plan: Plan) -> str:
    """Return what decides by which copies are under way, and so by times; empty if nothing does.

    Placements may. Without buffers of its own, a cancelled copy gives back its slot.
    """
    scenario = plan.scenario
    prefetch = scenario.prefetch
    if prefetch.cancel and not prefetch.buffers and find("prefetch", prefetch.policy).active:
        return "prefetch.cancel"
    placement = find("placement", scenario.placement.policy)
    comes_and_goes = plan.places.residents is None and scenario.cache.policy != "static"
    timed = placement.sees_arriving and comes_and_goes and sum(plan.slots) > 0
    return str(placement.name) if timed else ""


def _kind(plan: Plan, lane: str, figures: Sequence[str]) -> Kind | None:
    """Return whether the figures of a lane are measured or assumed; None without such a lane."""
    if lane not in plan.places.topology.names:
        return None
    known = plan.cost.hardware.figures
    measured = all(known[name].kind == "measured" for name in figures if name in known)
    return "measured" if measured else "assumed"


def _open(real: Observation, simulated: Observation) -> dict[str, Any]:
    """Return the errors of a simulation with its own schedule.

    They are errors of means over requests, because single steps no longer correspond.
    """

    def mean(run: Observation, moment: str) -> float:
        served = run.requests[moment] >= 0
        waits = (run.requests[moment] - run.requests["arrival_ns"])[served]
        return float(np.mean(waits)) if len(waits) else float("nan")

    def bias(theirs: float, ours: float) -> float | None:
        error = 100 * (ours - theirs) / theirs if theirs else float("nan")
        return error if np.isfinite(error) else None  # JSON has no NaN

    values = (
        bias(real.makespan_ns, simulated.makespan_ns),
        bias(mean(real, "first_token_ns"), mean(simulated, "first_token_ns")),
        bias(mean(real, "finish_ns"), mean(simulated, "finish_ns")),
        len(real.steps["step"]),
        len(simulated.steps["step"]),
    )
    return dict(zip(OPEN_KEYS, values, strict=True))
