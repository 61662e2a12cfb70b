"""The baseline of a run that prefetches: the same run without prefetch.

It has the same trace, slots, evictions, placement and machine. The difference of the two times in
steps is what prefetching saves or loses. If arrivals are spread out, the baseline serves the steps
that the run formed, as the remedies of the verdict do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from moesim.policies import find
from moesim.progress import Progress
from moesim.results.metrics import ratio
from moesim.scenario.metrics import Metrics
from moesim.scenario.sections import Prefetch, Timeline

if TYPE_CHECKING:
    from moesim.scenario import Scenario
    from moesim.simulate import Outcome

__all__ = ["BASELINE_KEYS", "baseline_of", "has_baseline"]

BASELINE_KEYS: Final = (
    "no_prefetch_time_in_steps_s",
    "prefetch_saved_s",
    "prefetch_saved_share",
)
_MOST: Final = 256
_TIMES_NS: dict[str, int] = {}
"""Times in steps of baselines that this process has simulated, by fingerprint; at most `_MOST`."""


def has_baseline(scenario: Scenario) -> bool:
    """Return whether a scenario asks for its run without prefetch, and prefetches anything."""
    wanted = scenario.metrics.without_prefetch
    if wanted is None:
        wanted = scenario.bounds
    return wanted and find("prefetch", scenario.prefetch.policy).active


def baseline_of(outcome: Outcome, progress: Progress | None = None) -> dict[str, Any]:
    """Return `BASELINE_KEYS` of `summary.json`; {} if the scenario asks for no baseline.

    Runs of one process that differ in prefetch alone share a baseline, if all requests arrive at
    once.
    """
    if not has_baseline(outcome.plan.scenario):
        return {}
    now_ns = outcome.ledger.stepping_ns
    without_ns = _time_without_ns(outcome, progress)
    saved_ns = without_ns - now_ns
    return {
        "no_prefetch_time_in_steps_s": without_ns / 1e9,
        "prefetch_saved_s": saved_ns / 1e9,
        "prefetch_saved_share": ratio(saved_ns, without_ns),
    }


def _time_without_ns(outcome: Outcome, progress: Progress | None) -> int:
    """Return the time in steps of a run without its prefetch policy."""
    from moesim.simulate.bounds import ReplayAtOnce
    from moesim.simulate.build import prepare
    from moesim.simulate.rundir import fingerprint
    from moesim.simulate.simulation import simulate

    plan, schedule = outcome.plan, outcome.repeated
    # Keys that change no time are set alike, so that more runs share a baseline.
    changes: dict[str, Any] = {"name": "baseline", "bounds": False, "prefetch": Prefetch()}
    changes |= {"metrics": Metrics(), "timeline": Timeline()}
    scenario = plan.scenario.model_copy(update=changes)
    # Steps that a run formed are those of no other run, and a trace in memory has no fingerprint.
    key = fingerprint(scenario) if plan.as_named and schedule is None else None
    if key is not None and key in _TIMES_NS:
        return _TIMES_NS[key]
    # Planned anew, because the prefetch policy may take memory of its own.
    served = simulate(
        prepare(scenario, plan.trace, engine=plan.engine),
        batching=None if schedule is None else ReplayAtOnce(schedule),
        at_once=schedule is not None,
        what="no prefetch",
        progress=progress,
        unions=outcome.unions,
    )
    if key is not None:
        if len(_TIMES_NS) >= _MOST:
            _TIMES_NS.clear()
        _TIMES_NS[key] = served.ledger.stepping_ns
    return served.ledger.stepping_ns
