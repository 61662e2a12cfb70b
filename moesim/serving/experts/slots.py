"""Slots: the expert-sized buffers of GPU memory, and what was last done with each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moesim.machine.work import Work

__all__ = ["ExpertSizes", "Slot", "Staging"]


class Slot:
    """A buffer in GPU memory for one expert.

    - `number`: its place among all expert-sized buffers.
    - `landing`: the copy that fills it; None once that is known to be done.
    - `reader`: the last computation, or write-back, that reads it.
    - `fresh`: whether its expert was copied ahead and not used since.
    - `issued`: number of the copy ahead that fills it, in order of issue.
    - `units`: 1; where sizes are unequal, the bytes of its expert.
    - `over`: the slots whose memory it takes, until the copy that fills it is issued. Empty where
      all sizes are equal, because then a slot is used again as it is.
    """

    __slots__ = ("fresh", "issued", "landing", "number", "over", "reader", "units")

    def __init__(self, number: int) -> None:
        self.number = number
        self.landing: Work | None = None
        self.reader: Work | None = None
        self.fresh = False
        self.issued = 0
        self.units = 1
        self.over: tuple[Slot, ...] = ()


@dataclass(frozen=True, slots=True)
class ExpertSizes:
    """Bytes of the largest expert, and whether an evicted expert is copied back to the host.

    `by_key` are the bytes of each expert where they are unequal; None: all have the same.
    """

    nbytes: int
    write_back: bool = False
    by_key: Sequence[int] | None = None


class Staging:
    """Buffers for experts that are computed without a slot; reused round robin.

    It numbers all expert-sized buffers of GPU memory: staging buffers first, then the slots of the
    caches. `total` counts the buffers numbered so far.
    """

    def __init__(self, count: int) -> None:
        self.total = 0
        self.buffers = self.slots(count)
        self._next = 0

    def slots(self, count: int) -> list[Slot]:
        """Return new buffers with the next numbers."""
        first, self.total = self.total, self.total + count
        return [Slot(number) for number in range(first, self.total)]

    def take(self) -> Slot:
        """Return the buffer that was used longest ago."""
        buffer = self.buffers[self._next]
        self._next = (self._next + 1) % len(self.buffers)
        return buffer
