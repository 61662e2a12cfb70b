"""The works of the recorded steps, and which of them waited for which.

A run directory has no list of waits, but the times tell them: a lane that is idle, and then starts
work when other work of the same layer event has ended, waited for that work.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from moesim.hardware.topology import CPU, D2H, DISK, GPU, H2D
from moesim.report.lane_names import LANES
from moesim.report.runs import Run

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["SOURCES", "Work", "Works", "arrows", "works_of"]

MOST_WORKS: Final = 100_000
"""The most works of a file: about 20 MB. The first whole steps that fit are kept."""
_COLUMNS: Final = ("lane", "kind", "start_ns", "finish_ns", "step", "layer", "expert")


class Work(NamedTuple):
    """One row of `timeline.parquet`; `expert` is -1 if it belongs to no single expert."""

    lane: str
    kind: str
    start_ns: int
    finish_ns: int
    step: int
    layer: int
    expert: int


class Works(NamedTuple):
    """The works to show, in order of start, and how many steps the run recorded."""

    works: Sequence[Work]
    steps: Sequence[int]
    recorded: int


def works_of(run: Run) -> Works:
    """Return the works of the first recorded steps that are at most `MOST_WORKS` together."""
    table = run.table("timeline", _COLUMNS)
    steps = table["step"].astype(np.int64)
    numbers, counts = np.unique(steps, return_counts=True)
    fitting = int(np.searchsorted(np.cumsum(counts), MOST_WORKS, side="right"))
    kept = numbers[: max(1, fitting)]
    chosen = np.flatnonzero(np.isin(steps, kept))
    rows = zip(*(_plain(table[column][chosen]) for column in _COLUMNS), strict=True)
    works = sorted((Work(*row) for row in rows), key=lambda work: (work.start_ns, -work.finish_ns))
    return Works(works, kept.tolist(), len(numbers))


def _plain(column: NDArray[np.generic]) -> list[object]:
    values: list[object] = column.tolist()
    return values


def arrows(works: Sequence[Work]) -> Iterator[tuple[Work, Work]]:
    """Yield each pair of a work and a later one on another lane that waited for it."""
    # A copy ahead may have been issued in an earlier step; its row has the step in which it ended.
    for _, of_step in groupby(sorted(works, key=attrgetter("step")), key=attrgetter("step")):
        yield from _arrows_of_step(list(of_step))


def _arrows_of_step(works: Sequence[Work]) -> Iterator[tuple[Work, Work]]:
    ends: dict[int, list[Work]] = {}
    for work in works:
        ends.setdefault(work.layer, []).append(work)
    clock: dict[str, int] = dict.fromkeys(LANES, works[0].start_ns)
    for work in works:
        idle_from = clock.get(work.lane, works[0].start_ns)
        clock[work.lane] = max(idle_from, work.finish_ns)
        if work.start_ns <= idle_from:
            continue
        for other in _ended(ends, work, idle_from):
            yield other, work


def _ended(ends: Mapping[int, Sequence[Work]], work: Work, idle_from: int) -> Iterator[Work]:
    """Yield the works that a work waited for since its lane was idle."""
    sources = SOURCES.get((work.lane, work.kind), ())
    if not sources or not _lasts(work):  # an arrow needs a slice with a length at both ends
        return
    # Only the start of a layer, and what moves its inputs, waits for the layer before it.
    layers = (work.layer,) if work.kind in _OF_EVENTS else (work.layer - 1, work.layer)
    found = [
        other
        for layer in layers
        for other in ends.get(layer, ())
        if idle_from < other.finish_ns <= work.start_ns
        and _lasts(other)
        and (other.lane, other.kind) in sources
        and (work.lane != H2D or other.lane != DISK or other.expert == work.expert)
    ]
    found.sort(key=attrgetter("finish_ns"))
    if work.lane == GPU:  # which waits for the router's choices, and then for a copy
        yield from {it.lane: it for it in _in_event(found, idle_from)}.values()
    else:
        yield from found[-1:]  # the last one ended the wait


def _lasts(work: Work) -> bool:
    return work.finish_ns > work.start_ns


def _in_event(found: Sequence[Work], idle_from: int) -> list[Work]:
    """Return what a computation on the GPU waited for, without copies that it did not need."""
    # An expert starts as soon as its copy has landed. So of several copies the last one ended the
    # wait. Earlier ones were of experts that the event did not want.
    landed = max((it.finish_ns for it in found if it.kind in _COPIES), default=0)
    # A layer event begins when the router's choices are on the host. A copy ahead that has landed
    # by then is in time, although the GPU was idle.
    begun = max((it.finish_ns for it in found if it.kind == "readback"), default=idle_from)
    return [it for it in found if it.kind not in _COPIES or it.finish_ns == landed > begun]


_COPIES: Final = ("demand", "prefetch")
_OF_EVENTS: Final = ("experts", *_COPIES)
_LAYER: Final = ("front", "dense", "tail")
SOURCES: Final[Mapping[tuple[str, str], Collection[tuple[str, str]]]] = {
    (GPU, "experts"): {(D2H, "readback"), (H2D, "demand"), (H2D, "prefetch"), (H2D, "states")},
    (CPU, "experts"): {(D2H, "states"), (DISK, "read")},
    (H2D, "states"): {(CPU, kind) for kind in ("experts", *_LAYER)},
    **{(H2D, kind): {(DISK, "read")} for kind in _COPIES},
    **{(GPU, kind): {(H2D, "states")} for kind in _LAYER},
    **{(CPU, kind): {(D2H, "states")} for kind in _LAYER},
}
"""For a lane and a kind of work, the lanes and kinds of work on another lane that it waits for."""
