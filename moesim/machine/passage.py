"""A passage: a whole step on a machine that knows its future, with all times at once.

Where no expert is on its way and none is fetched ahead, every layer event begins on idle lanes:
the ids it waits for come back after everything that was issued before them. How it goes from
there depends on nothing but its *shape*, so its course is worked out once, from the instant its
ids are known, and used wherever the shape comes up again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import repeat
from typing import NamedTuple

# What decides an event's course: rows of the experts that are resident, computed in one call;
# rows of each expert that is copied in, in order; and for each of those the computation that
# must be done before its buffer is overwritten: 0 the residents', j that of the j-th copied in,
# FREE none (empty: none for all).
Shape = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
FREE = -1

# A layer event as it was decided: keys resident, keys copied in, and its shape.
Event = tuple[Sequence[int], Sequence[int], Shape]


class StepBytes(NamedTuple):
    """Sizes of what a step copies: an expert, a layer's ids, the sampled tokens."""

    expert: int
    ids: int
    sampled: int


class Course:
    """How an event of one shape goes, in ns from when its ids are known.

    `computed`: (start, finish) of each computation, the residents' first; `copied`: of each copy.
    """

    __slots__ = ("computed", "copied", "duration_ns", "shape")

    def __init__(
        self, shape: Shape, experts_ns: Callable[[tuple[int, ...]], int], copy_ns: int
    ) -> None:
        residents, loads, after = shape
        gpu = experts_ns(residents) if residents else 0
        link = 0
        price = {rows: experts_ns((rows,)) for rows in set(loads)}
        computed = [(0, gpu)]
        copied = []
        for rows, reader in zip(loads, after or repeat(FREE), strict=False):
            start = link
            if reader != FREE and computed[reader][1] > start:
                start = computed[reader][1]
            link = start + copy_ns
            copied.append((start, link))
            start = link if link > gpu else gpu
            gpu = start + price[rows]
            computed.append((start, gpu))
        self.shape = shape
        self.computed = computed
        self.copied = copied
        self.duration_ns = gpu


class Passage(NamedTuple):
    """The times of a step: `layers_ns[m]` is model layer m without its routed experts, `ids_ns`
    the way of a layer's ids to the host, `courses[l]` the event of trace layer l, `tail_ns` and
    `sampled_ns` the end of the step and the way of its tokens to the host."""

    sizes: StepBytes
    start_ns: int
    finish_ns: int
    layers_ns: Sequence[int]
    ids_ns: int
    courses: Sequence[Course]
    tail_ns: int
    sampled_ns: int
