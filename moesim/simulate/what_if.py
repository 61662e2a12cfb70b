"""What-ifs of a finished run: its scenario simulated again with a few keys changed.

Each change is a set of `--set` overrides, so a reader can repeat it with `moesim run`. A change may
mean nothing for a run, like a faster CPU where all experts run on the GPU. It then has a reason
instead of a result. Bounds, the run without prefetch and the timeline are left out of each
simulation.

`moesim.twin.what_if` answers other questions: it predicts another machine from measured speeds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from moesim.config.units import format_bytes
from moesim.errors import MoesimError, first_line
from moesim.hardware.hardware import Hardware, Link
from moesim.hardware.overrides import faster_link
from moesim.hardware.topology import CPU
from moesim.policies import find
from moesim.policies.placement import fixes_residents
from moesim.progress import Progress
from moesim.report.runs import SCENARIO, Run
from moesim.results.what_if import WhatIf, WhatIfName, WhatIfs
from moesim.scenario import load_scenario
from moesim.simulate.build import Plan, prepare
from moesim.simulate.rundir import all_hashes
from moesim.simulate.simulation import result_of

__all__ = ["what_ifs"]

_QUIET: Final = ("bounds=false", "timeline.steps=0")


class _Change(NamedTuple):
    """The overrides of a what-if, and what it needs in words."""

    sets: tuple[str, ...]
    needs: str


class _MeansNothingError(Exception):
    """A what-if does not apply to a run; the text is the reason."""


def what_ifs(run: Run, progress: Progress | None = None) -> WhatIfs:
    """Simulate the what-ifs of a run: link ×2, slots ×2, perfect prefetch and CPU ×2.

    A what-if that does not apply, or that cannot be simulated, has its reason instead of a summary.
    Nothing is written. `progress(what, done, total)` is called for each of them as for a run.
    """
    try:
        plan = prepare(load_scenario(run.path / SCENARIO, _quiet(run)))
        changed = _changed_inputs(run, plan)
    except (MoesimError, OSError) as error:
        return _refused(run, f"the run cannot be simulated again: {first_line(error)}")
    if "trace" in changed:
        return _refused(run, f"the trace in {plan.scenario.trace_path} was changed after the run")
    base, notes = run.summary, tuple[str, ...]()
    if changed:
        # Otherwise a change of moesim would count as an effect of the what-if.
        base = result_of(plan, _named(progress, "the run again")).summary
        notes = (
            f"the run was simulated again to compare with, because {', '.join(changed)} changed "
            "after it",
        )
    return WhatIfs(base, [_answer(name, run, plan, progress) for name in _TITLES], notes)


def _answer(name: WhatIfName, run: Run, plan: Plan, progress: Progress | None) -> WhatIf:
    title = _TITLES[name]
    try:
        sets, needs = _CHANGES[name](run, plan)
        changed = prepare(load_scenario(run.path / SCENARIO, [*_quiet(run), *sets]), plan.trace)
        if name == "slots" and changed.slots == plan.slots:
            return _unanswered(name, "the placement keeps the same experts in GPU memory anyway")
        summary = result_of(changed, _named(progress, title)).summary
    except _MeansNothingError as reason:
        return _unanswered(name, str(reason))
    except MoesimError as error:
        return _unanswered(name, f"it cannot be simulated: {first_line(error)}")
    return WhatIf(name, title, sets, needs, summary)


def _quiet(run: Run) -> list[str]:
    """Return the overrides that leave out what a what-if does not show."""
    metrics = run.scenario.get("metrics")
    asked = isinstance(metrics, dict) and metrics.get("without_prefetch")
    return [*_QUIET, *(["metrics.without_prefetch=false"] if asked else [])]


def _refused(run: Run, reason: str) -> WhatIfs:
    return WhatIfs(run.summary, [_unanswered(name, reason) for name in _TITLES], refused=reason)


def _unanswered(name: WhatIfName, reason: str) -> WhatIf:
    return WhatIf(name, _TITLES[name], reason=reason)


def _changed_inputs(run: Run, plan: Plan) -> list[str]:
    """Return what differs from the inputs that a run was made of, in words."""
    inputs = run.manifest.get("inputs")
    before = inputs if isinstance(inputs, dict) else {}
    now = all_hashes(plan.scenario)
    names = {"code": "moesim's code"}
    return [names.get(key, key) for key in now if before.get(key) != now[key]]


def _named(progress: Progress | None, what: str) -> Progress | None:
    """Return a callback under whose bar the parts of one simulation are counted."""
    return None if progress is None else lambda _part, done, total: progress(what, done, total)


def _link(run: Run, plan: Plan) -> _Change:
    hardware = plan.cost.hardware
    if not hardware.has_gpu:
        raise _MeansNothingError("the machine has no GPU, so there is no link")
    if hardware.unified:
        raise _MeansNothingError("the GPU and the CPU share one memory, so there is no link")
    if not any(run.value(key) > 0 for key in ("h2d_bytes", "states_bytes")):
        raise _MeansNothingError("nothing was copied in this run")
    host = plan.places.host
    pinned = host.num_pinned > 0
    used = {f"{'pinned' if pinned else 'pageable'}_bandwidth"}
    sets = tuple(
        f"hardware.{way}.{key}={value}B/s"
        for way, figures in faster_link(hardware, 2).items()
        for key, value in figures.items()
        if host.mixed or key in used  # the run would note that the other one is unused
    )
    ways = [_bandwidth(link, pinned) for link in (hardware.h2d, hardware.d2h)]
    texts = [f"{_in_words(2 * each)} instead of {_in_words(each)}" for each in ways]
    return _Change(sets, f"a link with {texts[0]} to the GPU, and {texts[1]} back")


def _in_words(bytes_per_s: int) -> str:
    return f"{bytes_per_s / 1e9:.4g} GB/s"


def _bandwidth(link: Link, pinned: bool) -> int:
    return link.pinned_bytes_per_s if pinned else link.pageable_bytes_per_s


def _slots(_run: Run, plan: Plan) -> _Change:
    scenario, budget, shape = plan.scenario, plan.budget, plan.cost.shape
    if isinstance(scenario.cache.split, list):
        raise _MeansNothingError("cache.split lists the slots of each layer; change that list")
    experts = plan.trace.num_layers * plan.trace.num_experts
    if budget.slots >= experts:
        raise _MeansNothingError("every expert has a slot already")
    slots = min(2 * budget.slots, experts) if budget.slots else experts
    # Slots are bytes where experts have unequal sizes.
    every = experts * shape.expert_bytes if plan.sizes is None else sum(plan.sizes)
    nbytes = min(2 * budget.slots_bytes, every)
    more = nbytes - budget.slots_bytes
    lacking = max(0, more - budget.free_bytes)
    capacity = budget.capacity_bytes + lacking
    sets = (
        f"cache.slots={slots if plan.sizes is None else f'{nbytes}B'}",
        f"memory.capacity={capacity}B",
        f"memory.kv={budget.kv_bytes}B",  # what is left for them must not change too
    )
    memory = "which is free"
    if lacking:
        have = format_bytes(budget.capacity_bytes)
        memory = f"so {format_bytes(capacity)} of GPU memory instead of {have}"
    all_of = " (all experts)" if slots == experts else ""
    return _Change(
        sets,
        f"{slots} expert slots{all_of} instead of {budget.slots}: {format_bytes(more)} more, "
        f"{memory}",
    )


def _prefetch(_run: Run, plan: Plan) -> _Change:
    prefetch = plan.scenario.prefetch
    if find("prefetch", prefetch.policy).name == "oracle":
        raise _MeansNothingError("this run has the oracle already")
    if fixes_residents(find("placement", plan.scenario.placement.policy)):
        raise _MeansNothingError("the placement fixes the experts in GPU memory; none is fetched")
    if plan.budget.slots >= plan.trace.num_layers * plan.trace.num_experts:
        raise _MeansNothingError("every expert has a slot, so nothing is left to prefetch")
    depth = prefetch.options.get("depth", 1)
    layers = "the next layer" if depth == 1 else f"the next {depth} layers"
    return _Change(
        ("prefetch.policy=oracle", f"prefetch.options={{depth: {depth}}}"),
        f"the router's choices of {layers} before they are made: a bound, which no server reaches",
    )


def _cpu(_run: Run, plan: Plan) -> _Change:
    if CPU not in plan.places.topology.names:
        raise _MeansNothingError("no expert and no layer runs on the CPU")
    hardware = plan.cost.hardware
    figures = {key: 2 * value for key, value in _cpu_figures(hardware).items() if value}
    units = {"cpu_flops": "FLOPS", "cpu_int8_ops": "FLOPS"}
    sets = tuple(f"hardware.{key}={value}{units.get(key, 'B/s')}" for key, value in figures.items())
    reads = _in_words(figures["host_memory_bandwidth"])
    return _Change(
        sets,
        f"a CPU with twice the rate of arithmetic, and host memory of {reads} instead of "
        f"{_in_words(figures['host_memory_bandwidth'] // 2)}, which copies and reads from "
        "disk share; the fixed time of a call stays",
    )


def _cpu_figures(hardware: Hardware) -> dict[str, int | None]:
    """Return the figures of the CPU and its memory that are rates, by their keys."""
    return {
        "cpu_flops": hardware.cpu_flops_per_s,
        "cpu_int8_ops": hardware.cpu_int8_ops_per_s,
        "host_memory_bandwidth": hardware.host_memory_bytes_per_s,
        "core_memory_bandwidth": hardware.core_memory_bytes_per_s,
        "cpu_memory_bandwidth": hardware.cpu_memory_bytes_per_s,
    }


_TITLES: Final[dict[WhatIfName, str]] = {
    "link": "link twice as fast",
    "slots": "twice the expert slots",
    "prefetch": "perfect prefetch",
    "cpu": "CPU twice as fast",
}
_CHANGES: Final[dict[WhatIfName, Callable[[Run, Plan], _Change]]] = {
    "link": _link,
    "slots": _slots,
    "prefetch": _prefetch,
    "cpu": _cpu,
}
