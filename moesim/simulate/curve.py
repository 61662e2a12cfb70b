"""The curve of a policy: hit rate against capacity, by replaying a trace without any time.

Requests are replayed one after another, one token a step, and caches are never reset. A hit is a
distinct expert of a layer event that was resident when the event began. If a policy's ranks do
not depend on capacity, one pass over a priority stack gives the hits of all capacities (Mattson et
al., IBM Systems Journal 1970; here a whole layer event is one access).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappushpop
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from moesim.errors import PolicyViolation, UsageError
from moesim.policies import Key, View, parse_options
from moesim.policies.blame import blamed
from moesim.policies.eviction.base import CacheContext, Eviction, Ranked
from moesim.policies.guard import find_policy, inputs_of, make_eviction, without_foresight
from moesim.progress import Progress
from moesim.trace.health import check_shard

if TYPE_CHECKING:
    from moesim.serving.routing import TraceRouting
    from moesim.trace import Trace

Union = Sequence[Key]
# A pass over the stack walks down many keys, a replay does not. So few capacities of a large cache
# are cheaper to replay.
_REPLAYS_PER_STACK_PASS = 64
Scope = Literal["per_layer", "global"]


@dataclass(frozen=True, slots=True)
class Stream:
    """The layer events of one cache, in order, and the keys that may occur in them.

    `rows` are the trace rows of each event, of which `routing` knows the scores and `owners` the
    requests. Sequential replay has other events, to which they do not apply.
    """

    unions: Sequence[Union]
    universe: Sequence[Key]
    seed: int
    shape: tuple[int, int] | None = None  # layers and experts, which a profile must share
    rows: Sequence[Sequence[int]] = ()
    routing: TraceRouting | None = None
    owners: Sequence[int] = ()

    def views(self, scored: bool, owned: bool = False) -> Iterator[View]:
        """Yield the view of each event; with `scored`, it shows the router's scores.

        With `owned`, it shows the requests that are served.
        """
        experts = 0 if self.shape is None else self.shape[1]
        for number, union in enumerate(self.unions):
            layer = union[0] // experts if experts and union else 0
            if scored and self.routing is not None:
                yield _ScoredView(layer, union, self.routing, self.rows[number])
            elif owned and self.owners:
                requests = dict.fromkeys(self.owners[row] for row in self.rows[number])
                yield _OwnedView(layer, union, tuple(requests))
            else:
                yield View(layer, union)


class _ScoredView(View):
    """The view of one event, with the scores that a trace records of its rows."""

    __slots__ = ("_routing", "_rows")

    def __init__(self, layer: int, union: Union, routing: TraceRouting, rows: Sequence[int]):
        super().__init__(layer, union)
        self._routing = routing
        self._rows = np.array(rows, np.int64)

    def gate_weights(self) -> tuple[float, ...]:
        return self._routing.gate_weights(self._rows, self.layer, self.union)

    def probabilities(self) -> tuple[float, ...]:
        return self._routing.probabilities(self._rows, self.layer)


class _OwnedView(View):
    """The view of one event, with the requests that are served."""

    __slots__ = ("_requests",)

    def __init__(self, layer: int, union: Union, requests: Sequence[int]):
        super().__init__(layer, union)
        self._requests = requests

    @property
    def requests(self) -> Sequence[int]:
        return self._requests


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
    sizes = list(capacities) if capacities is not None else list(range(1, trace.num_experts + 1))
    _check_arguments(sizes, trace.num_experts, batch, admission, seed)
    # Loading a trace checks no ids, because that would read all of them. Here all are read anyway.
    for first_row, shard in trace.expert_ids.pieces():
        check_shard(trace.meta, "expert_ids", shard, file=str(trace.path), first_row=first_row)
    streams = list(event_streams(trace, scope, batch, replay, seed))
    slots = [c if scope == "per_layer" else c * trace.num_layers for c in sizes]
    accesses = sum(len(union) for stream in streams for union in stream.unions)
    if not accesses:
        raise UsageError("no row of the trace uses any expert, so it has no hit rate")
    result = {}
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
        hits = np.zeros(len(slots), np.int64)
        for done, stream in enumerate(streams):
            if progress is not None:
                progress(name, done, len(streams))
            hits += _hits(policy, parsed, stream, slots, admission)
        if progress is not None:
            progress(name, len(streams), len(streams))
        result[name] = {c: int(h) / accesses for c, h in zip(sizes, hits, strict=True)}
    return result


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
    resident: set[Key] = set(policy.preload())
    hits = 0
    for view in views:
        union = view.union
        hits += sum(key in resident for key in union)
        leavers = policy.decide(view)
        # In this order, because a bypassed key enters and leaves within the event.
        resident.update(union)
        resident.difference_update(leavers)
        sizes = policy.sizes
        held = len(resident) if sizes is None else sum(sizes[key] for key in resident)
        if held > policy.capacity:
            unit = "keys" if sizes is None else "bytes"
            raise PolicyViolation(policy.name, union, f"keeps more than {policy.capacity} {unit}")
    return hits


def _hits(
    policy: type[Eviction], options: Any, stream: Stream, slots: Sequence[int], admission: str
) -> np.ndarray[Any, np.dtype[np.int64]]:
    worth_it = len(slots) * _REPLAYS_PER_STACK_PASS >= len(stream.universe)
    # Only a class that says so itself: one that inherits from it may decide otherwise.
    if vars(policy).get("stack", False) and admission == "bypass" and worth_it:
        deepest = len(stream.universe)  # more slots than keys are of no use
        with blamed(policy, "observe"):
            by_capacity = stack_hits(policy, options, stream, min(deepest, max(slots)))
        return np.array([by_capacity[min(deepest, c)] for c in slots])
    hits = []
    for capacity in slots:
        cache = make_eviction(policy, _context(stream, capacity, admission), options)
        hits.append(replay_views(cache, stream.views(policy.needs_scores, policy.sees_requests)))
    return np.array(hits)


def _context(stream: Stream, capacity: int, admission: str) -> CacheContext:
    def popularity(profile: Path | None) -> dict[Key, int]:
        if profile is not None:
            from moesim.trace import load_trace

            profile_trace = load_trace(profile)
            layers, experts = profile_trace.num_layers, profile_trace.num_experts
            if stream.shape is not None and stream.shape != (layers, experts):
                raise UsageError(
                    f"the profile {str(profile)!r} has {layers} layers of {experts} experts, but "
                    f"the trace has {stream.shape[0]} layers of {stream.shape[1]}; name a profile "
                    "of the same model"
                )
            return trace_popularity(profile_trace)
        # Without a profile the policy learns on the stream itself, which is hindsight.
        counts: dict[Key, int] = {}
        for union in stream.unions:
            for key in union:
                counts[key] = counts.get(key, 0) + 1
        return counts

    return CacheContext(
        capacity=capacity,
        universe=stream.universe,
        admission=admission,
        # One generator per capacity: hits at one do not depend on which others are replayed.
        rng=np.random.default_rng(np.random.SeedSequence(stream.seed, spawn_key=(capacity,))),
        popularity=popularity,
        future=stream.unions,
        experts_per_layer=0 if stream.shape is None else stream.shape[1],
        top_k=0 if stream.routing is None else stream.routing.top_k,
    )


def part_popularity(trace: Trace, part: Sequence[float]) -> dict[Key, int]:
    """Return how many rows of a part of a trace's requests use each key."""
    from moesim.simulate.lessons import lessons_of

    ids_BLK = lessons_of(trace, (part[0], part[1])).ids
    keys_BLK = ids_BLK + (np.arange(trace.num_layers) * trace.num_experts)[:, None]
    keys = trace.num_layers * trace.num_experts
    return dict(enumerate(np.bincount(keys_BLK[ids_BLK >= 0], minlength=keys).tolist()))


def trace_popularity(trace: Trace) -> dict[Key, int]:
    """Return how many rows of a trace use each key (layer × experts + expert)."""
    counts = np.zeros(trace.num_layers * trace.num_experts, np.int64)
    base = np.arange(trace.num_layers)[None, :, None] * trace.num_experts
    for _, shard in trace.expert_ids.pieces():
        ids = np.asarray(shard)
        used = ids != trace.meta.unused
        counts += np.bincount((ids + base)[used], minlength=len(counts))
    return dict(enumerate(counts.tolist()))


def stack_hits(policy: type[Eviction], options: Any, stream: Stream, deepest: int) -> list[int]:
    """Return the hits at every capacity from 0 to `deepest`, in one pass.

    The first c keys of the stack are those that a cache of c slots holds. Walking down, level c
    adds one key to the candidates (residents of c ∪ union). The best candidate left takes level c.
    """
    # LRU's stack is the order of last use, which needs no ranks.
    if policy.name == "lru":
        depths = _recency_depths(stream)
    else:
        context = _context(stream, len(stream.universe), "bypass")
        full = policy(without_foresight(policy, context), options)
        depths = _rank_depths(full, stream) if isinstance(full, Ranked) else _fixed(full, stream)
    counts = np.bincount(np.fromiter(depths, np.int64), minlength=deepest + 1)
    return [0, *np.cumsum(counts)[:deepest].tolist()]


def _recency_depths(stream: Stream) -> Iterator[int]:
    """Yield the stack depth of each use under LRU; first uses have none."""
    stack: list[Key] = []
    used: set[Key] = set()
    for union in stream.unions:
        depths = [stack.index(key) for key in union if key in used]
        yield from depths
        # From the deepest, so that a deletion moves none of the depths still to delete.
        for depth in sorted(depths, reverse=True):
            del stack[depth]
        stack[:0] = union[::-1]  # within an event, the last key counts as used last
        used.update(union)


def _fixed(policy: Eviction, stream: Stream) -> Iterator[int]:
    """Return the stack depth of each use under a policy that keeps the keys it starts with."""
    # Its `preload` lists the best key first, so c slots hold the first c keys.
    depth = {key: place for place, key in enumerate(policy.preload())}
    return (depth[key] for union in stream.unions for key in union)


def _rank_depths(policy: Ranked, stream: Stream) -> Iterator[int]:
    """Yield the stack depth of each use under a policy whose ranks do not depend on capacity."""
    stack: list[Key] = []
    for union in stream.unions:
        policy.observe(View(0, union))
        rank = policy.rank  # again, because a policy may replace its ranks when it observes
        left = [(rank[key], key) for key in union]
        heapify(left)
        wanted = set(union)
        for depth, key in enumerate(stack):
            if key in wanted:
                yield depth
                stack[depth] = heappop(left)[1]
                if not left:
                    break
            else:
                stack[depth] = heappushpop(left, (rank[key], key))[1]
        while left:
            stack.append(heappop(left)[1])


def event_streams(
    trace: Trace, scope: Scope, batch: int, replay: str, seed: int
) -> Iterator[Stream]:
    """Yield the events of each cache. Raise `UsageError` for a scope or replay that is none."""
    from moesim.serving.routing import TraceRouting  # slow to import

    unused, experts, routing = trace.meta.unused, trace.num_experts, TraceRouting(trace)
    order = lock_step(trace, batch)
    layers = []
    for layer in range(trace.num_layers):
        base = layer * experts
        ids = np.asarray(trace.expert_ids[:])[:, layer].astype(np.int64)
        ids = np.where(ids == unused, -1, ids + base)
        rows = ids.tolist()
        if batch == 1 and not (ids < 0).any():
            layers.append([rows[step[0]] for step in order])
        else:
            layers.append(
                [
                    [key for key in dict.fromkeys(k for row in step for k in rows[row]) if key >= 0]
                    for step in order
                ]
            )
    if scope == "per_layer":
        groups = [
            (unions, range(i * experts, (i + 1) * experts)) for i, unions in enumerate(layers)
        ]
        rows = order
    elif scope == "global":
        every = [union for step in zip(*layers, strict=True) for union in step]
        groups = [(every, range(trace.num_layers * experts))]
        rows = [step for step in order for _ in layers]
    else:
        raise UsageError(f"scope must be per_layer or global, not {scope!r}")
    lengths = [each.stop - each.start for each in map(trace.slice, range(trace.num_requests))]
    owners = np.repeat(np.arange(trace.num_requests), lengths).tolist()
    for number, (unions, universe) in enumerate(groups):
        if replay == "sequential":
            unions, owners = [[key] for union in unions for key in union], []
        elif replay != "atomic":
            raise UsageError(f"replay must be atomic or sequential, not {replay!r}")
        shape = trace.num_layers, experts
        yield Stream(unions, universe, seed * 100_003 + number, shape, rows, routing, owners)


def lock_step(trace: Trace, batch: int) -> list[list[int]]:
    """Return the rows of each step when `batch` requests advance together, one token each.

    When a request ends, the next one takes its place.
    """
    rows = [range(s.start, s.stop) for s in map(trace.slice, range(trace.num_requests))]
    if batch == 1:
        return [[row] for request in rows for row in request]
    queue = iter([iter(request) for request in rows if len(request)])
    active = list(islice(queue, min(batch, len(rows))))
    steps = []
    while active:
        step, going = [], []
        for request in active:
            row: int | None = next(request, None)
            while row is None:
                follower = next(queue, None)
                if follower is None:
                    break
                request = follower
                row = next(request, None)
            if row is not None:
                step.append(row)
                going.append(request)
        active = going
        if step:
            steps.append(step)
    return steps
