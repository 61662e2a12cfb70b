"""A simulation of a scenario: its outcome, bounds, and the summary of its results."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from moesim.config.units import format_bytes
from moesim.cost.prices import SimPrices
from moesim.errors import OutputError, ScenarioError, shown
from moesim.files import as_path
from moesim.model.shapes import ModelShape
from moesim.policies import find, parse_options
from moesim.policies.base import hindsight_note
from moesim.policies.batching import Batching
from moesim.policies.eviction import Eviction, Resident
from moesim.policies.guard import note_of
from moesim.policies.placement import fixes_residents
from moesim.progress import Progress
from moesim.report.result import Result
from moesim.results.metrics import (
    bytes_summary,
    cache_summary,
    decode_summary,
    latency_summary,
    layer_columns,
    prefix_summary,
    request_columns,
    starvation_summary,
    throughput_summary,
    time_summary,
)
from moesim.results.window import find_window
from moesim.scenario import Scenario, load_scenario
from moesim.scenario.policies import FAMILIES
from moesim.scenario.unused import unused_notes
from moesim.serving.budget import useful_blocks
from moesim.serving.experts.residency import ExpertCache
from moesim.serving.invariants import check_arrivals, check_lanes, check_run
from moesim.serving.kv import BlockPool
from moesim.serving.ledger import Ledger
from moesim.serving.request import Request, all_at_once
from moesim.serving.routing import TraceRouting
from moesim.serving.run_log import Planned, PlanRecord, RunLog
from moesim.serving.server import Server
from moesim.serving.unions import UnionMemo
from moesim.simulate.baseline import BASELINE_KEYS, baseline_of, has_baseline
from moesim.simulate.bounds import (
    BOUND_KEYS,
    Loaded,
    ReplayAtOnce,
    bounds_summary,
    endless,
    hindsight,
    min_hits,
)
from moesim.simulate.build import Plan, build_server, group_by_cache, prepare, serve, unserved
from moesim.simulate.caveats import caveats
from moesim.simulate.checks import policy_of
from moesim.simulate.facts import (
    POLICY_SECTIONS,
    engine_facts,
    format_facts,
    hardware_changes,
    knows_the_future,
    routing_facts,
)
from moesim.simulate.same_decisions import (
    BoundTimes,
    decides_alike,
    ending_at,
    keeps_all,
    without_copies,
)
from moesim.simulate.split import SPLIT, split_note
from moesim.simulate.unread import unread_keys
from moesim.trace.statistics import prediction_recall
from moesim.workload.arrivals import file_notes
from moesim.workload.workload import pairing_notes

if TYPE_CHECKING:
    from moesim.serving.compiled.kernel import Steps
    from moesim.serving.standing import Watch

__all__ = [
    "Outcome",
    "Plan",
    "Result",
    "SimPrices",
    "baseline_of",
    "bounds_of",
    "build_server",
    "finish",
    "group_by_cache",
    "prepare",
    "result_from",
    "result_of",
    "run",
    "simulate",
    "summarise",
]


_UNION_BYTES = 256 << 20  # of the unions that a run and its bounds share


@dataclass(frozen=True, slots=True)
class Outcome:
    """One finished simulation: its requests, caches and ledger, and its end time in ns."""

    plan: Plan
    requests: Sequence[Request]
    ledger: Ledger
    caches: Sequence[ExpertCache]
    pool: BlockPool
    now_ns: int
    schedule: Sequence[PlanRecord] | None = None
    """The steps as the batching policy formed them; None if no other run has to repeat them.

    Bounds and the run without prefetch repeat them if requests may arrive at different times.
    """
    simulation: str = "reference"
    """The back end that served it."""
    unions: UnionMemo | None = None
    """The unions of the steps, for other runs of the same rows; None if there are no such runs."""
    steps: Sequence[Steps] | None = None
    """The steps, to be decided and timed again; None if no compiled run has kept them."""

    @property
    def distinct_caches(self) -> list[ExpertCache]:
        """Each cache once, in the order of its number."""
        return list({id(cache): cache for cache in self.caches}.values())

    @property
    def loaded(self) -> Loaded:
        """The keys that were loaded before time zero, for each cache."""
        return [cache.preloaded for cache in self.distinct_caches]

    @property
    def repeated(self) -> Sequence[PlanRecord] | None:
        """The steps that other runs must repeat to be compared with this one.

        None if all requests arrive at once: then other runs form the same steps by themselves.
        """
        if all_at_once(self.requests):
            return None
        assert self.schedule is not None, "a run that others are compared with records its steps"
        return self.schedule

    def __repr__(self) -> str:
        name, steps = self.plan.scenario.name, self.ledger.num_steps
        requests = len(self.requests)
        return f"<Outcome of {name}: {requests} requests, {steps} steps, {self.now_ns} ns>"


def run(
    scenario: Scenario | str | Path | Mapping[str, Any],
    *,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    out: str | Path | None = None,
    force: bool = False,
    draw: bool = False,
    point: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    watch: Watch | None = None,
    text: str | None = None,
) -> Result:
    """Simulate a scenario, given as an object, a file, or plain data; return its result.

    `overrides` changes keys of the scenario: `{"cache.policy": "lfu"}`. With `out`, write the
    result to that run directory. If `out` already holds the same run (same scenario, trace, code
    and policies), read it instead of simulating again; `force` replaces it. `draw` adds the plots.
    `point` holds the sweep values of the run, and `text` its `scenario.yaml` if its paths must not
    start at `out`. `progress(what, done, total)` is called after each step with the number of
    served rows, for the run and for each of its bounds. `watch` gets the server of the run before
    it serves. It may be read whenever `progress` is called.

    Raises:
        ScenarioError: the scenario is wrong, or has a sweep.
        BudgetError: the model does not fit the memory.
        TraceError: the trace cannot be used.
        PolicyViolation: a policy broke the rules of its interface.
        OutputError: `out` holds something else, or cannot be written.

    >>> moesim.run("scenarios/quickstart.yaml", overrides={"cache.policy": "lfu", "bounds": False})
    <Result quickstart: 16 requests, 33.86 s, ..., 79% stalled; not written>
    """
    scenario = load_scenario(scenario, overrides)
    if scenario.sweep:
        raise ScenarioError.at(
            scenario, "sweep", "a single run takes no sweep; use `moesim compare` for all points"
        )
    if out is None:
        return result_of(prepare(scenario), progress, watch)
    from moesim.simulate.rundir import holds, reuse, write

    out = as_path(out)
    finished = reuse(scenario, out, force=force, draw=draw)
    if finished is not None:
        return finished
    simulated = partial(result_of, prepare(scenario), progress, watch)
    try:
        return write(
            scenario,
            out,
            simulated,
            force=force,
            draw=draw,
            point=point,
            progress=progress,
            text=text,
        )
    except OutputError:
        # Another process may have written the same run in the meantime; its result is as good.
        finished = reuse(scenario, out, force=force, draw=draw) if holds(scenario, out) else None
        if finished is None:
            raise
        return finished


def simulate(
    plan: Plan,
    *,
    evictions: Sequence[Eviction] | None = None,
    batching: Batching | None = None,
    free_link: bool = False,
    at_once: bool = False,
    what: str = "run",
    progress: Progress | None = None,
    unions: UnionMemo | None = None,
    watch: Watch | None = None,
) -> Outcome:
    """Serve the plan's workload on the simulated machine, and check the invariants of the run.

    `unions` are those of earlier runs. Other arguments are those of `moesim.simulate.build.serve`.
    """
    log = None
    compared = plan.scenario.bounds or has_baseline(plan.scenario)
    if compared and unions is None:
        unions = UnionMemo(_UNION_BYTES)
    # A run with other evictions is itself a bound, and needs no bounds.
    if compared and evictions is None and _is_spread(plan.scenario):
        log = RunLog(Planned)
    server, now_ns = serve(
        plan,
        evictions=evictions,
        batching=batching,
        free_link=free_link,
        at_once=at_once,
        what=what,
        progress=progress,
        observers=() if log is None else (log,),
        routing=None if unions is None else TraceRouting(plan.trace, unions),
        watch=watch,
    )
    schedule = None if log is None else [it.plan for it in log.of(Planned)]
    outcome = replace(finish(plan, server, now_ns), schedule=schedule, unions=unions)
    check_lanes(outcome.ledger, outcome.now_ns)
    return outcome


def _is_spread(scenario: Scenario) -> bool:
    """Return whether requests may arrive at different times."""
    return scenario.workload.arrivals.kind != "all_at_once"


def finish(plan: Plan, server: Server, now_ns: int) -> Outcome:
    """Return the outcome of a server that has ended at `now_ns`, with its invariants checked."""
    pool = server.scheduler.pool
    in_flight = server.ledger.finish(now_ns)
    check_run(server.requests, server.ledger, pool, in_flight)
    check_arrivals(server.requests, server.arrivals.clients)
    outcome = Outcome(plan, server.requests, server.ledger, server.caches, pool, now_ns)
    if server.compiled is None:
        return outcome
    return replace(outcome, simulation="compiled", steps=server.compiled.kept)


def result_of(plan: Plan, progress: Progress | None = None, watch: Watch | None = None) -> Result:
    """Simulate a plan, with its bounds if `bounds` is set in the scenario; return the result."""
    return result_from(simulate(plan, progress=progress, watch=watch), progress)


def result_from(outcome: Outcome, progress: Progress | None = None) -> Result:
    """Return the result of a finished simulation, with bounds if its scenario has `bounds` set.

    If it prefetches, its run without prefetch is simulated too, unless the scenario says otherwise.
    """
    plan = outcome.plan
    summary = summarise(outcome)
    others = bounds_of(outcome, progress) if plan.scenario.bounds else {}
    others |= baseline_of(outcome, progress)
    # Without these runs the keys are there as None, so that tables of runs have the same columns.
    summary.update({key: others.get(key) for key in (*BOUND_KEYS, *BASELINE_KEYS)})
    columns = {
        "requests": request_columns(outcome.requests, outcome.pool),
        "steps": outcome.ledger.step_columns(),
        "layers": layer_columns(outcome.ledger, plan.layers.model_layers),
        "timeline": outcome.ledger.timeline_columns(),
    }
    return Result(plan.scenario, summary, columns, simulation=outcome.simulation)


def bounds_of(outcome: Outcome, progress: Progress | None = None) -> dict[str, Any]:
    """Simulate the bounds of an outcome; return their keys of `summary.json` and the verdict.

    If arrivals are spread out, a faster run would form other steps, and the future that MIN needs
    would be another. The remedies then time the steps that the run formed, without waiting for
    arrivals between them.
    """
    plan, ledger, loaded = outcome.plan, outcome.ledger, outcome.loaded
    # A slot for every expert, whatever memory holds.
    roomy, schedule = plan.with_all_slots(), outcome.repeated
    layer_events = cache(ledger.layer_events)
    _, accesses = ledger.accesses_by_layer()
    tell = progress or (lambda *_: None)
    used = ledger.used_keys()

    def remedied(
        what: str, plan: Plan, evictions: Sequence[Eviction], steps: Sequence[PlanRecord] | None
    ) -> Outcome:
        batching = None if steps is None else ReplayAtOnce(steps)
        return simulate(
            plan,
            evictions=evictions,
            batching=batching,
            at_once=steps is not None,
            what=what,
            progress=progress,
            unions=outcome.unions,
        )

    steps_ns: dict[str, int] = {}
    hits: int | None = None
    if plan.places.residents is None:  # otherwise no eviction policy is asked
        again = timed_again(outcome, plan, hindsight(outcome, ()))
        if again is None:
            best = remedied("MIN", plan, hindsight(outcome, layer_events()), schedule).ledger
            steps_ns["policy"], best_hits = best.stepping_ns, sum(best.hits)
            del best
        else:
            tell("MIN", 1, 1)
            steps_ns["policy"], best_hits = int(again[0][-1]), again[1]
        # MIN made these very decisions, unless copies ahead or other lanes left it fewer.
        hits = best_hits if decides_alike(plan) else None
    if hits is None:
        hits = min_hits(outcome, layer_events())
    kept = keeps_all(outcome, used)
    what, evictions = "infinite cache", endless(roomy, loaded)
    again = None if kept else timed_again(outcome, roomy, evictions)
    if kept:
        cached = BoundTimes.of(outcome)
    elif again is not None and schedule is None:
        tell(what, 1, 1)
        cached = ending_at(outcome, again[0])
    else:
        cached = BoundTimes.of(remedied(what, roomy, endless(roomy, loaded), None))
    linked = without_copies(outcome)
    if linked is None:
        linked = BoundTimes.of(
            simulate(
                plan,
                free_link=True,
                what="infinite link",
                progress=progress,
                unions=outcome.unions,
            )
        )
    steps_ns |= {"working set": cached.stepping_ns, "link": linked.stepping_ns}
    if schedule is not None:
        # Above, these two waited for arrivals and formed steps of their own. The run with a free
        # link is not repeated: its time in the same steps is the run's own, less its copy stalls.
        if again is not None:
            steps_ns["working set"] = int(again[0][-1])
        elif not kept:
            same_steps = remedied(what, roomy, evictions, schedule)
            steps_ns["working set"] = same_steps.ledger.stepping_ns
        steps_ns["link"] = ledger.stepping_ns - sum(map(sum, ledger.copy_stalls_ns))
    return bounds_summary(
        outcome, accesses=int(accesses.sum()), used=used, min_hits=hits, cached=cached,
        linked=linked, steps_ns=steps_ns,
    )  # fmt: skip


def timed_again(
    outcome: Outcome, plan: Plan, evictions: Sequence[Eviction]
) -> tuple[npt.NDArray[np.int64], int] | None:
    """Return the ends of the very steps of a run with other evictions, and its hits.

    `plan` and `evictions` are those of the other run, and the ends are those of `Stretches.again`.
    None if the compiled back end has not kept the steps, or does not know the other run, or if
    experts are copied ahead, too.
    """
    if outcome.steps is None or not decides_alike(plan):
        return None
    server = unserved(plan, evictions)
    return None if server.compiled is None else server.compiled.again(outcome.steps)


def summarise(outcome: Outcome) -> dict[str, Any]:
    """Return `summary.json` without the bounds; docs/results.md explains its keys.

    Raise `ScenarioError` if the run has no step in the scenario's window.
    """
    plan, ledger = outcome.plan, outcome.ledger
    scenario, trace, budget, shape = plan.scenario, plan.trace, plan.budget, plan.cost.shape
    total = sum(plan.slots)
    window = find_window(scenario, outcome.requests, ledger, outcome.now_ns)
    inside = window.finished(outcome.requests)
    caches, warnings = outcome.distinct_caches, caveats(outcome)
    unused = sum(cache.unused_prefetches for cache in caches)
    if (buffers := caches[0].buffers) is not None:  # all caches share them
        unused += buffers.unused
    # Peak memory is the budget with the KV blocks that were used, instead of those set aside.
    block_bytes = scenario.memory.kv_block_tokens * shape.kv_bytes_per_token
    return {
        "name": scenario.name,
        "trace": trace.meta.model,
        "model": shape.name,
        "hardware": scenario.hardware.label,
        "hardware_changes": hardware_changes(plan),
        "cost_kind": plan.cost.hardware.cost_kind,
        **engine_facts(plan),
        **routing_facts(scenario, trace.meta, shape),
        **format_facts(scenario, shape),
        "cache_policy": _cache_policy(plan),
        "cache_scope": scenario.cache.scope,
        "cache_slots": total,
        "cache_slots_per_layer": total / trace.num_layers,
        "num_experts": trace.num_experts,
        "num_layers": trace.num_layers,
        "expert_sizes": "equal" if plan.sizes is None else "unequal",
        "prefetch_policy": find("prefetch", scenario.prefetch.policy).name,
        "placement_policy": find("placement", scenario.placement.policy).name,
        "batching_policy": find("batching", scenario.batching.policy).name,
        "knows_the_future": ", ".join(knows_the_future(scenario, hindsight=ledger.hindsight)),
        "seed": scenario.seed,
        **throughput_summary(outcome.requests, outcome.now_ns, window),
        **decode_summary(inside),
        **latency_summary(inside),
        **starvation_summary(inside),
        **cache_summary(window.totals),
        **bytes_summary(window.totals, plan.unit_bytes, unused),
        "load_bytes": _load_bytes(plan, [key for cache in caches for key in cache.preloaded]),
        **time_summary(window.totals, window.duration_ns),
        "vram_bytes": budget.capacity_bytes,
        "fixed_bytes": budget.fixed_bytes,
        "kv_bytes": budget.kv_bytes,
        "slots_bytes": budget.slots_bytes,
        "staging_bytes": budget.staging_bytes,
        **({"prefetch_buffers_bytes": budget.buffers_bytes} if budget.buffers_bytes else {}),
        "activations_bytes": budget.activations_bytes,
        **({"recurrent_bytes": budget.recurrent_bytes} if budget.recurrent_bytes else {}),
        "free_bytes": budget.free_bytes,
        "peak_vram_bytes": budget.used_bytes - budget.kv_bytes + outcome.pool.peak * block_bytes,
        "peak_kv_blocks": outcome.pool.peak,
        **_host_summary(plan),
        **prefix_summary(outcome.requests, outcome.pool),
        "caveats": list(dict.fromkeys(short for short, _ in warnings)),
        "notes": [*_notes(plan, outcome), *(full for _, full in warnings)],
    }


def _load_bytes(plan: Plan, keys: Sequence[int]) -> int:
    """Return the bytes of experts that are loaded before time zero."""
    sizes = plan.sizes
    return len(keys) * plan.cost.expert_bytes if sizes is None else sum(sizes[key] for key in keys)


def _cache_policy(plan: Plan) -> str:
    """Return the name of the eviction policy that is asked."""
    if plan.places.residents is not None:
        return Resident.name
    return str(find("eviction", plan.scenario.cache.policy).name)


def _host_summary(plan: Plan) -> dict[str, int | None]:
    """Return the split of host memory in bytes; its size is None where it is unlimited."""
    host = plan.places.host
    return {
        "host_memory_bytes": host.capacity_bytes,
        "host_weights_bytes": host.weights_bytes,
        "host_kv_bytes": host.kv_bytes,
        "host_experts_bytes": host.experts_bytes,
        "pinned_bytes": host.pinned_bytes,
    }


def _foresight(scenario: Scenario, *, hindsight: Collection[str]) -> list[str]:
    """Return notes on policies that know the future, and what policies say of themselves."""
    notes = [
        f"{name} knows the future: a bound, not a policy"
        for name in map(_in_words, knows_the_future(scenario))
    ]
    fixed = fixes_residents(find("placement", scenario.placement.policy))
    for section, family in FAMILIES.items():
        if fixed and section == "cache":
            continue  # the eviction policy is not asked
        chosen = getattr(scenario, section)
        policy = find(family, chosen.policy)
        # As the scenario spells them: a resolved path would depend on the working directory.
        if note := note_of(policy, parse_options(policy, chosen.options)):
            notes.append(note)
    if SPLIT in hindsight:
        notes.append(hindsight_note(f"{SPLIT} {scenario.cache.split}"))
    for family in sorted(set(hindsight) - {SPLIT}):
        section = POLICY_SECTIONS[family]
        notes.append(hindsight_note(find(family, getattr(scenario, section).policy).name))
    return list(dict.fromkeys(notes))


def _in_words(policy: str) -> str:
    """Return `min eviction` for `eviction min`."""
    family, _, name = policy.partition(" ")
    return f"{name} {family}"


def _router_note(router: str, shape: ModelShape) -> str | None:
    """Return a note on how a router reveals its choices and where its time is counted.

    The trace says the first, the model's sizes the second, so the two may differ. None for a
    layer-wise router that is costed as one.
    """
    if router == "layerwise" and shape.router is None:
        return None
    revealed = "as its layers run" if router == "layerwise" else "ahead"
    costed = "in the tail of each step" if shape.router else "in each layer, as model.shape says"
    return f"the router is {router}: policies see its choices {revealed}; its time is {costed}"


def _placement_notes(plan: Plan) -> list[str]:
    """Return what a reader must know of host memory and of the places of experts."""
    places, trace, total = plan.places, plan.trace, sum(plan.slots)
    host, experts, notes = places.host, trace.num_layers * trace.num_experts, []
    if places.residents is not None:
        notes.append(f"{total} of {experts} experts are in GPU memory; none of them ever leaves")
    if plan.scenario.bounds and places.lanes:
        notes.append("layers on the CPU stay there in all bounds")
    if host.capacity_bytes is None and total < experts:
        size = format_bytes(host.experts_bytes)
        notes.append(f"host memory is taken as unlimited: all {experts} experts take {size}")
    if host.needs_disk:
        notes.append(
            f"host memory holds {format_bytes(host.room_bytes or 0)} of all experts' "
            f"{format_bytes(host.experts_bytes)}; the others are read from disk"
        )
    return notes


def _recall_note(plan: Plan, outcome: Outcome) -> str | None:
    """Return a note on how often the predictions that a policy uses are right; None if none does.

    It counts the served rows, each once.
    """
    prefetch = plan.scenario.prefetch
    policy, options = policy_of(plan.scenario, "prefetch")
    if not policy.prediction_depth(options) or not outcome.requests:
        return None
    rows = np.unique(np.concatenate([request.rows for request in outcome.requests]))
    shares = prediction_recall(plan.trace, rows)
    if not shares:
        return None
    texts = [
        f"{share:.0%} of the experts {depth} layer{'s' if depth > 1 else ''} ahead"
        for depth, share in enumerate(shares, 1)
    ]
    return (
        f"{prefetch.policy} prefetch uses the trace's predictions, which contain "
        f"{', '.join(texts)}; the predictions of another model may be right less often"
    )


def _notes(plan: Plan, outcome: Outcome) -> list[str]:
    """Return the notes of `summary.json`: facts without which its numbers could be misread."""
    scenario, trace, shape = plan.scenario, plan.trace, plan.cost.shape
    notes = unused_notes(scenario)
    notes += [f"{key} is unused: {reason}" for key, reason in unread_keys(plan)]
    if routing_facts(scenario, trace.meta, shape)["sizes"] == "foreign":
        notes.append(f"a trace of {trace.meta.model} is costed with the sizes of {shape.name}")
    if trace.meta.synthetic:
        notes.append("the trace is synthetic")
        like = trace.meta.provenance.get("like")
        if isinstance(like, dict):  # written by `moesim trace synth --like`
            locality = shown(like.get("locality"), 20)
            notes.append(f"its routing is like {shown(like.get('model'))}, locality {locality}")
    notes += _foresight(scenario, hindsight=outcome.ledger.hindsight)
    notes += _placement_notes(plan)
    if (sizes := plan.sizes) is not None:
        mean = format_bytes(sum(sizes) // len(sizes))
        notes.append(f"slots are counted in experts of the mean size, {mean}")
    if note := split_note(scenario, plan.slots):
        notes.append(note)
    if (first := scenario.cache.initial_layers) and plan.places.residents is None:
        notes.append(f"all experts of the first {first} MoE layers are resident from the start")
    if scenario.bounds and not all_at_once(outcome.requests):
        notes.append(
            "arrivals are spread out: the verdict and its times in steps are of the steps that "
            "this run formed; makespan and E2E of bounds are of runs that form their own steps"
        )
    if note := _router_note(trace.meta.router, shape):
        notes.append(note)
    if note := _recall_note(plan, outcome):
        notes.append(note)
    notes += pairing_notes(scenario, outcome.requests) + file_notes(scenario)
    if scenario.replay == "sequential":
        notes.append("sequential replay inflates misses; use it only for comparison")
    if scenario.workload.prefill != "recorded":
        notes.append(f"prefill: {scenario.workload.prefill}; prompt rows are not the recorded ones")
    if (prefix := scenario.workload.cached_prefix) and scenario.workload.prefill != "skip":
        notes.append(
            f"the first {prefix} prompt tokens of each request are cached, except its last one; "
            "tokens_per_s counts them"
        )
    if scenario.memory.prefix_cache:
        notes.append(
            "tokens found in the prefix cache are not computed; tokens_per_s counts them, and KV "
            "blocks that are cached only count as free"
        )
    budget = plan.budget
    # A larger KV region takes memory from expert slots without any use.
    useful = useful_blocks(scenario, [request.max_kv_tokens for request in outcome.requests])
    stated = scenario.memory.kv.kind in ("bytes", "share") and not scenario.memory.prefix_cache
    if stated and budget.kv_blocks > useful:
        notes.append(
            f"memory.kv holds {budget.kv_blocks} KV blocks; these requests use at most {useful}"
        )
    return notes
