"""Step times: a whole step timed at once, when all its expert decisions are made.

Where no expert is on its way and none is fetched ahead, every layer event begins on idle lanes:
the ids it waits for come back after everything that was issued before them. From
there its times depend on its *shape* alone. They are worked out once, relative to the instant its
ids are known, and reused wherever the shape comes up again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import compress, repeat
from operator import not_
from typing import NamedTuple

# What decides an event's times: the rows that want each expert of the union; which of these
# experts are absent and copied in (empty: none); and, for each copy, the computation that must
# be done before its buffer is overwritten: RESIDENTS for the one call over all that were there,
# j for that of the j-th expert copied in, FREE for none (empty: none for all).
Shape = tuple[tuple[int, ...], tuple[bool, ...], tuple[int, ...]]
RESIDENTS = 0
FREE = -1

# A layer event as it was decided: the keys that are copied in, and its shape.
Event = tuple[Sequence[int], Shape]
_MEMO_LIMIT = 1 << 12


class StepBytes(NamedTuple):
    """Sizes of what a step copies: an expert, a layer's ids, the sampled tokens."""

    expert: int
    ids: int
    sampled: int


class EventTimes:
    """How an event of one shape goes, in ns from when its ids are known.

    `residents` and `loads` are the rows of the experts that were there and of those copied in;
    `after` as in its shape. Computations run from `starts` to `finishes`, the residents' first
    (empty where there are none); copies from `departures` to `landings`.
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
    """The event times worked out so far, by shape; a missing one is worked out when asked for."""

    def __init__(
        self, experts_ns: Callable[[tuple[int, ...]], int], copy_ns: int, landing_ns: int = 0
    ) -> None:
        super().__init__()
        self._experts_ns = experts_ns
        self._copy_ns = copy_ns
        self._landing_ns = landing_ns

    def __missing__(self, shape: Shape) -> EventTimes:
        if len(self) >= _MEMO_LIMIT:
            self.clear()  # large batches hardly ever repeat a shape
        times = self[shape] = EventTimes(shape, self._experts_ns, self._copy_ns, self._landing_ns)
        return times


class StepTimes(NamedTuple):
    """The times of a step: `layers_ns[m]` is model layer m without its routed experts, `ids_ns`
    the way of a layer's ids to the host, `events[l]` the event of trace layer l, `tail_ns` and
    `sampled_ns` the end of the step and the way of its tokens to the host."""

    sizes: StepBytes
    start_ns: int
    finish_ns: int
    layers_ns: Sequence[int]
    ids_ns: int
    events: Sequence[EventTimes]
    tail_ns: int
    sampled_ns: int
