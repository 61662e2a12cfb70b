"""What a machine is: all that a server may ask for, seven members.

A server is a generator that only says *copy this*, *compute that*, *wait for those*. A machine
runs it: in virtual time with a price list, or in real time. The server alone issues work and is
suspended while it waits, so between two of its actions the future of every lane is fixed; that
is why machines that fold time and machines that live through it agree. Adding a completion
callback or an "on idle" hook would break this.

At equal times: completions first, then the server, then lanes start work.

A machine may also know a shortcut, `Folding`, for what the server would say with the seven.
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
FAR: Final = 1 << 62  # later than everything: the finish of what is not settled yet

Direction = Literal["h2d", "d2h"]
Wait = Generator[Any, Any, None]


class Ticket:
    """A promise of a copy or a computation; times are integer nanoseconds.

    `start_ns` and `finish_ns` are meaningful once the machine says the ticket is done;
    `busy_ns` is how long its lane really worked on it.
    """

    __slots__ = ("busy_ns", "finish_ns", "start_ns")

    def __init__(self, start_ns: int = FAR, finish_ns: int = FAR, busy_ns: int = 0) -> None:
        self.start_ns = start_ns
        self.finish_ns = finish_ns
        self.busy_ns = busy_ns


class Machine(Protocol):
    """The protocol. Lanes do one thing at a time; compute is first come first served, copies are
    too within a priority, and an eligible demand copy goes before queued prefetches (at a chunk
    boundary). Work is eligible when all of `after` is done."""

    @property
    def now_ns(self) -> int:
        """The time, as of the server's last wait."""

    def copy(
        self,
        direction: Direction,
        key: int,
        nbytes: int,
        priority: int,
        after: Sequence[Ticket] = (),
        slot: int = NOWHERE,
    ) -> Ticket:
        """Queue a copy of expert `key` (or `READBACK`) over the link; `slot` is the number of
        the buffer in GPU memory that is written, or read on the way out."""

    def compute(self, lane: str, op: Op, after: Sequence[Ticket] = ()) -> Ticket:
        """Queue an operation, which one machine prices and another runs."""

    def promote(self, ticket: Ticket) -> None:
        """Move a queued prefetch behind the demand copies issued so far; no effect on others."""

    def done(self, ticket: Ticket) -> bool:
        """Whether it finished at or before `now_ns`."""

    def wait_any(self, tickets: Sequence[Ticket], until_ns: int | None = None) -> Iterable[Any]:
        """`yield from` it: resumes as soon as one ticket is done or `until_ns` has come. The time
        may have moved on before the first `yield`, so do nothing between call and `yield from`."""

    def close(self) -> None:
        """Give up lanes, threads and memory."""


@runtime_checkable
class Folding(Protocol):
    """A machine that knows beforehand how a step will go whose experts are all decided."""

    def fold(self, batch: BatchShape, events: Sequence[Event], sizes: StepBytes) -> StepTimes:
        """Issue a whole step on idle lanes, or right behind another that was issued so;
        `wait_any((), until_ns=step_times.finish_ns)` follows the last.

        Stands for exactly what the server's walk through the layers asks of the seven members:
        for each layer its front, the readback of its ids and the wait for them, then one
        computation of the experts that are resident, then a demand copy and a computation for
        each expert copied in; at last the tail, and the readback of the sampled tokens.
        """


class Prices(Protocol):
    """What a simulated machine asks its cost model."""

    landing_ns: int
    """From the landing of a copy until a computation that has waited for it may begin."""

    def compute_ns(self, op: Op) -> int:
        """Duration of an operation."""

    def experts_ns(self, tokens: tuple[int, ...]) -> int:
        """Duration of `Experts` with these rows, of whatever layer and keys."""

    def layers_ns(self, batch: BatchShape) -> Sequence[int]:
        """Duration of each model layer without its routed experts: its `Front`, or `Dense`."""

    def copy_ns(self, direction: Direction, nbytes: int) -> int:
        """Duration of a copy of `nbytes` in one go."""

    def readback_ns(self, nbytes: int) -> int:
        """Duration of bringing `nbytes` of ids back to the host."""

    def chunk_bytes(self, direction: Direction) -> int | None:
        """Size above which a copy is cut so that demand can overtake; None: never."""


def chunk_durations(prices: Prices, direction: Direction, key: int, nbytes: int) -> list[int]:
    """Durations of a copy's chunks, in order; their sum is that of the copy in one go.

    The latency is paid once: chunks of one copy are queued back to back.
    """
    if key == READBACK:
        return [prices.readback_ns(nbytes)]
    chunk = prices.chunk_bytes(direction)
    if chunk is None or nbytes <= chunk:
        return [prices.copy_ns(direction, nbytes)]
    ends = [prices.copy_ns(direction, end) for end in range(chunk, nbytes, chunk)]
    ends.append(prices.copy_ns(direction, nbytes))
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]
