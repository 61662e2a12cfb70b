"""Prefetch buffers: expert-sized buffers for copies ahead, beside the slots of the caches.

An expert that is copied ahead into such a buffer takes no slot until a layer event wants it. Then
it becomes resident: its buffer and the slot of a victim swap roles. If the layer event does not
want it, the buffer is free again and no expert has left for it. mixtral-offloading loads guessed
experts like this (Eliseev and Mazur 2023, arXiv:2312.17238). All caches share the buffers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from moesim.errors import InvariantError
from moesim.policies.view import Key
from moesim.serving.experts.slots import Slot

__all__ = ["PrefetchBuffers"]


class PrefetchBuffers:
    """Buffers of which each is free, or has the expert of a guess that is not due yet.

    `held` are the guessed keys with their buffers, in order of issue.
    """

    def __init__(self, slots: Sequence[Slot]) -> None:
        self._count = len(slots)
        self._free = list(slots)
        self.held: dict[Key, Slot] = {}

    def take(self, key: Key, is_idle: Callable[[Slot], bool]) -> Slot | None:
        """Give a key a buffer, an idle one if there is any; return None if all are held."""
        free = self._free
        if not free:
            return None
        place = next((place for place, slot in enumerate(free) if is_idle(slot)), 0)
        self.held[key] = slot = free.pop(place)
        return slot

    def release(self, key: Key) -> Slot:
        """Free the buffer of a key and return it."""
        slot = self.held.pop(key)
        self._free.append(slot)
        return slot

    def swap(self, key: Key, slot: Slot) -> None:
        """Take `slot` in exchange for the buffer of a key that becomes resident."""
        del self.held[key]
        self._free.append(slot)

    @property
    def unused(self) -> int:
        """Number of guesses that are not due; where sizes are unequal, their bytes."""
        return sum([slot.units for slot in self.held.values()])

    def audit(self) -> None:
        """Check that no buffer is lost. Raise `InvariantError` otherwise."""
        held, free = len(self.held), len(self._free)
        if held + free != self._count:
            raise InvariantError(
                2, f"{held} held + {free} free prefetch buffers are not {self._count}"
            )
