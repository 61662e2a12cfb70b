"""The curve of a policy: hit rate against capacity, by replaying a trace without any time.

Requests are replayed one after another, one token a step, caches never reset; a hit is a
distinct expert of a layer event that was resident when the event began. Policies whose ranks do
not depend on capacity give every capacity in one pass over a priority stack (Mattson et al.,
IBM Systems Journal 1970, here with the whole union of an event as one access).
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
from moesim.policies.guard import find_policy, make_eviction, without_foresight
from moesim.progress import Progress
from moesim.trace.health import check_shard

if TYPE_CHECKING:
    from moesim.trace import Trace

Union = Sequence[Key]
# A pass over the stack walks keys, a replay does not: few capacities of a big cache are replayed.
_REPLAYS_PER_STACK_PASS = 64
Scope = Literal["per_layer", "global"]


@dataclass(frozen=True, slots=True)
class Stream:
    """The layer events that one cache sees, in order, and the keys that may occur in them."""

    unions: Sequence[Union]
    universe: Sequence[Key]
    seed: int
    shape: tuple[int, int] | None = None  # layers and experts, which a profile must share


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
    """Hit rate of each policy at each capacity (experts per layer; default 1..experts).

    With scope `global` a capacity c is one cache of c × layers slots. `batch` requests advance in
    lock-step, one token each. `replay="sequential"` replays the union's experts one by one
    instead: wrong, and offered only to show how wrong. Raises `UsageError` for bad arguments and
    `TraceError` for ids that no trace may hold.
    """
    wanted = list(capacities) if capacities is not None else list(range(1, trace.num_experts + 1))
    if not wanted or any(c < 0 for c in wanted):
        raise UsageError(f"capacities must be numbers ≥ 0, not {wanted}")
    if max(wanted) > trace.num_experts:
        raise UsageError(
            f"capacity {max(wanted)} is more than the {trace.num_experts} experts of a layer"
        )
    if batch < 1:
        raise UsageError(f"batch must be at least 1, not {batch}")
    if admission not in ("bypass", "always"):
        raise UsageError(f"admission must be bypass or always, not {admission!r}")
    if seed < 0:
        raise UsageError(f"seed must not be negative, not {seed}")
    for first_row, shard in trace.expert_ids.pieces():
        check_shard(trace.meta, "expert_ids", shard, file=str(trace.path), first_row=first_row)
    streams = list(_streams(trace, scope, batch, replay, seed))
    slots = [c if scope == "per_layer" else c * trace.num_layers for c in wanted]
    accesses = sum(len(union) for stream in streams for union in stream.unions)
    if not accesses:
        raise UsageError("no row of the trace uses any expert: there is no hit rate to speak of")
    result = {}
    for entry in policies:
        name, options = (entry, {}) if isinstance(entry, str) else entry
        policy = find_policy("eviction", name)
        parsed = parse_options(policy, options)
        hits = np.zeros(len(slots), np.int64)
        for done, stream in enumerate(streams):
            if progress is not None:
                progress(name, done, len(streams))
            hits += _hits(policy, parsed, stream, slots, admission)
        if progress is not None:
            progress(name, len(streams), len(streams))
        result[name] = {c: int(h) / accesses for c, h in zip(wanted, hits, strict=True)}
    return result


def replay_hits(policy: Eviction, unions: Iterable[Union], layer: int = 0) -> int:
    """Hits of one cache over a sequence of layer events, one capacity: the plain way.

    Raises `PolicyViolation` for a policy that keeps more than its capacity."""
    resident: set[Key] = set(policy.preload())
    hits = 0
    for union in unions:
        hits += sum(key in resident for key in union)
        leavers = policy.decide(View(layer, union))
        resident.update(union)
        resident.difference_update(leavers)
        if len(resident) > policy.capacity:
            raise PolicyViolation(policy.name, union, f"keeps more than {policy.capacity} keys")
    return hits


def _hits(
    policy: type[Eviction], options: Any, stream: Stream, slots: Sequence[int], admission: str
) -> np.ndarray[Any, np.dtype[np.int64]]:
    worth_it = len(slots) * _REPLAYS_PER_STACK_PASS >= len(stream.universe)
    # Only a class that says so itself: one that inherits from it may decide otherwise.
    if vars(policy).get("stack", False) and admission == "bypass" and worth_it:
        deepest = len(stream.universe)  # more slots than keys are of no use
        with blamed(policy, "observe"):
            found = stack_hits(policy, options, stream, min(deepest, max(slots)))
        return np.array([found[min(deepest, c)] for c in slots])
    hits = []
    for capacity in slots:
        cache = make_eviction(policy, _context(stream, capacity, admission), options)
        hits.append(replay_hits(cache, stream.unions))
    return np.array(hits)


def _context(stream: Stream, capacity: int, admission: str) -> CacheContext:
    def popularity(profile: Path | None) -> dict[Key, int]:
        if profile is not None:
            from moesim.trace import load_trace

            learnt = load_trace(profile)
            if stream.shape not in (None, (learnt.num_layers, learnt.num_experts)):
                raise UsageError(
                    f"the profile {str(profile)!r} has {learnt.num_layers} layers of "
                    f"{learnt.num_experts} experts, the trace has other ones: {stream.shape}"
                )
            return trace_popularity(learnt)
        counts: dict[Key, int] = {}
        for union in stream.unions:
            for key in union:
                counts[key] = counts.get(key, 0) + 1
        return counts

    return CacheContext(
        capacity=capacity,
        universe=stream.universe,
        admission=admission,
        rng=np.random.default_rng(np.random.SeedSequence(stream.seed, spawn_key=(capacity,))),
        popularity=popularity,
        future=stream.unions,
    )


def trace_popularity(trace: Trace) -> dict[Key, int]:
    """How many rows of a trace use each key."""
    counts = np.zeros(trace.num_layers * trace.num_experts, np.int64)
    base = np.arange(trace.num_layers)[None, :, None] * trace.num_experts
    for _, shard in trace.expert_ids.pieces():
        ids = np.asarray(shard)
        used = ids != trace.meta.unused
        counts += np.bincount((ids + base)[used], minlength=len(counts))
    return dict(enumerate(counts.tolist()))


def stack_hits(policy: type[Eviction], options: Any, stream: Stream, deepest: int) -> list[int]:
    """Hits at every capacity from 0 to `deepest` in one pass.

    The stack lists keys so that its first c are what a cache of c slots holds. Walking down it,
    level c adds one key to the candidates (residents of c ∪ union) and settles the best one left.
    """
    if policy.name == "lru":
        depths = _recency_depths(stream)
    else:
        context = _context(stream, len(stream.universe), "bypass")
        full = policy(without_foresight(policy, context), options)
        depths = _rank_depths(full, stream) if isinstance(full, Ranked) else _fixed(full, stream)
    counts = np.bincount(np.fromiter(depths, np.int64), minlength=deepest + 1)
    return [0, *np.cumsum(counts)[:deepest].tolist()]


def _recency_depths(stream: Stream) -> Iterator[int]:
    """Stack depth of each hit under LRU; first uses have none."""
    stack: list[Key] = []
    known: set[Key] = set()
    for union in stream.unions:
        depths = [stack.index(key) for key in union if key in known]
        yield from depths
        for depth in sorted(depths, reverse=True):
            del stack[depth]
        stack[:0] = union[::-1]
        known.update(union)


def _fixed(policy: Eviction, stream: Stream) -> Iterator[int]:
    """Stack depth of each hit under a policy that starts loaded, best key first, and stays so."""
    depth = {key: place for place, key in enumerate(policy.preload())}
    return (depth[key] for union in stream.unions for key in union)


def _rank_depths(policy: Ranked, stream: Stream) -> Iterator[int]:
    """Stack depth of each hit under a policy of capacity-free ranks."""
    stack: list[Key] = []
    rank = policy.rank
    for union in stream.unions:
        policy.observe(View(0, union))
        rank = policy.rank
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


def _streams(trace: Trace, scope: Scope, batch: int, replay: str, seed: int) -> Iterator[Stream]:
    unused, experts = trace.meta.unused, trace.num_experts
    order = _lock_step(trace, batch)
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
    elif scope == "global":
        every = [union for step in zip(*layers, strict=True) for union in step]
        groups = [(every, range(trace.num_layers * experts))]
    else:
        raise UsageError(f"scope must be per_layer or global, not {scope!r}")
    for number, (unions, universe) in enumerate(groups):
        if replay == "sequential":
            unions = [[key] for union in unions for key in union]
        elif replay != "atomic":
            raise UsageError(f"replay must be atomic or sequential, not {replay!r}")
        shape = trace.num_layers, experts
        yield Stream(unions, universe, seed * 100_003 + number, shape)


def _lock_step(trace: Trace, batch: int) -> list[list[int]]:
    """Rows of each step when `batch` requests advance together, one token each, and the next
    request in line takes the place of one that ends."""
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
