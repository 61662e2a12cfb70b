"""The curve of a policy: hit rate against capacity, by replaying a trace without any time.

Requests are replayed one after another, one token a step, and caches are never reset. A hit is a
distinct expert of a layer event that was resident when the event began. If a policy's ranks do
not depend on capacity, one pass over a priority stack gives the hits of all capacities (Mattson et
al., IBM Systems Journal 1970; here a whole layer event is one access).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from moesim.errors import PolicyViolation, UsageError
from moesim.policies import Key, View, parse_options
from moesim.policies.blame import blamed
from moesim.policies.eviction import LRU
from moesim.policies.eviction.base import Eviction
from moesim.policies.guard import find_policy, inputs_of, make_eviction
from moesim.progress import Progress
from moesim.simulate.accesses import Accesses, Scope, cache_accesses, lock_step
from moesim.simulate.popularity import (
    Popularity,
    part_popularity,
    popularity_of,
    trace_popularity,
)
from moesim.simulate.stack import Told, array_depths, stack_hits, walked_depths
from moesim.simulate.streams import Stream, Streams, Union, cache_context, event_streams
from moesim.trace.health import check_shard

if TYPE_CHECKING:
    from moesim.trace import Trace

__all__ = [
    "CurveHits", "Scope", "Stream", "curve", "curve_hits", "event_streams", "lock_step",
    "part_popularity", "replay_hits", "replay_views", "stack_hits", "trace_popularity",
]  # fmt: skip

Ints = npt.NDArray[np.int64]

# A pass over the stack walks down many keys, a replay does not. So few capacities of a large cache
# are cheaper to replay.
_REPLAYS_PER_STACK_PASS = 64


@dataclass(frozen=True, slots=True)
class CurveHits:
    """What each policy hits at each capacity, by request.

    `capacities`: slots per layer. `hits[policy]`: int64 (requests, capacities). `accesses`: int64
    (requests,). An access that several requests of a step share belongs to the first. Without
    requests apart, all of them are one row. `rows`: the rows of each request, int64 (requests,).
    """

    capacities: tuple[int, ...]
    hits: Mapping[str, Ints]
    accesses: Ints
    rows: Ints

    def rates(self, policy: str) -> npt.NDArray[np.float64]:
        """Return the hit rate at each capacity, over all requests, (capacities,)."""
        return np.asarray(self.hits[policy].sum(axis=0) / self.accesses.sum(), np.float64)


def curve(
    trace: Trace,
    policies: Sequence[str | tuple[str, Mapping[str, Any]]],
    *,
    scope: Scope = "per_layer",
    capacities: Iterable[int] | None = None,
    batch: int = 1,
    replay: Literal["atomic", "sequential"] = "atomic",
    admission: str = "bypass",
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, dict[int, float]]:
    """Return the hit rate (0 to 1) of each policy at each capacity.

    Capacities are slots per layer (default: 1 to all experts). With scope `global`, capacity c is
    one cache of c × layers slots. `batch` requests advance in lock-step, one token each. A policy
    may be given with its options. `replay="sequential"` replays the experts of an event one by
    one: this is wrong, and only offered to show the size of the error.

    Raises:
        UsageError: an argument is wrong, or no row uses any expert.
        TraceError: the trace holds ids that no trace may hold.
        PolicyViolation: a policy keeps more keys than its capacity.
    """
    found = curve_hits(
        trace, policies, scope=scope, capacities=capacities, batch=batch, replay=replay,
        admission=admission, seed=seed, progress=progress,
    )  # fmt: skip
    return {
        name: dict(zip(found.capacities, found.rates(name).tolist(), strict=True))
        for name in found.hits
    }


def curve_hits(
    trace: Trace,
    policies: Sequence[str | tuple[str, Mapping[str, Any]]],
    *,
    scope: Scope = "per_layer",
    capacities: Iterable[int] | None = None,
    batch: int = 1,
    replay: Literal["atomic", "sequential"] = "atomic",
    admission: str = "bypass",
    seed: int = 0,
    by_request: bool = False,
    progress: Progress | None = None,
) -> CurveHits:
    """Return the hits of each policy at each capacity; with `by_request`, of each request apart.

    Arguments and errors are those of `curve`.
    """
    sizes = list(capacities) if capacities is not None else list(range(1, trace.num_experts + 1))
    _check_arguments(sizes, trace.num_experts, batch, admission, seed)
    # Loading a trace checks no ids, because that would read all of them. Here all are read anyway.
    for first_row, shard in trace.expert_ids.pieces():
        check_shard(trace.meta, "expert_ids", shard, file=str(trace.path), first_row=first_row)
    caches = cache_accesses(trace, scope, batch, replay, owned=by_request)
    slots = [c if scope == "per_layer" else c * trace.num_layers for c in sizes]
    requests = trace.num_requests if by_request else 1
    accesses = sum(_counted(each.owners, len(each.keys), requests) for each in caches)
    if not np.sum(accesses):
        raise UsageError("no row of the trace uses any expert, so it has no hit rate")
    streams = Streams(trace, scope, batch, replay, seed, caches)
    replaying = _Replay(caches, streams, slots, admission, requests)
    hits = {}
    for entry in policies:
        name, options = (entry, {}) if isinstance(entry, str) else entry
        policy = find_policy("eviction", name)
        parsed = parse_options(policy, options)
        if any(each.part is not None for each in inputs_of(policy, parsed)):
            raise UsageError(
                f"{name} learns from a part of a trace, and a curve replays all of it; leave the "
                "option `train` out, or name a profile"
            )
        if policy.needs_scores:
            _check_scores(name, trace, replay)
        hits[name] = replaying.hits(policy, parsed, _teller(name, len(caches), progress))
    rows = trace.requests["num_rows"]
    return CurveHits(
        tuple(sizes), hits, np.asarray(accesses, np.int64),
        np.asarray(rows if by_request else [rows.sum()], np.int64),
    )  # fmt: skip


def _teller(name: str, total: int, progress: Progress | None) -> Told:
    """Return a function that reports each number of caches that are done, from 0 on, once."""
    if progress is None:
        return None
    progress(name, 0, total)
    said = 0

    def told(done: int) -> None:
        nonlocal said
        while said < done:
            said += 1
            progress(name, said, total)

    return told


def _check_scores(name: str, trace: Trace, replay: str) -> None:
    if trace.gate_weights is None and trace.probabilities is None:
        raise UsageError(
            f"{name} weighs experts by the router's scores, and the trace holds none; record it "
            "with `moesim record --probabilities`, or choose another policy"
        )
    if replay == "sequential":
        raise UsageError(
            f"{name} weighs the scores of a whole layer event, which sequential replay cuts up; "
            "replay atomically, or choose another policy"
        )


def _check_arguments(
    capacities: Sequence[int], num_experts: int, batch: int, admission: str, seed: int
) -> None:
    if not capacities or any(c < 0 for c in capacities):
        raise UsageError(f"capacities must be numbers ≥ 0, not {capacities}")
    if max(capacities) > num_experts:
        raise UsageError(
            f"capacity {max(capacities)} is more than the {num_experts} experts of a layer"
        )
    if batch < 1:
        raise UsageError(f"batch must be at least 1, not {batch}")
    if admission not in ("bypass", "always"):
        raise UsageError(f"admission must be bypass or always, not {admission!r}")
    if seed < 0:
        raise UsageError(f"seed must not be negative, not {seed}")


def replay_hits(policy: Eviction, unions: Iterable[Union], layer: int = 0) -> int:
    """Return the hits of one cache of one capacity over events of one layer, replayed one by one.

    Raises:
        PolicyViolation: the policy keeps more keys than its capacity.
    """
    return replay_views(policy, (View(layer, union) for union in unions))


def replay_views(policy: Eviction, views: Iterable[View]) -> int:
    """Return what `replay_hits` does, for events of any layers.

    Raises:
        PolicyViolation: the policy keeps more keys than its capacity.
    """
    return sum(map(sum, _outcomes(policy, views)))


def _outcomes(policy: Eviction, views: Iterable[View]) -> Iterator[list[bool]]:
    """Yield for each event which of its keys hit."""
    resident: set[Key] = set(policy.preload())
    for view in views:
        union = view.union
        yield [key in resident for key in union]
        leavers = policy.decide(view)
        # In this order, because a bypassed key enters and leaves within the event.
        resident.update(union)
        resident.difference_update(leavers)
        sizes = policy.sizes
        held = len(resident) if sizes is None else sum(sizes[key] for key in resident)
        if held > policy.capacity:
            unit = "keys" if sizes is None else "bytes"
            raise PolicyViolation(policy.name, union, f"keeps more than {policy.capacity} {unit}")


class _Replay:
    """The caches of a curve, and the capacities at which policies are replayed over them."""

    def __init__(
        self, caches: Sequence[Accesses], streams: Streams, slots: Sequence[int], admission: str,
        requests: int,
    ) -> None:  # fmt: skip
        self._caches, self._streams, self._slots = caches, streams, slots
        self._admission, self._requests = admission, requests

    def hits(self, policy: type[Eviction], options: Any, told: Told) -> Ints:
        """Return the hits of all caches together, (requests, capacities)."""
        # Only a class that says so itself: one that inherits from it may decide otherwise.
        stack = vars(policy).get("stack", False) and self._admission == "bypass"
        most_keys = max(each.num_keys for each in self._caches)
        worth_it = len(self._slots) * _REPLAYS_PER_STACK_PASS >= most_keys
        depths = None
        # LRU admits every key, so it has one stack for both admissions.
        if stack or policy is LRU:
            deepest = min(max(self._slots), most_keys)
            depths = array_depths(policy, options, self._caches, deepest, self._popularity, told)
        total = np.zeros((self._requests, len(self._slots)), np.int64)
        for number, accesses in enumerate(self._caches):
            if depths is not None:
                total += self._above(accesses, depths[number])
            elif stack and worth_it:
                with blamed(policy, "observe"):
                    walked = walked_depths(policy, options, self._streams[number])
                    total += self._above(accesses, np.fromiter(walked, np.int64))
            else:
                total += self._replayed(policy, options, number)
            if told is not None:
                told(number + 1)
        return total

    def _above(self, accesses: Accesses, depths: npt.NDArray[Any]) -> Ints:
        """Return the hits of a cache whose accesses have these stack depths."""
        # More slots than keys are of no use.
        slots = np.minimum(self._slots, accesses.num_keys)
        steps = np.unique(slots)
        # By depth: how many of the capacities are too small.
        too_small = np.searchsorted(steps, np.arange(accesses.num_keys + 1), side="right")
        column = too_small[depths]
        if self._requests > 1:
            column += np.asarray(accesses.owners) * (len(steps) + 1)
        counts = np.bincount(column, minlength=self._requests * (len(steps) + 1))
        hits = counts.reshape(self._requests, -1).cumsum(axis=1)
        return np.asarray(hits[:, np.searchsorted(steps, slots)], np.int64)

    def _replayed(self, policy: type[Eviction], options: Any, number: int) -> Ints:
        """Return the hits of a cache, replayed at each capacity."""
        accesses, stream = self._caches[number], self._streams[number]
        owners = accesses.owners if self._requests > 1 else None
        columns = []
        for capacity in self._slots:
            cache = make_eviction(policy, cache_context(stream, capacity, self._admission), options)
            outcomes = _outcomes(cache, stream.views(policy.needs_scores, policy.sees_requests))
            if owners is None:
                columns.append(np.array([sum(map(sum, outcomes))]))
                continue
            hit = np.fromiter((each for event in outcomes for each in event), np.bool_)
            columns.append(np.bincount(owners[hit], minlength=self._requests))
        return np.stack(columns, axis=1)

    def _popularity(self, accesses: Accesses) -> Popularity:
        def counts() -> dict[Key, int]:
            uses = np.bincount(accesses.keys, minlength=accesses.num_keys)
            return dict(enumerate(uses.tolist(), start=accesses.first_key))

        return popularity_of(self._streams.shape, counts)


def _counted(owners: npt.NDArray[Any] | None, accesses: int, requests: int) -> Ints:
    """Return the accesses of each request."""
    if owners is None or requests == 1:
        return np.array([accesses])
    return np.bincount(owners, minlength=requests)
