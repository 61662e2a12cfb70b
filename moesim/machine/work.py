"""Work: one thing that a lane is asked to do, and the promise that it gets done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from moesim.hardware.ops import Op

__all__ = ["DEMAND", "FAR", "NOWHERE", "PREFETCH", "Cost", "Work"]

DEMAND: Final = 0
PREFETCH: Final = 1
NOWHERE: Final = -1
"""The buffer of work that touches no expert's buffer."""
FAR: Final = 1 << 62
"""Later than every time: the finish of work that is not settled yet."""
_SECOND_NS: Final = 10**9


class Work:
    """One operation on one lane, and its times once a machine has got it.

    - `after`: the work that must be done before it may start.
    - `urgency`: `DEMAND`, or `PREFETCH` for copies that demand may overtake.
    - `buffer`: the number of the expert buffer in GPU memory that a copy fills or reads.
    - `issue_ns`: the host's time to hand it over, in nanoseconds. A real machine ignores it.
    - `release_ns`: when the host had handed it over; 0 on machines without host time.
    - `start_ns`, `finish_ns`: valid once the machine reports the work as done.
    - `busy_ns`: the time that the lane worked on it, without pauses between chunks.
    - `job`: what the machine remembers of it.
    """

    __slots__ = (
        "after",
        "buffer",
        "busy_ns",
        "finish_ns",
        "issue_ns",
        "job",
        "lane",
        "op",
        "release_ns",
        "start_ns",
        "urgency",
    )

    def __init__(
        self,
        lane: str,
        op: Op,
        after: Sequence[Work] = (),
        urgency: int = DEMAND,
        buffer: int = NOWHERE,
        issue_ns: int = 0,
    ) -> None:
        self.lane = lane
        self.op = op
        self.after = after
        self.urgency = urgency
        self.buffer = buffer
        self.issue_ns = issue_ns
        self.release_ns = 0
        self.start_ns = FAR
        self.finish_ns = FAR
        self.busy_ns = 0
        self.job: Any = None

    def __repr__(self) -> str:
        return f"<{self.op} on {self.lane}>"


class Cost(NamedTuple):
    """What a work, or a chunk of a copy, takes.

    First `fixed_ns`, which use no shared resource. Then `nbytes` at the lane's own `rate` in
    bytes/s, or slower where lanes share a resource: `uses` holds the name of each shared resource
    and the bytes that this work moves through it. Without `uses`, all time is in `fixed_ns`.
    """

    fixed_ns: int
    nbytes: int = 0
    rate: int = 0
    uses: tuple[tuple[str, int], ...] = ()

    @property
    def alone_ns(self) -> int:
        """The duration while no other lane uses the resources, rounded up to whole nanoseconds."""
        return self.fixed_ns + (-(-self.nbytes * _SECOND_NS // self.rate) if self.rate else 0)
