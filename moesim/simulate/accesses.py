"""The accesses of one expert cache as arrays: what a replay of a trace looks up, and in what order.

An *access* is a distinct expert of a layer event. The accesses of an event stand together, in the
order in which its rows want them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from moesim.errors import UsageError

if TYPE_CHECKING:
    from moesim.trace import Trace

__all__ = ["Accesses", "Scope", "cache_accesses", "from_unions", "lock_step"]

Scope = Literal["per_layer", "global"]
Ints = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Accesses:
    """The accesses of one cache, event after event.

    `keys`: integers (accesses,), from 0 to `num_keys`; add `first_key` for keys of the policies.
    `starts`: int64 (events + 1,), the first access of each event. `owners`: int (accesses,), the
    request of each access. An expert that several rows of a step want belongs to the first.
    """

    keys: Ints
    starts: npt.NDArray[np.int64]
    num_keys: int
    first_key: int = 0
    owners: Ints | None = None

    @property
    def num_events(self) -> int:
        """The number of layer events, also of those that want no expert."""
        return len(self.starts) - 1

    def events(self) -> npt.NDArray[np.int64]:
        """Return the event of each access, (accesses,)."""
        return np.repeat(np.arange(self.num_events), np.diff(self.starts))

    def unions(self) -> list[list[int]]:
        """Return the keys of each event as lists, numbered as policies see them."""
        keys = self.keys.astype(np.int64) + self.first_key
        sizes = np.diff(self.starts)
        if len(sizes) and sizes[0] and (sizes == sizes[0]).all():
            equal: list[list[int]] = keys.reshape(len(sizes), -1).tolist()
            return equal
        flat, bounds = keys.tolist(), self.starts.tolist()
        return [flat[bounds[i] : bounds[i + 1]] for i in range(len(sizes))]


def from_unions(unions: Sequence[Sequence[int]], universe: Sequence[int]) -> Accesses:
    """Return the accesses of events that are given as lists of keys of a `range`."""
    first = universe[0] if len(universe) else 0
    flat = np.array([key for union in unions for key in union], np.int64) - first
    starts = np.concatenate([[0], np.cumsum([len(union) for union in unions], dtype=np.int64)])
    return Accesses(flat.astype(_key_type(len(universe))), starts, len(universe), first)


def cache_accesses(
    trace: Trace, scope: Scope, batch: int, replay: str, *, owned: bool = False
) -> list[Accesses]:
    """Return the accesses of each cache: one a layer, or one for all layers.

    With `owned`, accesses know their requests. Raise `UsageError` for a scope or replay that is
    none.
    """
    if replay not in ("atomic", "sequential"):
        raise UsageError(f"replay must be atomic or sequential, not {replay!r}")
    if scope not in ("per_layer", "global"):
        raise UsageError(f"scope must be per_layer or global, not {scope!r}")
    layers = list(_layers(trace, batch, owned))
    experts = trace.num_experts
    if scope == "global":
        caches = [_merged(layers, experts)]
    else:
        caches = [
            Accesses(keys, starts, experts, layer * experts, owners)
            for layer, (keys, starts, owners) in enumerate(layers)
        ]
    if replay == "atomic":
        return caches
    return [
        Accesses(each.keys, np.arange(len(each.keys) + 1), each.num_keys, each.first_key,
                 each.owners)
        for each in caches
    ]  # fmt: skip


def _layers(
    trace: Trace, batch: int, owned: bool
) -> Iterator[tuple[Ints, npt.NDArray[np.int64], Ints | None]]:
    """Yield keys, starts and owners of each layer, with a step as event."""
    ids_BLK = np.asarray(trace.expert_ids[:])
    unused, top_k = trace.meta.unused, trace.top_k
    owner_B = np.repeat(np.arange(trace.num_requests), trace.requests["num_rows"])
    rows_B: Any = slice(None)
    step_B, num_steps = np.arange(len(ids_BLK)), len(ids_BLK)
    if batch > 1:
        steps = lock_step(trace, batch)
        rows_B = np.array([row for step in steps for row in step], np.int64)
        step_B = np.repeat(np.arange(len(steps)), [len(step) for step in steps])
        num_steps, owner_B = len(steps), owner_B[rows_B]
    for layer in range(trace.num_layers):
        ids_BK = ids_BLK[rows_B, layer]
        used_BK = ids_BK != unused
        keys = ids_BK[used_BK]
        if batch == 1 and len(keys) == ids_BK.size:
            starts = np.arange(num_steps + 1, dtype=np.int64) * top_k
            yield keys, starts, np.repeat(owner_B, top_k) if owned else None
            continue
        step, owner = (np.repeat(each, top_k)[used_BK.ravel()] for each in (step_B, owner_B))
        if batch > 1:  # several rows of a step may want the same expert
            first = np.unique(step * trace.num_experts + keys, return_index=True)[1]
            first.sort()
            keys, step, owner = keys[first], step[first], owner[first]
        yield keys, _starts(step, num_steps), owner if owned else None


def _merged(
    layers: Sequence[tuple[Ints, npt.NDArray[np.int64], Ints | None]], experts: int
) -> Accesses:
    """Return the accesses of one cache for all layers: layer after layer within each step."""
    total = len(layers) * experts
    kind = _key_type(total)
    num_steps = len(layers[0][1]) - 1
    sizes_TL = np.stack([np.diff(starts) for _, starts, _ in layers], axis=1)
    starts = np.concatenate([[0], np.cumsum(sizes_TL)])
    keys = np.empty(starts[-1], kind)
    owners = None if layers[0][2] is None else np.empty(len(keys), np.int64)
    for layer, (own, own_starts, own_owners) in enumerate(layers):
        first = starts[np.arange(num_steps) * len(layers) + layer]
        place = np.arange(len(own)) + np.repeat(first - own_starts[:-1], sizes_TL[:, layer])
        keys[place] = own.astype(kind) + kind(layer * experts)
        if owners is not None and own_owners is not None:
            owners[place] = own_owners
    return Accesses(keys, starts, total, 0, owners)


def _key_type(num_keys: int) -> Any:
    """Return a small type for keys, because numpy sorts those of 16 bits or less by radix."""
    return np.uint16 if num_keys <= 2**16 else np.int32


def _starts(step: npt.NDArray[np.int64], num_steps: int) -> npt.NDArray[np.int64]:
    counts = np.bincount(step, minlength=num_steps)
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


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
