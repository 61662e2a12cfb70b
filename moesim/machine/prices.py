"""Prices of a simulated machine: the interface, and works whose durations are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from moesim.hardware.ops import BatchShape, Copy, Op, Readback, States
from moesim.machine.work import Cost

__all__ = ["Durations", "Prices"]


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


class Durations:
    """Prices of one GPU whose lanes share nothing: each work takes a time of its own.

    `compute_ns` is the duration of a computation on the GPU.
    """

    compute_ns: Callable[[Op], int]

    def copy_ns(self, lane: str, nbytes: int) -> int:
        """Return the duration of an uncut copy of `nbytes`."""
        raise NotImplementedError

    def readback_ns(self, nbytes: int) -> int:
        """Return the duration of bringing `nbytes` of ids to the host."""
        raise NotImplementedError

    def chunk_bytes(self, lane: str) -> int | None:
        """Return the size above which copies are cut so that demand can overtake; None: never."""
        return None

    def pieces(self, lane: str, op: Op) -> Sequence[Cost]:
        """See `Prices.pieces`.

        A copy pays its latency once, because its chunks are queued back to back. So the sum of its
        pieces is the duration of the uncut copy.
        """
        if isinstance(op, Copy):
            nbytes = op.nbytes
            chunk = self.chunk_bytes(lane)
            if chunk is not None and nbytes > chunk:
                ends = [self.copy_ns(lane, end) for end in range(chunk, nbytes, chunk)]
                ends.append(self.copy_ns(lane, nbytes))
                return [Cost(end - start) for start, end in zip([0, *ends], ends, strict=False)]
            return (Cost(self.copy_ns(lane, nbytes)),)
        if isinstance(op, Readback):
            return (Cost(self.readback_ns(op.nbytes)),)
        if isinstance(op, States):
            return (Cost(self.copy_ns(lane, op.nbytes)),)
        return (Cost(self.compute_ns(op)),)
