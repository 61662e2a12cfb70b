"""Bounds: what the best policy, enough memory or a free link would make of a run.

A run waits for experts because its policy evicts the wrong ones, because slots are few, or because
the link is slow. Three remedies take away one cause each: MIN's evictions in the same slots, a
slot for every expert, and copies that take no time. Each remedy starts with the experts that the
run itself starts with, and is judged by time in steps, which leaves out the wait for arrivals.

`min_hit_rate` is the run's own layer events scored again with hindsight. It bounds hits without
prefetching, not latency.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from moesim.metrics import latency_summary, ratio
from moesim.policies.eviction import MIN, CacheContext, Eviction
from moesim.serving.replay import Ask, Noted, Replay

if TYPE_CHECKING:
    from moesim.policies import Key, View
    from moesim.policies.batching.base import Batching
    from moesim.simulate import Outcome

Loaded = Sequence[Sequence["Key"]]
"""Of each cache, the keys that are loaded before time zero."""

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
)
# In the order of what they cost; the keys are the verdict's words.
_REMEDIES: Final = {
    "policy": ("min", "MIN's evictions"),
    "memory": ("infinite_cache", "a slot for every expert (filled at first use)"),
    "link": ("infinite_link", "copies that take no time"),
}
_WORTH_IT: Final = 10  # a remedy must save more than one part in ten


class LoadedMIN(MIN):
    """MIN in a cache that does not start empty."""

    def __init__(self, context: CacheContext, loaded: Sequence[Key]) -> None:
        super().__init__(context)
        self.book.update(dict.fromkeys(loaded))

    def preload(self) -> Sequence[Key]:
        return list(self.book)


class Endless(Eviction):
    """A slot for every key: no expert ever leaves."""

    name = "infinite"

    def __init__(self, context: CacheContext, loaded: Sequence[Key]) -> None:
        super().__init__(context)
        self.book.update(dict.fromkeys(loaded))

    def preload(self) -> Sequence[Key]:
        return list(self.book)

    def decide(self, view: View) -> Collection[Key]:
        self.book.update(dict.fromkeys(view.union))
        return ()

    def victim(self, protected: Collection[Key]) -> Key | None:
        return None


@dataclass(frozen=True, slots=True)
class Steps:
    """Notes the steps that a run forms, in `asks`."""

    asks: list[Ask]

    def batching(self, policy: Batching) -> Batching:
        return Noted(policy, self.asks)

    def eviction(self, cache: int, policy: Eviction) -> Eviction:
        return policy


@dataclass(frozen=True, slots=True)
class Remedy:
    """Answers in place of the scenario's policies: evictions, and with a schedule the steps."""

    evictions: Sequence[Eviction]
    schedule: Sequence[Ask] | None = None

    def batching(self, policy: Batching) -> Batching:
        return policy if self.schedule is None else Replay(self.schedule)

    def eviction(self, cache: int, policy: Eviction) -> Eviction:
        return self.evictions[cache]


def hindsight(outcome: Outcome, unions: Sequence[list[Key]]) -> list[LoadedMIN]:
    """MIN for each cache of a run, told the layer events to come."""
    from moesim.wiring import group_by_cache, universe_of

    plan, made = outcome.plan, []
    for number, future in enumerate(group_by_cache(plan, unions)):
        context = _context(plan.slots[number], universe_of(plan, number), future)
        made.append(LoadedMIN(context, outcome.loaded[number]))
    return made


def endless(slots: Sequence[int], loaded: Loaded) -> list[Endless]:
    """A policy for each cache that has a slot for every key."""
    return [Endless(_context(count, ()), keys) for count, keys in zip(slots, loaded, strict=True)]


def bounds_summary(
    outcome: Outcome,
    *,
    cached: Outcome,
    linked: Outcome,
    steps_ns: Mapping[str, int],
) -> dict[str, Any]:
    """The bounds' keys of `summary.json`, and the verdict: `BOUND_KEYS`.

    `cached` is the run again with a slot for every expert, `linked` with free copies; `steps_ns`
    is the time in steps with each remedy, by the verdict's word for it.
    """
    unions = outcome.ledger.layer_events()
    accesses = sum(map(len, unions))
    loaded = {key for keys in outcome.loaded for key in keys}
    first_uses = len({key for union in unions for key in union} - loaded)
    result: dict[str, Any] = {
        "min_hit_rate": ratio(min_hits(outcome, unions), accesses),
        "infinite_cache_hit_rate": ratio(accesses - first_uses, accesses),
    }
    for name, bound in (("infinite_cache", cached), ("infinite_link", linked)):
        result[f"{name}_makespan_s"] = bound.now_ns / 1e9
        result[f"{name}_e2e_p95_ms"] = latency_summary(bound.requests)["e2e_p95_ms"]
    for word, (name, _) in _REMEDIES.items():
        result[f"{name}_time_in_steps_s"] = steps_ns[word] / 1e9
    word, reason = verdict(outcome.ledger.stepping_ns, steps_ns)
    return {**result, "verdict": word, "verdict_reason": reason}


def min_hits(outcome: Outcome, unions: Sequence[list[Key]]) -> int:
    """Hits of MIN over the run's own layer events, with the run's own slots and first experts."""
    from moesim.curve import replay_hits
    from moesim.wiring import group_by_cache

    futures = group_by_cache(outcome.plan, unions)
    return sum(map(replay_hits, hindsight(outcome, unions), futures))


def verdict(now_ns: int, then_ns: Mapping[str, int]) -> tuple[str, str]:
    """What limits a run, and the time in steps that each remedy would leave of `now_ns`.

    Named is the cheapest of no remedy (*compute*), *policy*, *memory* and *link* that comes within
    a tenth of `now_ns` of the best. So a remedy is named if it saves more than a tenth of the time
    in steps, and more than a tenth over each cheaper one.
    """
    best_ns = min(then_ns.values())
    choices = {"compute": now_ns, **{word: then_ns[word] for word in _REMEDIES}}
    word = next(w for w, ns in choices.items() if (ns - best_ns) * _WORTH_IT <= now_ns)
    if word == "compute":
        lead = f"no remedy would save more than a tenth of the {_seconds(now_ns)} in steps"
    else:
        change = f"{_seconds(now_ns)} to {_change(now_ns, then_ns[word])}"
        lead = f"{_REMEDIES[word][1]} would take the time in steps from {change}"
    others = [f"{_REMEDIES[w][1]}: {_change(now_ns, then_ns[w])}" for w in _REMEDIES if w != word]
    return word, "; ".join([lead, *others])


def _change(now_ns: int, then_ns: int) -> str:
    gain = ratio(then_ns - now_ns, now_ns) or 0.0
    return f"{_seconds(then_ns)} ({gain:+.0%})"


def _seconds(time_ns: int) -> str:
    seconds = time_ns / 1e9
    return f"{seconds:#.3g} s" if seconds < 99.95 else f"{seconds:,.0f} s"


def _context(
    capacity: int, universe: Sequence[Key], future: Sequence[Sequence[Key]] | None = None
) -> CacheContext:
    rng = np.random.default_rng(0)
    return CacheContext(capacity, universe, "bypass", rng, future=future)
