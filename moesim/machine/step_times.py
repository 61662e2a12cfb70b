"""Step times: a whole step timed at once, when all its expert decisions are made.

If no expert is on its way and none is fetched ahead, every layer event begins on idle lanes: the
ids that it waits for come back after all work that was issued before them. From then on its times
depend on its *shape* alone. They are computed once, relative to the instant at which its ids are
known, and reused for every event of the same shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import compress, repeat
from operator import not_
from typing import NamedTuple

# Three things decide an event's times: the rows that want each expert of the union; which of these
# experts are absent and copied in (empty: none); and, for each copy, the computation that must be
# done before its buffer is overwritten. The last is RESIDENTS for the one call over all residents,
# j for the computation of the j-th expert copied in, FREE for none (empty: none for all).
Shape = tuple[tuple[int, ...], tuple[bool, ...], tuple[int, ...]]
RESIDENTS = 0
FREE = -1

# A decided layer event: the keys that are copied in, and its shape.
Event = tuple[Sequence[int], Shape]
_MEMO_LIMIT = 1 << 12


class StepBytes(NamedTuple):
    """Bytes of a step's copies: an expert, a layer's ids, the sampled tokens."""

    expert: int
    ids: int
    sampled: int


class EventTimes:
    """The times of an event of one shape, in ns from the instant at which its ids are known.

    `residents` and `loads` are the rows of the resident experts and of those copied in; `after` is
    as in the shape. Computations run from `starts` to `finishes`; the residents' is the first, and
    takes no time if there are none. Copies run from `departures` to `landings`.
    """

    __slots__ = (
        "after",
        "departures",
        "duration_ns",
        "finishes",
        "landings",
        "loads",
        "residents",
        "starts",
    )

    def __init__(
        self,
        shape: Shape,
        experts_ns: Callable[[tuple[int, ...]], int],
        copy_ns: int,
        landing_ns: int = 0,
    ) -> None:
        rows, absent, self.after = shape
        self.loads = tuple(compress(rows, absent))
        self.residents = tuple(compress(rows, map(not_, absent))) if absent else rows
        price = {count: experts_ns((count,)) for count in set(self.loads)}
        gpu = experts_ns(self.residents) if self.residents else 0
        link = 0
        starts, finishes = [0], [gpu]
        departures, landings = [], []
        # Copies queue on the link; each may have to wait for the last reader of its buffer. Its
        # computation starts when it has landed and the GPU is done with the one before.
        for count, reader in zip(self.loads, self.after or repeat(FREE), strict=False):
            if reader != FREE and finishes[reader] > link:
                link = finishes[reader]
            departures.append(link)
            link += copy_ns
            landings.append(link)
            if link + landing_ns > gpu:
                gpu = link + landing_ns
            starts.append(gpu)
            gpu += price[count]
            finishes.append(gpu)
        self.starts, self.finishes = starts, finishes
        self.departures, self.landings = departures, landings
        self.duration_ns = gpu


class EventTimesMemo(dict[Shape, EventTimes]):
    """The event times computed so far, by shape; a missing one is computed on access."""

    def __init__(
        self, experts_ns: Callable[[tuple[int, ...]], int], copy_ns: int, landing_ns: int = 0
    ) -> None:
        super().__init__()
        self._experts_ns = experts_ns
        self._copy_ns = copy_ns
        self._landing_ns = landing_ns

    def __missing__(self, shape: Shape) -> EventTimes:
        if len(self) >= _MEMO_LIMIT:
            self.clear()  # large batches rarely repeat a shape, so the table would only grow
        times = self[shape] = EventTimes(shape, self._experts_ns, self._copy_ns, self._landing_ns)
        return times


class StepTimes(NamedTuple):
    """The times of a step.

    `layers_ns[m]` is model layer m without its routed experts; `ids_ns` is the readback of a
    layer's ids; `events[l]` is the event of trace layer l; `tail_ns` and `sampled_ns` are the end
    of the step and the readback of its tokens.
    """

    sizes: StepBytes
    start_ns: int
    finish_ns: int
    layers_ns: Sequence[int]
    ids_ns: int
    events: Sequence[EventTimes]
    tail_ns: int
    sampled_ns: int
