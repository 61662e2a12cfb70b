"""Host memory as a cache of the model file on disk: which experts are there, and what is read.

Where the experts exceed host memory, an expert may have to be read from disk before it is copied or
computed. Two rules decide what leaves to make room:

- `expert`: whole experts leave, the least recently used (LRU) first, as in an engine that reads
  experts into buffers of its own;
- `page`: pages leave by LRU, as from the page cache behind a model file that is mapped into memory
  (`mmap`). An expert may then be partly there, and only its missing pages are read.

A use of an expert touches all its pages at once: those that are there become the most recent, and
only then are the others read. So the use of an expert never removes its own pages. Its pages count
as used from the first to the last, hence those that are left are always the last ones. One number
per expert describes them, and the page may be as small as that of the system.

Experts begin on page boundaries, in the order of their keys, as a model file holds them. A run
starts as one pass over this file leaves the memory: full, with the last experts the most recent.
Pinned experts are page-locked: they are in host memory from the start and never leave.

Places are logical. An expert is in host memory as soon as its read is issued, so decisions do not
depend on the speed of the disk. A read may remove an expert that the same layer event wants;
that expert is then in a buffer of the event, as one in a staging buffer of the GPU is.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from typing import Final, Literal

from moesim.errors import UsageError
from moesim.hardware.topology import DISK, HOST
from moesim.policies.view import Key

__all__ = ["PAGE_BYTES", "HostMemory", "Unit", "taken_bytes"]

PAGE_BYTES: Final = 4096
"""The page of x86-64 and of most ARM systems. Larger groups would make nothing faster here."""

Unit = Literal["expert", "page"]


def taken_bytes(nbytes: int, unit: Unit, page_bytes: int = PAGE_BYTES) -> int:
    """Return the bytes that an expert of `nbytes` takes in host memory: whole pages with `page`."""
    return -(-nbytes // page_bytes) * page_bytes if unit == "page" else nbytes


class HostMemory:
    """Host memory of `capacity_bytes` for experts; `sizes[key]` is the bytes of each.

    `held_bytes` is what the experts in it take, pinned ones included. It counts whole pages with
    the unit `page`, and never exceeds the capacity. `on_loss` is called with each expert of which a
    part has left the memory.
    """

    def __init__(
        self,
        capacity_bytes: int,
        sizes: Sequence[int],
        unit: Unit = "page",
        *,
        page_bytes: int = PAGE_BYTES,
        pinned: Collection[Key] = (),
    ) -> None:
        """Fill the memory with the pinned experts, and with what one pass over the others leaves.

        Raise `UsageError` if the pinned experts do not fit, or leave too little for another one.
        """
        self.capacity_bytes = capacity_bytes
        self.unit = unit
        self.num_experts = len(sizes)
        self.on_loss: Callable[[Key], object] | None = None
        self._sizes = sizes
        self._taken = [taken_bytes(nbytes, unit, page_bytes) for nbytes in sizes]
        self._pinned = frozenset(pinned)
        self._pinned_bytes = sum(self._taken[key] for key in self._pinned)
        others = [key for key in range(len(sizes)) if key not in self._pinned]
        # A part of a page holds nothing.
        granule = page_bytes if unit == "page" else 1
        self._free = (capacity_bytes - self._pinned_bytes) // granule * granule
        self._room = self._free
        largest = max((self._taken[key] for key in others), default=0)
        if self._free < largest or self._pinned_bytes > capacity_bytes:
            raise UsageError(
                f"host memory of {capacity_bytes} bytes is too small: pinned experts take "
                f"{self._pinned_bytes} bytes, and the largest other expert {largest}; give it at "
                f"least {self._pinned_bytes + largest} bytes"
            )
        # The bytes of each expert that are there; the least recently used expert comes first.
        self._held: OrderedDict[Key, int] = OrderedDict()
        for key in others:
            self.read(key)

    @property
    def held_bytes(self) -> int:
        """Bytes of the experts in host memory, at most `capacity_bytes`."""
        return self._pinned_bytes + self._room - self._free

    def read(self, key: Key) -> int:
        """Use an expert, and return the bytes that must be read from disk before; 0 for none."""
        if key in self._pinned:
            return 0
        taken = self._taken[key]
        # It is out of the book while others leave, so it loses no page of its own.
        missing = taken - self._held.pop(key, 0)
        self._free -= missing
        while self._free < 0:
            self._evict()
        self._held[key] = taken
        return min(missing, self._sizes[key])  # the last page may be a part of a page on disk

    def unread(self, key: Key) -> int:
        """Return the bytes that a use of an expert would read from disk. Touch nothing."""
        if key in self._pinned:
            return 0
        return min(self._taken[key] - self._held.get(key, 0), self._sizes[key])

    def place(self, key: Key) -> str:
        """Return `host` if the whole expert is in host memory, else `disk`. Touch nothing."""
        if key in self._pinned or self._held.get(key, 0) == self._taken[key]:
            return HOST
        return DISK

    def _evict(self) -> None:
        """Drop the least recently used expert, or as many of its first pages as must leave."""
        oldest = next(iter(self._held))
        held = self._held[oldest]
        lost = held if self.unit == "expert" else min(held, -self._free)
        if lost == held:
            del self._held[oldest]
        else:
            self._held[oldest] = held - lost
        self._free += lost
        if self.on_loss is not None:
            self.on_loss(oldest)
