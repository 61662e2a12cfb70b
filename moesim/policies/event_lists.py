"""Lists of whole numbers, one for each layer event, as two arrays.

A long run has a million layer events of some dozen keys. As lists of Python they would take most of
its memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, pairwise
from typing import Any, Final, overload

import numpy as np
import numpy.typing as npt

__all__ = ["EventLists"]

_CHUNK: Final = 4096  # events that are lists of Python at a time


class EventLists(Sequence[list[int]]):
    """The lists of events in order: `flat` has all numbers, [N], and `ends` each list's end, [E].

    An element is a list. Two are equal if all their lists are.
    """

    __slots__ = ("ends", "flat")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, flat: npt.NDArray[Any], sizes: npt.NDArray[Any]) -> None:
        self.flat = flat
        self.ends = np.cumsum(sizes, dtype=np.int64)

    @classmethod
    def of(cls, lists: Iterable[Sequence[int]]) -> EventLists:
        """Return the same lists as arrays; what is one already stays as it is."""
        if isinstance(lists, EventLists):
            return lists
        every = list(lists)
        flat = np.fromiter(chain.from_iterable(every), np.int64)
        return cls(flat, np.fromiter(map(len, every), np.int64, len(every)))

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """The length of each list, [E]."""
        return np.diff(self.ends, prepend=0)

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, place: int) -> list[int]: ...
    @overload
    def __getitem__(self, place: slice) -> list[list[int]]: ...
    def __getitem__(self, place: int | slice) -> Any:
        if isinstance(place, slice):
            return [self[each] for each in range(*place.indices(len(self)))]
        place = range(len(self))[place]  # also from the end; an IndexError behind it
        begin = self.ends[place - 1] if place else 0
        return self.flat[begin : self.ends[place]].tolist()

    def __iter__(self) -> Iterator[list[int]]:
        begin = 0
        for first in range(0, len(self), _CHUNK):
            ends = self.ends[first : first + _CHUNK]
            numbers = self.flat[begin : ends[-1]].tolist()
            for start, end in pairwise([0, *(ends - begin).tolist()]):
                yield numbers[start:end]
            begin = int(ends[-1])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, EventLists):
            return NotImplemented
        return np.array_equal(self.ends, other.ends) and np.array_equal(self.flat, other.flat)

    def __repr__(self) -> str:
        return f"<EventLists: {len(self)} lists of {len(self.flat)} numbers>"

    def filled(self) -> EventLists:
        """Return the lists that are not empty."""
        sizes = self.sizes
        return EventLists(self.flat, sizes[sizes > 0])

    def singles(self) -> EventLists:
        """Return a list for each number."""
        return EventLists(self.flat, np.ones(len(self.flat), np.int64))

    def grouped(self, groups: Sequence[int], count: int) -> list[EventLists]:
        """Return the lists of each of `count` groups, in order; none may be empty.

        `groups[n]` is the group of a list with the number n. A list has numbers of one group.
        """
        if count == 1:
            return [self]
        of_number = np.array(groups, np.int32)[self.flat]
        of_list, sizes = of_number[self.ends - 1], self.sizes
        return [
            EventLists(self.flat[of_number == group], sizes[of_list == group])
            for group in range(count)
        ]
