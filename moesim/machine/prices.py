"""Prices of a simulated machine: the interface, and works whose durations are known."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from typing import Protocol

from moesim.hardware.ops import BatchShape, Copy, Op, Readback, States
from moesim.machine.work import Cost

__all__ = ["Durations", "Prices", "alone_ns"]


class Prices(Protocol):
    """The interface of a simulated machine's cost model."""

    landing_ns: int
    """Delay from the landing of a copy to a computation on the GPU that waited for it."""

    def pieces(self, lane: str, op: Op) -> Sequence[Cost]:
        """Return the costs of a work's pieces, in order.

        A computation has one piece. A copy has one for each chunk, so that demand can overtake a
        prefetch at a chunk boundary.
        """

    def experts_ns(self, tokens: tuple[int, ...]) -> int:
        """Return the duration of `Experts` on the GPU with these rows, whatever layer and keys."""

    def layers_ns(self, batch: BatchShape) -> Sequence[int]:
        """Return the duration of each model layer on the GPU without its routed experts."""


def alone_ns(prices: Prices, lane: str, op: Op) -> int:
    """Return the duration of a work on a lane that is otherwise idle."""
    return sum([piece.alone_ns for piece in prices.pieces(lane, op)])


class Durations(ABC):
    """Prices of one GPU whose lanes share nothing: each work takes a time of its own.

    `compute_ns` is the duration of a computation on the GPU.
    """

    compute_ns: Callable[[Op], int]

    @abstractmethod
    def copy_ns(self, lane: str, nbytes: int) -> int:
        """Return the duration of an uncut copy of `nbytes`."""

    @abstractmethod
    def readback_ns(self, nbytes: int) -> int:
        """Return the duration of bringing `nbytes` of ids to the host."""

    def chunk_bytes(self, lane: str) -> int | None:
        """Return the size above which copies are cut so that demand can overtake; None: never."""
        return None

    def pieces(self, lane: str, op: Op) -> Sequence[Cost]:
        """See `Prices.pieces`.

        A copy pays its latency once, because its chunks are queued back to back. So the sum of its
        pieces is the duration of the uncut copy.
        """
        if isinstance(op, Copy):
            key = lane, op.nbytes
            pieces = self._copies.get(key)
            if pieces is None:
                pieces = self._copies[key] = self._cut(lane, op.nbytes)
            return pieces
        if isinstance(op, Readback):
            return _whole(self.readback_ns(op.nbytes))
        if isinstance(op, States):
            return _whole(self.copy_ns(lane, op.nbytes))
        return _whole(self.compute_ns(op))

    @cached_property
    def _copies(self) -> dict[tuple[str, int], tuple[Cost, ...]]:
        """The pieces of copies, by lane and size: experts have one size, or few."""
        return {}

    def _cut(self, lane: str, nbytes: int) -> tuple[Cost, ...]:
        chunk = self.chunk_bytes(lane) or nbytes
        ends = [self.copy_ns(lane, end) for end in range(chunk, nbytes, chunk)] if chunk else []
        ends.append(self.copy_ns(lane, nbytes))
        return tuple([Cost(end - start) for start, end in zip([0, *ends], ends, strict=False)])


@lru_cache(maxsize=1 << 12)
def _whole(duration_ns: int) -> tuple[Cost]:
    """Return the pieces of a work that is not cut; the layers of a step share most durations."""
    return (Cost(duration_ns),)
