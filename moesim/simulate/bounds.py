"""Bounds: the time of a run with the best evictions, with enough memory, or with a free link.

A run waits for experts because its policy evicts the wrong ones, because slots are few, or because
the link is slow. Each of three remedies removes one cause: MIN's evictions in the same slots, a
slot for every expert, and copies that take no time. A remedy starts with the run's own first
experts. It is judged by time in steps, which leaves out the wait for arrivals
(`moesim.simulate.verdict`). A remedy that changes no decision is not simulated
(`moesim.simulate.same_decisions`).

`min_hit_rate` scores the run's own layer events again with hindsight (Belady, IBM Systems Journal
1966). It bounds the hits of runs that prefetch nothing, where all experts have the same size. It
does not bound latency.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from moesim.policies.batching import Batching
from moesim.policies.eviction import MIN, CacheContext, Eviction
from moesim.results.metrics import ratio
from moesim.serving.replay import Replay
from moesim.simulate.facts import provenance
from moesim.simulate.same_decisions import BoundTimes
from moesim.simulate.verdict import REGRET_KEYS, more_slots, regrets, spent_of, verdict

if TYPE_CHECKING:
    from moesim.policies import Key, View
    from moesim.policies.event_lists import EventLists
    from moesim.simulate import Outcome
    from moesim.simulate.build import Plan

Loaded = Sequence[Sequence["Key"]]
"""The keys that are loaded before time zero, by cache."""

BOUND_KEYS = (
    "min_hit_rate",
    "infinite_cache_hit_rate",
    "infinite_cache_makespan_s",
    "infinite_cache_e2e_p95_ms",
    "infinite_link_makespan_s",
    "infinite_link_e2e_p95_ms",
    "min_time_in_steps_s",
    "infinite_cache_time_in_steps_s",
    "infinite_link_time_in_steps_s",
    "verdict",
    "verdict_reason",
    *REGRET_KEYS,
)
_RUNS: Final = {"policy": "min", "working set": "infinite_cache", "link": "infinite_link"}
"""The part of a key that names the run with each remedy."""


class LoadedMIN(MIN):
    """MIN (Belady) in a cache that starts with `loaded`."""

    def __init__(self, context: CacheContext, loaded: Sequence[Key]) -> None:
        super().__init__(context)
        self.book.update(dict.fromkeys(loaded))

    def preload(self) -> Sequence[Key]:
        return list(self.book)


class Endless(Eviction):
    """A slot for every key: no expert ever leaves."""

    name = "infinite"
    by_bytes = True

    def __init__(self, context: CacheContext, loaded: Sequence[Key]) -> None:
        super().__init__(context)
        self.book.update(dict.fromkeys(loaded))

    def preload(self) -> Sequence[Key]:
        return list(self.book)

    def decide(self, view: View) -> Collection[Key]:
        self.book.update(dict.fromkeys(view.union))
        return ()

    def victim(self, protected: Collection[Key]) -> Key | None:
        return None  # with a slot for every key, a copy always has a free slot


def hindsight(outcome: Outcome, unions: Sequence[Sequence[Key]]) -> list[LoadedMIN]:
    """Return MIN for each cache of a run, with its future: `unions`, the run's layer events."""
    from moesim.simulate.build import group_by_cache, universe_of

    plan = outcome.plan
    policies = []
    for number, future in enumerate(group_by_cache(plan, unions)):
        context = _context(plan, number, universe_of(plan, number), future)
        policies.append(LoadedMIN(context, outcome.loaded[number]))
    return policies


def endless(plan: Plan, loaded: Loaded) -> list[Endless]:
    """Return a policy that evicts nothing for each cache of a plan with slots for all keys."""
    return [Endless(_context(plan, number, ()), keys) for number, keys in enumerate(loaded)]


class ReplayAtOnce(Replay):
    """Steps of an earlier run, where all requests are present from the start.

    No step has to wait for its requests. So the scheduler need not show the whole queue, which may
    be long, before each step.
    """

    ready = Batching.ready


def bounds_summary(
    outcome: Outcome,
    *,
    accesses: int,
    used: Collection[Key],
    min_hits: int,
    cached: BoundTimes,
    linked: BoundTimes,
    steps_ns: Mapping[str, int],
) -> dict[str, Any]:
    """Return the bounds and the verdict for `summary.json`, under `BOUND_KEYS`.

    The run's layer events have `accesses` to the `used` keys, and MIN has `min_hits` in them.
    `cached` is the run with a slot for every expert, `linked` with copies that take no time.
    `steps_ns` is the time in steps with each remedy, by the remedy's word in the verdict. It lacks
    `policy` where the placement fixes which experts are in GPU memory. The reason ends with where
    routing and sizes are from, unless both are one model's.
    """
    # A cache that never evicts misses each key at its first use only.
    loaded = {key for keys in outcome.loaded for key in keys}
    first_uses = len(set(used) - loaded)
    result: dict[str, Any] = {
        "min_hit_rate": ratio(min_hits, accesses),
        "infinite_cache_hit_rate": ratio(accesses - first_uses, accesses),
    }
    for name, bound in (("infinite_cache", cached), ("infinite_link", linked)):
        result[f"{name}_makespan_s"] = bound.now_ns / 1e9
        result[f"{name}_e2e_p95_ms"] = bound.e2e_p95_ms
    for word, name in _RUNS.items():
        result[f"{name}_time_in_steps_s"] = steps_ns[word] / 1e9 if word in steps_ns else None
    now_ns, spent_ns = outcome.ledger.stepping_ns, spent_of(outcome.ledger)
    word, reason = verdict(now_ns, steps_ns, spent_ns)
    texts = [reason]
    if word == "working set":
        texts += more_slots(outcome.plan, outcome.requests)
    texts += filter(None, [provenance(outcome.plan)])
    return {
        **result,
        "verdict": word,
        "verdict_reason": "; ".join(texts),
        **regrets(now_ns, steps_ns, spent_ns),
    }


def min_hits(outcome: Outcome, unions: EventLists) -> int:
    """Return MIN's hits over the run's layer events, with the run's slots and first experts."""
    from moesim.simulate.build import group_by_cache
    from moesim.simulate.curve import replay_hits

    futures = group_by_cache(outcome.plan, unions)
    return sum(map(replay_hits, hindsight(outcome, unions), futures))


def _context(
    plan: Plan, number: int, universe: Sequence[Key], future: Sequence[Sequence[Key]] | None = None
) -> CacheContext:
    rng = np.random.default_rng(0)  # required by the context; neither policy draws from it
    capacity, sizes = plan.capacity(number), plan.sizes
    return CacheContext(capacity, universe, "bypass", rng, future=future, sizes=sizes)
