"""The interface of a machine: seven members, which are all that a server may ask for.

A server is a generator that issues copies and computations and waits for them. A machine runs it,
in virtual time with a price list, or in real time. Only the server issues work, and it is suspended
while it waits. So between two of its actions the future of every lane is fixed. That is why a
machine that folds time agrees with one that runs every event. A completion callback or an "on idle"
hook would break this.

At equal times, completions come first, then the server, then lanes start work.

A machine may also offer a shortcut, `Folding`, for a whole step of requests to the seven members.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from typing import Any, Final, Literal, Protocol, runtime_checkable

from moesim.hardware.ops import BatchShape, Op
from moesim.machine.step_times import Event, StepBytes, StepTimes

GPU: Final = "gpu"
H2D: Final = "h2d"
D2H: Final = "d2h"
LANES: Final = (GPU, H2D, D2H)

DEMAND: Final = 0
PREFETCH: Final = 1

READBACK: Final = -1  # the "key" of router ids or sampled tokens on their way to the host
NOWHERE: Final = -1  # the "slot" of a copy that touches no expert's buffer
FAR: Final = 1 << 62  # later than every time: the finish of work that is not settled yet

Direction = Literal["h2d", "d2h"]
Wait = Generator[Any, Any, None]


class Ticket:
    """A promise of a copy or a computation; times are integer nanoseconds.

    `start_ns` and `finish_ns` are valid once the machine reports the ticket as done. `busy_ns` is
    the time that its lane worked on it, without pauses between chunks.
    """

    __slots__ = ("busy_ns", "finish_ns", "start_ns")

    def __init__(self, start_ns: int = FAR, finish_ns: int = FAR, busy_ns: int = 0) -> None:
        self.start_ns = start_ns
        self.finish_ns = finish_ns
        self.busy_ns = busy_ns


class Machine(Protocol):
    """The protocol of a machine.

    A lane does one thing at a time. Compute is first come first served, and so are copies within a
    priority. At a chunk boundary an eligible demand copy goes before queued prefetches. Work is
    eligible when all of `after` is done.
    """

    @property
    def now_ns(self) -> int:
        """Return the time of the server's last wait."""

    def copy(
        self,
        direction: Direction,
        key: int,
        nbytes: int,
        priority: int,
        after: Sequence[Ticket] = (),
        slot: int = NOWHERE,
    ) -> Ticket:
        """Queue a copy of expert `key` (or `READBACK`) over the link.

        `slot` is the number of the buffer in GPU memory: the target of a copy in, the source of a
        copy out.
        """

    def compute(self, lane: str, op: Op, after: Sequence[Ticket] = ()) -> Ticket:
        """Queue an operation. A simulated machine prices it, the real machine runs it."""

    def promote(self, ticket: Ticket) -> None:
        """Move a queued prefetch behind the demand copies issued so far; no effect on others."""

    def done(self, ticket: Ticket) -> bool:
        """Return whether the ticket's work finished at or before `now_ns`."""

    def wait_any(self, tickets: Sequence[Ticket], until_ns: int | None = None) -> Iterable[Any]:
        """Wait until one ticket is done or `until_ns` has come; use it as `yield from wait_any()`.

        The time may advance before the first `yield`, so do nothing between call and `yield from`.
        """

    def close(self) -> None:
        """Release lanes, threads and memory."""


@runtime_checkable
class Folding(Protocol):
    """A machine that can time a whole step at once when all its expert decisions are made."""

    def fold(self, batch: BatchShape, events: Sequence[Event], sizes: StepBytes) -> StepTimes:
        """Issue a whole step on idle lanes, or directly behind another folded step.

        After the last folded step, call `wait_any((), until_ns=step_times.finish_ns)`.

        The result equals that of the server's walk through the layers with the seven members. Each
        layer has its front, the readback of its ids and the wait for them. Then come one
        computation of the resident experts, and a demand copy and a computation for each missing
        expert. The step ends with the tail and the readback of the sampled tokens.
        """


class Prices(Protocol):
    """The interface of a simulated machine's cost model."""

    landing_ns: int
    """Delay from the landing of a copy to a computation that waited for it."""

    def compute_ns(self, op: Op) -> int:
        """Return the duration of an operation."""

    def experts_ns(self, tokens: tuple[int, ...]) -> int:
        """Return the duration of `Experts` with these rows; layer and keys do not matter."""

    def layers_ns(self, batch: BatchShape) -> Sequence[int]:
        """Return the duration of each model layer without routed experts: `Front` or `Dense`."""

    def copy_ns(self, direction: Direction, nbytes: int) -> int:
        """Return the duration of an uncut copy of `nbytes`."""

    def readback_ns(self, nbytes: int) -> int:
        """Return the duration of bringing `nbytes` of ids to the host."""

    def chunk_bytes(self, direction: Direction) -> int | None:
        """Return the size above which copies are cut so that demand can overtake; None: never."""


def chunk_durations(prices: Prices, direction: Direction, key: int, nbytes: int) -> list[int]:
    """Return the durations of a copy's chunks, in order; their sum is that of the uncut copy.

    The latency is paid once, because chunks of one copy are queued back to back.
    """
    if key == READBACK:
        return [prices.readback_ns(nbytes)]
    chunk = prices.chunk_bytes(direction)
    if chunk is None or nbytes <= chunk:
        return [prices.copy_ns(direction, nbytes)]
    ends = [prices.copy_ns(direction, end) for end in range(chunk, nbytes, chunk)]
    ends.append(prices.copy_ns(direction, nbytes))
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]
