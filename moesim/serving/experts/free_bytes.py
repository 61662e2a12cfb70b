"""Free bytes: the free part of a cache whose experts have unequal sizes.

A list of free slots says which buffers are free. Here memory is free in bytes, and an expert may
take what several experts left. Each free part knows the slot of the expert that was there last, so
that a copy into it waits until that expert is no longer read. Fragmentation costs nothing: an
expert may lie in several parts.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import NamedTuple

from moesim.serving.experts.slots import Slot

__all__ = ["FreeBytes"]


class _Part(NamedTuple):
    nbytes: int
    slot: Slot
    """Of the expert that left these bytes."""


class FreeBytes:
    """Free memory of `capacity` bytes, used like a list of free slots.

    `pop` returns a new slot without any memory; `take` gives it memory. As in a list, the last
    parts are taken first.
    """

    def __init__(self, capacity: int, first_number: int) -> None:
        self._numbers = count(first_number)
        self.nbytes = capacity
        self._parts = [_Part(capacity, self.pop())] if capacity else []

    def __len__(self) -> int:
        return len(self._parts)

    def __bool__(self) -> bool:
        return True  # slots themselves are never short

    def pop(self) -> Slot:
        """Return a new slot without memory."""
        return Slot(next(self._numbers))

    def append(self, slot: Slot) -> None:
        """Add the memory of an expert that left."""
        self._parts.append(_Part(slot.units, slot))
        self.nbytes += slot.units

    def sort(self, *, key: Callable[[Slot], bool]) -> None:
        """Move parts whose slot has the key True to the end; join neighbours that wait for nothing.

        The key is True for slots whose last reader is done.
        """
        parts: list[_Part] = []
        joins = False  # whether the last part waits for nothing
        for part in sorted(self._parts, key=lambda part: key(part.slot)):
            slot = part.slot
            # Without a reader, the copy of its expert may still be under way.
            waits = not key(slot) or (slot.reader is None and slot.landing is not None)
            if joins and not waits:
                parts[-1] = part._replace(nbytes=part.nbytes + parts[-1].nbytes)
            else:
                parts.append(part)
            joins = not waits
        self._parts = parts

    def take(self, slot: Slot, nbytes: int) -> bool:
        """Give a slot its memory; return False if there is not enough.

        `slot.over` becomes the slots whose memory it takes.
        """
        if nbytes > self.nbytes:
            return False
        self.nbytes -= nbytes
        slot.units, over = nbytes, []
        while nbytes:
            part = self._parts.pop()
            over.append(part.slot)
            if part.nbytes > nbytes:
                self._parts.append(part._replace(nbytes=part.nbytes - nbytes))
            nbytes -= min(nbytes, part.nbytes)
        slot.over = tuple(over)
        return True
