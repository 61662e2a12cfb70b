"""Layer events as policies see them: the unions of one cache, and a view of each event."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moesim.policies import Key, View
from moesim.policies.eviction.base import CacheContext
from moesim.simulate.accesses import Accesses, Scope, cache_accesses, lock_step
from moesim.simulate.popularity import popularity_of

if TYPE_CHECKING:
    from moesim.serving.routing import TraceRouting
    from moesim.trace import Trace

__all__ = ["Stream", "Streams", "Union", "cache_context", "event_streams"]

Union = Sequence[Key]


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


class Streams:
    """The events of each cache of a replay; made when a policy is first shown one."""

    def __init__(
        self, trace: Trace, scope: Scope, batch: int, replay: str, seed: int,
        caches: Sequence[Accesses],
    ) -> None:  # fmt: skip
        self._trace, self._scope, self._batch, self._replay = trace, scope, batch, replay
        self._seed, self._caches = seed, caches
        self._streams: dict[int, Stream] = {}
        self._rows: tuple[list[list[int]], list[int]] | None = None
        self._routing: TraceRouting | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """The layers and experts of the trace."""
        return self._trace.num_layers, self._trace.num_experts

    def __getitem__(self, number: int) -> Stream:
        if number not in self._streams:
            self._streams[number] = self._made(number)
        return self._streams[number]

    def _made(self, number: int) -> Stream:
        from moesim.serving.routing import TraceRouting  # slow to import

        if self._routing is None:
            self._routing = TraceRouting(self._trace)
        accesses = self._caches[number]
        rows, owners = self._rows_and_owners()
        return Stream(
            accesses.unions(),
            range(accesses.first_key, accesses.first_key + accesses.num_keys),
            self._seed * 100_003 + number,
            self.shape,
            rows,
            self._routing,
            owners,
        )

    def _rows_and_owners(self) -> tuple[list[list[int]], list[int]]:
        """Return the rows of each event, and the request of each row."""
        if self._rows is None:
            trace, steps = self._trace, lock_step(self._trace, self._batch)
            if self._scope == "global":
                steps = [step for step in steps for _ in range(trace.num_layers)]
            lengths = trace.requests["num_rows"]
            owners = np.repeat(np.arange(trace.num_requests), lengths).tolist()
            self._rows = steps, [] if self._replay == "sequential" else owners
        return self._rows


def event_streams(
    trace: Trace, scope: Scope, batch: int, replay: str, seed: int
) -> Iterator[Stream]:
    """Yield the events of each cache. Raise `UsageError` for a scope or replay that is none."""
    caches = cache_accesses(trace, scope, batch, replay)
    streams = Streams(trace, scope, batch, replay, seed, caches)
    return (streams[number] for number in range(len(caches)))


def cache_context(stream: Stream, capacity: int, admission: str) -> CacheContext:
    """Return the context of a policy for one cache of `capacity` slots."""

    def counts() -> dict[Key, int]:
        uses: dict[Key, int] = {}
        for union in stream.unions:
            for key in union:
                uses[key] = uses.get(key, 0) + 1
        return uses

    return CacheContext(
        capacity=capacity,
        universe=stream.universe,
        admission=admission,
        # One generator per capacity: hits at one do not depend on which others are replayed.
        rng=np.random.default_rng(np.random.SeedSequence(stream.seed, spawn_key=(capacity,))),
        popularity=popularity_of(stream.shape, counts),
        future=stream.unions,
        experts_per_layer=0 if stream.shape is None else stream.shape[1],
        top_k=0 if stream.routing is None else stream.routing.top_k,
    )
