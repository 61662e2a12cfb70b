"""The hits of each step of a replay, so that a hit rate has an interval.

`curve` gives one number for a whole trace. Here the steps stay apart. They are cut into blocks of
consecutive steps, and the blocks are the sample (*batch means*: Law, *Simulation Modeling and
Analysis*, chapter 9). All policies see the same steps, so their differences are taken block by
block. Events are those of `curve`, and so are the hits: their sum is the curve's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import numpy.typing as npt

from moesim.errors import UsageError
from moesim.policies import Key, View, parse_options
from moesim.policies.eviction.base import CacheContext
from moesim.policies.guard import find_policy, make_eviction
from moesim.report.statistics import Estimate, difference
from moesim.simulate.accesses import from_unions
from moesim.simulate.curve import Scope, Stream, event_streams, lock_step
from moesim.simulate.recency import recency_depths

if TYPE_CHECKING:
    from moesim.trace import Trace

__all__ = ["BLOCKS", "Order", "StepHits", "points", "step_hits"]

Order = Literal["recorded", "ascending", "random"]
Union = Sequence[Key]
BLOCKS: Final = 9
"""Blocks of steps of a replay; the first is left out, because caches fill in it."""


@dataclass(frozen=True, slots=True)
class StepHits:
    """Hits and uses of each step, all layers together.

    `hits`: int64 (steps, capacities). `uses`: distinct experts of layer events, int64 (steps,).
    `rows`: requests in the step, int64 (steps,).
    """

    capacities: tuple[int, ...]
    hits: npt.NDArray[np.int64]
    uses: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]

    @property
    def rates(self) -> npt.NDArray[np.float64]:
        """The hit rate at each capacity, over all steps, (capacities,)."""
        return np.asarray(self.hits.sum(axis=0) / self.uses.sum(), np.float64)

    def block_rates(self, blocks: int, *, skip: int = 1, batch: int = 1) -> npt.NDArray[np.float64]:
        """Return the hit rates of blocks of consecutive steps, (blocks - skip, capacities).

        The first `skip` blocks, in which caches fill, are left out. Only steps of at least `batch`
        requests count.

        Raises:
            UsageError: there are fewer such steps than blocks.
        """
        full = np.flatnonzero(self.rows >= batch)
        if len(full) < blocks:
            raise UsageError(
                f"{len(full)} steps have {batch} requests or more, too few for {blocks} blocks; "
                "use a smaller batch, or a trace of more requests"
            )
        parts = np.array_split(full, blocks)[skip:]
        return np.array([self.hits[part].sum(axis=0) / self.uses[part].sum() for part in parts])


def step_hits(
    trace: Trace,
    policy: str | tuple[str, Mapping[str, Any]],
    *,
    capacities: Sequence[int],
    scope: Scope = "per_layer",
    batch: int = 1,
    replay: Literal["atomic", "sequential"] = "atomic",
    order: Order = "recorded",
    admission: str = "bypass",
    popularity: Mapping[Key, int] | None = None,
    seed: int = 0,
) -> StepHits:
    """Return the hits of each step of a replay, at each capacity in slots per layer.

    `order` says in which order the experts of an event are used: as recorded, by id, or drawn.
    `popularity` are the counts that a static placement learnt elsewhere; by default it counts the
    replayed trace, which is hindsight. The other arguments are those of `curve`.

    Raises:
        UsageError: an argument is wrong.
        PolicyViolation: a policy keeps more keys than its capacity.
    """
    name, options = (policy, {}) if isinstance(policy, str) else policy
    order_rows = lock_step(trace, batch)
    slots = [c if scope == "per_layer" else c * trace.num_layers for c in capacities]
    hits = np.zeros((len(order_rows), len(slots)), np.int64)
    uses = np.zeros(len(order_rows), np.int64)
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0x0D,)))
    for stream in event_streams(trace, scope, batch, "atomic", seed):
        unions = [_ordered(union, order, rng) for union in stream.unions]
        steps = np.arange(len(unions)) // (len(unions) // len(order_rows))
        uses += np.bincount(steps, [len(union) for union in unions], len(uses)).astype(np.int64)
        if replay == "sequential":
            steps = np.repeat(steps, [len(union) for union in unions])
            unions = [(key,) for union in unions for key in union]
        hits += _Replay(name, options, stream, unions, steps, admission, popularity).hits(
            slots, len(order_rows)
        )
    rows = np.array([len(step) for step in order_rows])
    return StepHits(tuple(capacities), hits, uses, rows)


def points(
    ours: StepHits, theirs: StepHits, batch: int = 1, blocks: int = BLOCKS
) -> list[Estimate]:
    """Return the difference of two hit rates in points, paired by blocks, at each capacity.

    Raises:
        UsageError: too few steps have `batch` requests.
    """
    mine, other = (100 * hits.block_rates(blocks, batch=batch) for hits in (ours, theirs))
    return [
        difference(mine[:, column].tolist(), other[:, column].tolist(), relative=False)
        for column in range(mine.shape[1])
    ]


def _ordered(union: Union, order: Order, rng: np.random.Generator) -> Union:
    if order == "recorded":
        return union
    if order == "ascending":
        return sorted(union)
    return [int(key) for key in rng.permutation(np.asarray(union, np.int64))]


@dataclass(frozen=True, slots=True)
class _Replay:
    """One policy on the events of one cache; `steps` is the step of each event."""

    name: str
    options: Mapping[str, Any]
    stream: Stream
    unions: Sequence[Union]
    steps: npt.NDArray[np.int64]
    admission: str
    popularity: Mapping[Key, int] | None

    def hits(self, slots: Sequence[int], num_steps: int) -> npt.NDArray[np.int64]:
        """Return the hits of each step at each number of slots, (steps, slots)."""
        if self.name in ("lru", "static") and self.admission == "bypass":
            return self._by_depth(slots, num_steps)
        counts = [list(self._replayed(capacity)) for capacity in slots]
        return np.array(
            [np.bincount(self.steps, each, num_steps) for each in counts], np.int64
        ).T.reshape(num_steps, len(slots))

    def _by_depth(self, slots: Sequence[int], num_steps: int) -> npt.NDArray[np.int64]:
        """Return the hits of a policy whose caches of all sizes are the tops of one stack."""
        deepest = len(self.stream.universe)
        accesses = from_unions(self.unions, self.stream.universe)
        if self.name == "lru":
            depths = recency_depths(accesses)
        else:
            # The best key first, so c slots hold the first c keys.
            best = np.array(self._policy(deepest).preload(), np.int64) - accesses.first_key
            place = np.empty(deepest, np.int64)
            place[best] = np.arange(deepest)
            depths = place[accesses.keys]
        step = self.steps[accesses.events()]
        # One more than the depth: in c slots, those of less than c hit.
        column = step * (deepest + 2) + np.minimum(depths, deepest) + 1
        counts = np.bincount(column, minlength=num_steps * (deepest + 2))
        table = counts.reshape(num_steps, deepest + 2).cumsum(axis=1)
        return np.asarray(table[:, [min(c, deepest) for c in slots]], np.int64)

    def _replayed(self, capacity: int) -> Iterator[int]:
        policy = self._policy(capacity)
        resident: set[Key] = set(policy.preload())
        experts = self.stream.shape[1] if self.stream.shape else len(self.stream.universe)
        for union in self.unions:
            yield sum(key in resident for key in union)
            leavers = policy.decide(View(union[0] // experts if union else 0, union))
            resident.update(union)
            resident.difference_update(leavers)

    def _policy(self, capacity: int) -> Any:
        policy = find_policy("eviction", self.name)
        counts = self.popularity
        if counts is None:
            counts = {}
            for union in self.unions:
                for key in union:
                    counts[key] = counts.get(key, 0) + 1
        if policy.needs_scores:
            raise UsageError(f"{self.name} weighs scores, which step_hits does not show it")
        context = CacheContext(
            capacity=capacity,
            universe=self.stream.universe,
            admission=self.admission,
            rng=np.random.default_rng(
                np.random.SeedSequence(self.stream.seed, spawn_key=(capacity,))
            ),
            popularity=lambda _profile: counts,
            future=self.unions,
            experts_per_layer=self.stream.shape[1] if self.stream.shape else 0,
        )
        return make_eviction(policy, context, parse_options(policy, self.options))
