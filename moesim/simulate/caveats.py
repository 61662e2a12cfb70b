"""Caveats: settings of a scenario that a run could not follow, or not in full.

Sure mistakes are refused before a run. Settings that may be intended are simulated, and reported:
in a few words under every figure, in full among the notes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from moesim.config.units import format_bytes, format_duration_ns
from moesim.engines.interface import foreign_interface
from moesim.policies import find
from moesim.results.metrics import ratio
from moesim.scenario.arrivals import Closed, FromFile, Recorded
from moesim.scenario.metrics import Window
from moesim.serving.knowledge import KNOWLEDGE
from moesim.serving.request import all_at_once
from moesim.simulate.checks import policy_of
from moesim.simulate.unread import missing_rates
from moesim.workload.workload import drawn_from

if TYPE_CHECKING:
    from moesim.simulate import Outcome
    from moesim.simulate.build import Plan

_OF_CPU: Final = (
    "cpu_flops",
    "cpu_efficiency",
    "cpu_overhead",
    "core_memory_bandwidth",
    "host_memory_bandwidth",
    "host_memory_efficiency",
)
"""The figures of a machine from which durations on the CPU follow."""

Caveat = tuple[str, str]
"""A short text, without numbers that differ from run to run, and the full text."""


def caveats(outcome: Outcome) -> list[Caveat]:
    """Return the caveats of a finished run, as (short text, full text)."""
    plan = outcome.plan
    return [
        *_units(plan),
        *_machine(plan),
        *_engine(plan),
        *_interface(plan),
        *_integers(plan),
        *_memory(plan),
        *_sizes(plan),
        *_placement(plan),
        *_look_ahead(plan),
        *_prefetch(outcome),
        *_workload(outcome),
        *_timeline(outcome),
        *_window(outcome),
    ]


def _units(plan: Plan) -> Iterator[Caveat]:
    scenario = plan.scenario
    for key, note in scenario.units_read().items():
        yield f"{key} has no unit", note
    for key, figure in plan.cost.hardware.figures.items():
        if figure.bare:
            profile = scenario.hardware.label
            yield f"{key} of the profile has no unit", f"{key} of {profile} {figure.bare}"


def _machine(plan: Plan) -> Iterator[Caveat]:
    scenario = plan.scenario
    if scenario.hardware.gpu is not None:
        for supposed in scenario.assemble().supposed:
            yield "what no text says of the machine is assumed", supposed


def _engine(plan: Plan) -> Iterator[Caveat]:
    name, hardware = plan.scenario.engine.profile, plan.cost.hardware
    for key, origin in plan.engine.figures.items():
        if origin.bare:
            yield f"{key} of the engine has no unit", f"{key} of {name} {origin.bare}"
    if plan.engine.gpu and hardware.operations_of(plan.cost.shape) is not None:
        yield (
            f"measured operations are not used under engine {name}",
            f"{plan.scenario.hardware.profile} has measured operations of this model; the engine "
            f"{name} has kernels of its own, so only engine: ideal uses them",
        )


def _integers(plan: Plan) -> Iterator[Caveat]:
    """Yield each missing rate of integers by which an engine's kernels would multiply weights."""
    for key in missing_rates(plan):
        yield (
            f"without {key}, integer products count at the rate of floats",
            f"{plan.scenario.hardware.label} has no {key}, so under engine "
            f"{plan.scenario.engine.profile} products with quantised weights count at the rate of "
            "floats",
        )


def _interface(plan: Plan) -> Iterator[Caveat]:
    name, vendor = plan.engine.name, foreign_interface(plan.engine, plan.cost.hardware)
    if vendor is not None:
        yield (
            f"engine {name} has no kernels for cards of {vendor}",
            f"engine {name} has no kernels for cards of {vendor}, like {plan.cost.hardware.name}; "
            f"its figures of {plan.interface} are used",
        )


def _memory(plan: Plan) -> Iterator[Caveat]:
    scenario, trace, budget = plan.scenario, plan.trace, plan.budget
    slots, total = scenario.cache.slots, trace.num_layers * trace.num_experts
    # Less than a whole expert too many is a rounded number, not a misunderstanding.
    every_bytes = total * plan.cost.expert_bytes if plan.sizes is None else sum(plan.sizes)
    if slots.kind == "bytes" and slots.value >= every_bytes + plan.cost.expert_bytes:
        yield (
            "cache.slots is more than all experts take",
            f"cache.slots is {format_bytes(int(slots.value))}; all {total} experts take "
            f"{format_bytes(budget.slots_bytes)}, and no more is used",
        )
    # A placement that fixes the experts on the GPU leaves whole layers to the CPU on purpose.
    fixed = plan.places.residents is not None
    if not fixed and sum(plan.slots) > 0 and (empty := plan.slots.count(0)):
        yield "some layers have no slot", _without_slots(plan, empty)
    # Not refused: a larger card of the same kind is a fair question.
    vram_bytes = plan.cost.hardware.vram_bytes
    if budget.capacity_bytes > vram_bytes:
        yield (
            f"memory.capacity is more than {scenario.hardware.label} has",
            f"memory.capacity is {format_bytes(budget.capacity_bytes)}; "
            f"{scenario.hardware.label} has {format_bytes(vram_bytes)}",
        )


def _sizes(plan: Plan) -> Iterator[Caveat]:
    shape = plan.cost.shape
    if not shape.equal_sizes:
        sizes = shape.sizes()
        least, most = format_bytes(min(sizes)), format_bytes(max(sizes))
        yield (
            "experts have unequal sizes, so MIN is no bound",
            f"experts take {least} to {most}; MIN bounds the hits only where all sizes are equal",
        )


def _placement(plan: Plan) -> Iterator[Caveat]:
    places, hardware = plan.places, plan.cost.hardware
    if not places.elsewhere:
        return
    policy = find("placement", plan.scenario.placement.policy).name
    if places.residents is None:
        yield (
            "placement estimates ignore that host memory is shared",
            f"{policy} placement estimates durations on idle lanes; CPU work, copies and reads "
            "that share host memory take longer",
        )
    assumed = [key for key in _OF_CPU if key in hardware.figures]
    assumed = [key for key in assumed if hardware.figures[key].kind == "assumed"]
    # Where the whole profile is assumed, every report says so.
    if assumed and hardware.measured is not None:
        yield (
            "figures of the CPU are assumed",
            f"{', '.join(assumed)} of {plan.scenario.hardware.label} are assumed; other figures "
            "are measured",
        )


def _without_slots(plan: Plan, empty: int) -> str:
    """Return the full text for `empty` layers whose experts are copied at each use."""
    slots, layers = plan.scenario.cache.slots, plan.trace.num_layers
    if isinstance(plan.scenario.cache.split, list):
        return f"cache.split gives no slot to {empty} of {layers} layers"
    # A total that would fit one layer was probably meant for each.
    meant = slots.kind == "count" and slots.value <= plan.trace.num_experts
    hint = f"; did you mean {slots.value}/layer?" if meant else ""
    total = sum(plan.slots)
    return f"cache.slots is {total} in all for {layers} layers: none for {empty} of them{hint}"


def _look_ahead(plan: Plan) -> Iterator[Caveat]:
    if plan.places.residents is not None:
        return  # the eviction policy is not asked
    eviction, router = policy_of(plan.scenario, "cache")[0], plan.trace.meta.router
    # Not refused: as a control beside a router that reveals its choices, it is a fair question.
    if eviction.looks_ahead and KNOWLEDGE[router].reach == 0:
        yield (
            f"the router reveals nothing ahead to {eviction.name}",
            f"{eviction.name} eviction sees no next use: the trace's router is {router}, which "
            "reveals nothing ahead",
        )


def _prefetch(outcome: Outcome) -> Iterator[Caveat]:
    plan, ledger = outcome.plan, outcome.ledger
    policy, options = policy_of(plan.scenario, "prefetch")
    # Not every policy has a depth, or a number as such.
    depth, layers = getattr(options, "depth", 1), plan.trace.num_layers
    # Past the last layer, the next step's layers may be known.
    if isinstance(depth, int) and depth >= 2 * layers:
        yield (
            f"prefetch looks {depth} layers ahead of {layers}",
            f"prefetch.options.depth is {depth}; two steps have {2 * layers} layers",
        )
    # By copies issued, because a copy that never landed was still tried.
    if policy.active and not sum(ledger.prefetch_copies):
        eviction = find("eviction", plan.scenario.cache.policy).name
        refused = ledger.prefetch_refused
        why = f"; {eviction} refused {refused} a slot" if refused else ""
        yield "nothing was prefetched", f"{policy.name} prefetch fetched nothing{why}"


def _workload(outcome: Outcome) -> Iterator[Caveat]:
    scenario, requests = outcome.plan.scenario, outcome.requests
    pool = len(drawn_from(scenario, outcome.plan.trace))
    # Resampling draws with repetition by definition, so its repeats are no surprise.
    if scenario.workload.order != "resampled" and len(requests) > pool:
        yield (
            "requests repeat those of the trace",
            f"{len(requests)} requests repeat the {pool} of the trace that may be drawn",
        )
    wanted = scenario.workload.requests
    if wanted is not None and len(requests) < wanted:
        yield (
            "fewer requests than asked for",
            f"workload.requests is {wanted}; the file has {len(requests)}",
        )
    if tiled := sum(request.tiled_rows for request in requests):
        share = ratio(tiled, sum(len(request.rows) for request in requests)) or 0
        drawn = scenario.workload.pairing.beyond == "resample"
        origin = "drawn at random from" if drawn else "tiled from further sequences of"
        yield (
            f"rows are {'drawn' if drawn else 'tiled'} beyond recorded sequences",
            f"{share:.1%} of the rows are {origin} the domain",
        )
    if rejected := sum(request.status == "rejected" for request in requests):
        yield (
            "requests were rejected",
            f"{rejected} {'request' if rejected == 1 else 'requests'} can never fit into KV memory "
            f"and {'was' if rejected == 1 else 'were'} rejected",
        )
    how = scenario.workload.arrivals
    recorded = isinstance(how, Recorded) or (isinstance(how, FromFile) and how.times == "file")
    # Valid, but probably not what `recorded` was chosen for.
    if recorded and len(requests) > 1 and all_at_once(requests):
        yield (
            "all recorded arrivals are at zero",
            "all recorded arrivals are at zero, so all requests arrive at once",
        )
    if isinstance(how, Closed) and how.clients >= len(requests):
        yield (
            "at least as many clients as requests",
            f"workload.arrivals has {how.clients} clients for {len(requests)} requests, so all "
            "requests arrive at once",
        )


def _timeline(outcome: Outcome) -> Iterator[Caveat]:
    timeline, steps = outcome.plan.scenario.timeline, outcome.ledger.num_steps
    # Only now: the number of steps is a result of the run.
    if timeline.steps and timeline.first_step >= max(1, steps):
        yield (
            "the timeline starts after the last step",
            f"timeline.first_step is {timeline.first_step}; the run has {steps} steps, numbered "
            "from 0",
        )


def _window(outcome: Outcome) -> Iterator[Caveat]:
    """Yield the window, because all numbers under it are of a part of the run."""
    chosen = outcome.plan.scenario.metrics.window
    if chosen is None or chosen == Window():
        return
    if chosen.by_time:
        until = "the end" if chosen.until is None else format_duration_ns(chosen.until)
        part = f"of steps from {format_duration_ns(chosen.after or 0)} to {until}"
    else:
        ends = {"first": chosen.skip_requests, "last": chosen.last}
        left_out = " and ".join(f"the {end} {count}" for end, count in ends.items() if count)
        part = f"without {left_out} requests"
    yield (
        f"numbers are {part}",
        f"numbers are {part}; bounds, verdict, memory and the tables of layers, steps and requests "
        "are of the whole run",
    )
