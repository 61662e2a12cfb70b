"""A decided layer event, as data: what happens to each wanted expert, and who leaves GPU memory."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final, NamedTuple

from moesim.policies.view import Key, View
from moesim.serving.experts.slots import Slot

__all__ = ["NO_READS", "Decision", "Place", "Placed"]

Placed = Mapping[Key, str]
"""The lanes of absent experts, in the order in which they are copied or computed."""
Place = Callable[[View, Sequence[Key], Sequence[Key], int], Placed]
"""Returns the lanes of missing and arriving keys, in a step with this number of rows."""
NO_READS: Final[Mapping[Key, int]] = {}


class Decision(NamedTuple):
    """A layer event as decided: what happens to each expert of the union, and to those that leave.

    - `ready`, `ready_rows`, `held`: keys in GPU memory, the rows that want each, and their slots.
    - `late`: (key, rows, slot) of experts whose copy is under way, in the order of landing.
    - `vacated`: (key, slot) of leavers whose slot needs a write-back, or whose copy is under way.
    - `loads`: (key, rows, slot) of experts that are copied to the GPU and computed there. The slot
      is one of the cache or a staging buffer.
    - `elsewhere`: (key, rows, lane) of experts that are computed on another lane.
    - `later`: (key, slot) of experts that ran elsewhere and are copied to a slot for later events.
    - `reads`: bytes of each expert that must first be read from disk.
    - `waves`: rounds through the staging buffers; 0 if nothing is copied on demand.
    - `write_back`: whether vacated experts are copied back to the host.
    - `leavers`: keys that have no slot afterwards, as the eviction policy named them.
    """

    layer: int
    ready: Sequence[Key]
    ready_rows: Sequence[int]
    held: Sequence[Slot]
    late: Sequence[tuple[Key, int, Slot]] = ()
    vacated: Sequence[tuple[Key, Slot]] = ()
    loads: Sequence[tuple[Key, int, Slot]] = ()
    elsewhere: Sequence[tuple[Key, int, str]] = ()
    later: Sequence[tuple[Key, Slot]] = ()
    reads: Mapping[Key, int] = NO_READS
    waves: int = 0
    write_back: bool = False
    leavers: Collection[Key] = ()
