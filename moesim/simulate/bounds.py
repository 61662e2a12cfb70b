"""Bounds: the time of a run with the best evictions, with enough memory, or with a free link.

A run waits for experts because its policy evicts the wrong ones, because slots are few, or because
the link is slow. Each of three remedies removes one cause: MIN's evictions in the same slots, a
slot for every expert, and copies that take no time. A remedy starts with the run's own first
experts. It is judged by time in steps, which leaves out the wait for arrivals.

`min_hit_rate` scores the run's own layer events again with hindsight (Belady, IBM Systems Journal
1966). It bounds the hits of runs that prefetch nothing, where all experts have the same size. It
does not bound latency.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from moesim.config.units import format_bytes
from moesim.policies.eviction import MIN, CacheContext, Eviction
from moesim.results.metrics import latency_summary, ratio
from moesim.serving.budget import OnGpu, bytes_in_unused_memory
from moesim.serving.stalls import CAUSES

if TYPE_CHECKING:
    from moesim.policies import Key, View
    from moesim.serving.ledger import Ledger
    from moesim.serving.request import Request
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
)
# From the cheapest to the most expensive; the keys are the verdict's words.
_REMEDIES: Final = {
    "policy": ("min", "MIN's evictions"),
    "memory": ("infinite_cache", "a slot for every expert (filled at first use)"),
    "link": ("infinite_link", "copies that take no time"),
}
WAITED_FOR: Final = {"cpu": "CPU", "disk": "disk", "host": "host to issue work"}
_WORTH_IT: Final = 10  # a remedy must save more than one part in ten


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


def hindsight(outcome: Outcome, unions: Sequence[list[Key]]) -> list[LoadedMIN]:
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


def bounds_summary(
    outcome: Outcome,
    *,
    cached: Outcome,
    linked: Outcome,
    steps_ns: Mapping[str, int],
) -> dict[str, Any]:
    """Return the bounds and the verdict for `summary.json`, under `BOUND_KEYS`.

    `cached` is the run with a slot for every expert, `linked` with copies that take no time.
    `steps_ns` is the time in steps with each remedy, by the remedy's word in the verdict. It lacks
    `policy` where the placement fixes which experts are in GPU memory.
    """
    unions = outcome.ledger.layer_events()
    accesses = sum(map(len, unions))
    # A cache that never evicts misses each key at its first use only.
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
        result[f"{name}_time_in_steps_s"] = steps_ns[word] / 1e9 if word in steps_ns else None
    word, reason = verdict(outcome.ledger.stepping_ns, steps_ns)
    if word == "compute":
        word, waits = longest_wait(outcome.ledger)
        reason = "; ".join([reason, *waits])
    if word == "memory":
        reason = "; ".join([reason, *more_slots(outcome.plan, outcome.requests)])
    return {**result, "verdict": word, "verdict_reason": reason}


def min_hits(outcome: Outcome, unions: Sequence[list[Key]]) -> int:
    """Return MIN's hits over the run's layer events, with the run's slots and first experts."""
    from moesim.simulate.build import group_by_cache
    from moesim.simulate.curve import replay_hits

    futures = group_by_cache(outcome.plan, unions)
    return sum(map(replay_hits, hindsight(outcome, unions), futures))


def verdict(now_ns: int, then_ns: Mapping[str, int]) -> tuple[str, str]:
    """Return what limits a run, and a sentence with the time in steps under each remedy.

    The choices are no remedy (*compute*), *policy*, *memory* and *link*. The verdict is the
    cheapest whose time is within a tenth of `now_ns` of the best. So a remedy is named if it saves
    more than a tenth of the time in steps, and more than a tenth over each cheaper one. A remedy
    that `then_ns` lacks is no choice.
    """
    best_ns = min(then_ns.values())
    # In integers, so that a time exactly at the threshold is judged alike everywhere.
    remedies = [word for word in _REMEDIES if word in then_ns]
    choices = {"compute": now_ns, **{word: then_ns[word] for word in remedies}}
    word = next(w for w, ns in choices.items() if (ns - best_ns) * _WORTH_IT <= now_ns)
    if word == "compute":
        lead = f"no remedy would save more than a tenth of the {_seconds(now_ns)} in steps"
    else:
        change = f"{_seconds(now_ns)} to {_change(now_ns, then_ns[word])}"
        lead = f"{_REMEDIES[word][1]} would cut the time in steps from {change}"
    others = [f"{_REMEDIES[w][1]}: {_change(now_ns, then_ns[w])}" for w in remedies if w != word]
    if "policy" not in then_ns:
        others.append("experts never move, so no other eviction is a remedy")
    return word, "; ".join([lead, *others])


def longest_wait(ledger: Ledger) -> tuple[str, list[str]]:
    """Return what limits a run that no remedy helps, and how long the GPU waits for it.

    The choices are the CPU, the disk and the host. The longest of these waits is named if it takes
    more than a tenth of the time in steps; otherwise it is *compute*, without a text.
    """
    waits_ns = {
        cause: sum(ledger.stall_ns[CAUSES.index(cause)]) for cause in ("cpu", "disk", "host")
    }
    word = max(waits_ns, key=lambda cause: waits_ns[cause])
    if waits_ns[word] * _WORTH_IT <= ledger.stepping_ns:
        return "compute", []
    share = waits_ns[word] / ledger.stepping_ns
    return word, [f"the GPU waits {share:.0%} of this time for the {WAITED_FOR[word]}"]


def more_slots(plan: Plan, requests: Sequence[Request]) -> list[str]:
    """Return how many slots the unused memory holds, and whether all experts fit the memory.

    The first is left out if the unused memory holds less than a slot a layer. Where the placement
    fixes which experts are in GPU memory and would add none, a hint says so.
    """
    from moesim.simulate.build import residents_in

    budget, slots, sizes = plan.budget, sum(plan.slots), plan.sizes
    total = plan.trace.num_layers * plan.trace.num_experts
    every_bytes = total * plan.cost.expert_bytes if sizes is None else sum(sizes)
    rest_bytes = bytes_in_unused_memory(
        plan.scenario,
        plan.cost.shape,
        plan.cost.hardware.vram_bytes,
        [request.max_kv_tokens for request in requests],
        OnGpu.of(plan.cost.shape, plan.places.lanes),
    )
    rest = rest_bytes * total // every_bytes
    fits = "fits" if max(budget.slots_bytes, rest_bytes) >= every_bytes else "does not fit"
    texts = [f"a slot for every expert {fits} in {format_bytes(budget.capacity_bytes)}"]
    if budget.free_bytes < plan.trace.num_layers * plan.cost.expert_bytes or rest <= slots:
        return texts
    if plan.places.residents is not None:
        # The largest experts must fit, because the placement may choose any.
        rest = residents_in(plan, rest_bytes // plan.cost.expert_bytes)
    if rest > slots:
        hint = f"cache.slots: rest would give {rest} of {total} slots"
    else:
        hint = (
            f"placement {plan.scenario.placement.policy} keeps {slots} of {total} experts there, "
            "also with cache.slots: rest; its options decide"
        )
    unused = f"{format_bytes(budget.free_bytes)} of {format_bytes(budget.capacity_bytes)} of memory"
    return [f"{unused} is unused: {hint}", *texts]


def _change(now_ns: int, then_ns: int) -> str:
    gain = ratio(then_ns - now_ns, now_ns) or 0.0
    return f"{_seconds(then_ns)} ({gain:+.0%})"


def _seconds(time_ns: int) -> str:
    seconds = time_ns / 1e9
    return f"{seconds:#.3g} s" if seconds < 99.95 else f"{seconds:,.0f} s"


def _context(
    plan: Plan, number: int, universe: Sequence[Key], future: Sequence[Sequence[Key]] | None = None
) -> CacheContext:
    rng = np.random.default_rng(0)  # required by the context; neither policy draws from it
    capacity, sizes = plan.capacity(number), plan.sizes
    return CacheContext(capacity, universe, "bypass", rng, future=future, sizes=sizes)
