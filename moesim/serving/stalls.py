"""Stalls: the times in which the GPU is idle while a step is in progress, each with its cause.

- *readback*: the work was not issued yet, because the host waited for ids;
- *demand*: the work was issued and waited for its expert's copy;
- *late*: as demand, but the copy was started ahead and had not landed;
- *cpu*: the GPU waited for results of the CPU;
- *disk*: what the GPU waited for waited for a read from disk;
- *host*: the host was still issuing;
- *other*: work was ready. In virtual time this never happens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from moesim.errors import InvariantError
from moesim.hardware.topology import GPU
from moesim.machine.work import Work
from moesim.serving.too_early import too_early

__all__ = ["CAUSES", "CPU", "DEMAND", "DISK", "HOST", "LATE", "OTHER", "READBACK", "Entry", "Waits"]
__all__ += ["account"]

READBACK, DEMAND, LATE, CPU, DISK, HOST, OTHER = range(7)
CAUSES: Final = ("readback", "demand", "late", "cpu", "disk", "host", "other")

Waits = tuple[tuple[Work, int, int], ...]
"""Works that a computation on the GPU waits for, in the order in which they finish.

Each has the cause of an idle GPU until it is done, and the layer that this time counts for.
"""


class Entry(NamedTuple):
    """One issued work.

    `decided_ns` is the time of the host's last wait before it, and `waited` the cause of a GPU that
    is idle during that wait. `kind` is the work's name in the timeline.
    """

    work: Work
    kind: str
    layer: int
    decided_ns: int
    waited: int
    waits: Waits


def account(
    entries: Iterable[Entry], clock_ns: int, stall_ns: Sequence[list[int]]
) -> tuple[int, int]:
    """Add the idle times of the GPU to `stall_ns[cause][layer]`, from `clock_ns` on.

    `entries` are in the order of issue. Return the end of the last computation on the GPU and the
    sum of all stalls. Raise `InvariantError` if work overlaps or starts before what it waits for.
    """
    clock, stalled = clock_ns, 0
    for entry in entries:
        work = entry[0]
        if work.lane != GPU:
            continue
        start = work.start_ns
        if start != clock:
            if start < clock:
                raise InvariantError(9, f"GPU work overlaps by {clock - start} ns at {start} ns")
            stalled += start - clock
            _divide(entry, clock, stall_ns)
        for other, _, _ in entry[5]:
            if start < other.finish_ns:
                raise too_early(work, other)
        clock = work.finish_ns
    return clock, stalled


def _divide(entry: Entry, clock: int, stall_ns: Sequence[list[int]]) -> None:
    """Divide the gap between `clock` and the start of a work among its causes."""
    work, _, layer, decided_ns, waited, waits = entry
    start = work.start_ns
    if decided_ns > clock:  # one gap can have several causes, one after another
        until = decided_ns if decided_ns < start else start
        stall_ns[waited][layer] += until - clock
        clock = until
    last, last_layer = OTHER, layer
    for other, cause, where in waits:
        last, last_layer = cause, where
        until = other.finish_ns if other.finish_ns < start else start
        if until > clock:
            stall_ns[cause][where] += until - clock
            clock = until
    if clock < work.release_ns <= start:
        stall_ns[HOST][layer] += work.release_ns - clock
        clock = work.release_ns
    # An expert that has landed may start a fixed delay later.
    stall_ns[last][last_layer] += start - clock
