"""Bounds that make the decisions of the run itself: their times follow from the run's, at no cost.

Two remedies of the verdict often change no decision:

- *A free link.* If all requests arrive at once and nothing is copied ahead, no decision depends on
  time. Each step is then as long as in the run, less its waits for copies (`without_copies`).
- *A slot for every expert.* If the run has these slots, loads each expert once and keeps it, the
  bound is the run (`keeps_all`).

In all other cases the bound is a simulation of its own (`moesim.simulate.bounds`). Tests compare
both ways.

Shapes: S steps, R requests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moesim.policies import find
from moesim.results.metrics import latency_summary, percentiles_ms
from moesim.serving.knowledge import KNOWLEDGE
from moesim.serving.stalls import DEMAND, READBACK

if TYPE_CHECKING:
    from moesim.serving.request import Request
    from moesim.simulate import Outcome
    from moesim.simulate.build import Plan

__all__ = [
    "BoundTimes", "compulsory_only", "decides_alike", "ending_at", "keeps_all", "without_copies",
]  # fmt: skip

Ints = npt.NDArray[np.int64]
_ID_BYTES = 4  # as in the server: an expert id or a sampled token on its way to the host


@dataclass(frozen=True, slots=True)
class BoundTimes:
    """What a bound says of a run: its end, its 95th percentile of E2E, and its time in steps."""

    now_ns: int
    e2e_p95_ms: float | None
    stepping_ns: int

    @classmethod
    def of(cls, outcome: Outcome) -> BoundTimes:
        """Return the times of a simulated bound."""
        e2e_p95_ms = latency_summary(outcome.requests)["e2e_p95_ms"]
        return cls(outcome.now_ns, e2e_p95_ms, outcome.ledger.stepping_ns)


def decides_alike(plan: Plan) -> bool:
    """Return whether decisions depend on the layer events and the evictions alone.

    That is so where nothing is copied ahead, and where absent experts are always copied.
    """
    ahead = find("prefetch", plan.scenario.prefetch.policy).active
    return not ahead and not plan.places.elsewhere


def compulsory_only(outcome: Outcome, used: set[int], misses: int) -> bool:
    """Return whether a run loaded each expert once at most, and has kept them all.

    `used` are the keys of its layer events, of which `misses` were absent.
    """
    caches = outcome.distinct_caches
    loaded = {key for cache in caches for key in cache.preloaded}
    resident = {key for cache in caches for key in cache.residents}
    return misses == len(used - loaded) and resident == used | loaded


def keeps_all(outcome: Outcome, used: set[int]) -> bool:
    """Return whether a run is its own bound with a slot for every expert.

    `used` are the keys of its layer events.
    """
    plan, ledger = outcome.plan, outcome.ledger
    roomy = plan.with_all_slots()
    same = (plan.slots, plan.capacities, plan.places) == (
        roomy.slots,
        roomy.capacities,
        roomy.places,
    )
    return (
        same and decides_alike(plan) and compulsory_only(outcome, used, sum(ledger.demand_copies))
    )


def without_copies(outcome: Outcome) -> BoundTimes | None:
    """Return the times of a run with copies that take no time.

    None if they do not follow from the run's own times.
    """
    ledger = outcome.ledger
    if not _link_only_delays(outcome.plan) or not ledger.num_steps:
        return None
    causes = [sum(by_layer) for by_layer in ledger.stall_ns]
    if any(ns for cause, ns in enumerate(causes) if cause not in (READBACK, DEMAND)):
        return None
    steps = ledger.step_columns()
    start_S, finish_S = steps["start_ns"], steps["finish_ns"]
    ends = np.concatenate((start_S[:1], finish_S))  # each step begins when the one before ends
    readback_S = _readbacks_ns(outcome, ends, steps["tokens"])
    if (start_S != ends[:-1]).any() or ends[0] or readback_S.sum() != causes[READBACK]:
        return None
    then_S = finish_S - start_S - steps["stall_ns"] + readback_S
    return ending_at(outcome, np.concatenate(([0], np.cumsum(then_S))))


def ending_at(outcome: Outcome, ends: Ints) -> BoundTimes:
    """Return the times of a run with the same steps, which end at other times.

    All requests arrive at once. `ends` [S + 1] begins with the start, 0.
    """
    own_ends = np.concatenate(([0], outcome.ledger.step_columns()["finish_ns"]))
    done = [request.token_ns[-1] for request in outcome.requests if request.status == "finished"]
    now_ns = int(ends[-1])
    e2e_p95_ms = percentiles_ms(ends[np.searchsorted(own_ends, done)])[95]
    return BoundTimes(now_ns, e2e_p95_ms, now_ns)


def _link_only_delays(plan: Plan) -> bool:
    """Return whether copies decide when a step's work runs, but neither which nor how long.

    Then a step is computations and read-backs, one after another, with waits for copies between.
    """
    scenario, engine = plan.scenario, plan.engine
    host_ns = (engine.launch_ns, engine.copy_ns, engine.event_ns)
    return (
        decides_alike(plan)
        and scenario.workload.arrivals.kind == "all_at_once"
        and scenario.replay == "atomic"
        and not scenario.cache.write_back
        and not plan.places.lanes
        and plan.sizes is None
        and not any(host_ns)
        and engine.sorting != "device"
        and KNOWLEDGE[plan.trace.meta.router].uniform
        and not plan.places.topology.resources
        and not plan.prices().landing_ns
    )


def _readbacks_ns(outcome: Outcome, ends: Ints, tokens_S: Ints) -> Ints:
    """Return how long the GPU waits in each step for ids and sampled tokens, [S]."""
    plan, trace = outcome.plan, outcome.plan.trace
    cost = plan.prices()
    sampled_S = np.bincount(
        np.searchsorted(ends[1:], _emitted_ns(outcome.requests)), minlength=len(tokens_S)
    )
    result = _each(cost.readback_ns, _ID_BYTES * np.maximum(sampled_S, 1))
    if not KNOWLEDGE[trace.meta.router].queued:
        result += trace.num_layers * _each(cost.readback_ns, _ID_BYTES * trace.top_k * tokens_S)
    return result


def _emitted_ns(requests: Sequence[Request]) -> Ints:
    """Return the time of each token that a step has computed."""
    # The first token of a prompt that is cached whole is no step's.
    times = [each.token_ns[each.first_row_position >= each.prompt_tokens :] for each in requests]
    return np.fromiter(chain.from_iterable(times), np.int64)


def _each(function: Callable[[int], int], values: Ints) -> Ints:
    """Return the function of each value; it is called once for equal values."""
    distinct, places = np.unique(values, return_inverse=True)
    return np.array([function(value) for value in distinct.tolist()], np.int64)[places]
