"""A journal of all that a server asks of its machine, in the same form for every machine.

A machine inside a journal cannot fold. So the server asks for each operation, and two machines can
be compared operation by operation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from moesim.hardware.ops import Op, Tail
from moesim.machine.base import NOWHERE, Direction, Machine, Ticket


class Record(NamedTuple):
    """One operation (`op`) or one copy (`op` None) and its ticket.

    The ticket's times are final when the run is over. `step` is the number of the step that asked.
    """

    lane: str
    step: int
    op: Op | None
    key: int
    nbytes: int
    priority: int
    ticket: Ticket


class Journal:
    """A wrapper of a machine that writes `records` in the order of issue."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.records: list[Record] = []
        self._step = 0

    @property
    def now_ns(self) -> int:
        return self.machine.now_ns

    def compute(self, lane: str, op: Op, after: Sequence[Ticket] = ()) -> Ticket:
        ticket = self.machine.compute(lane, op, after)
        self.records.append(Record(lane, self._step, op, NOWHERE, 0, 0, ticket))
        return ticket

    def copy(
        self,
        direction: Direction,
        key: int,
        nbytes: int,
        priority: int,
        after: Sequence[Ticket] = (),
        slot: int = NOWHERE,
    ) -> Ticket:
        ticket = self.machine.copy(direction, key, nbytes, priority, after, slot)
        self.records.append(Record(direction, self._step, None, key, nbytes, priority, ticket))
        if isinstance(self._last_op(), Tail):
            self._step += 1  # reading the sampled tokens back is the last request of a step
        return ticket

    def _last_op(self) -> Op | None:
        return self.records[-2].op if len(self.records) > 1 else None

    def promote(self, ticket: Ticket) -> None:
        self.machine.promote(ticket)

    def done(self, ticket: Ticket) -> bool:
        return self.machine.done(ticket)

    def wait_any(self, tickets: Sequence[Ticket], until_ns: int | None = None) -> Iterable[Any]:
        return self.machine.wait_any(tickets, until_ns)

    def close(self) -> None:
        self.machine.close()
