"""A journal of all that a server asks of its machine, in the same form for every machine.

A machine inside a journal cannot fold. So the server asks for each operation, and two machines can
be compared operation by operation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from moesim.hardware.ops import Tail
from moesim.machine.base import Machine
from moesim.machine.work import Work


class Record(NamedTuple):
    """One work, whose times are final when the run is over, and the step that asked for it."""

    step: int
    work: Work


class Journal:
    """A wrapper of a machine that writes `records` in the order of issue."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.records: list[Record] = []
        self._step = 0

    @property
    def now_ns(self) -> int:
        return self.machine.now_ns

    def submit(self, work: Work) -> None:
        self.machine.submit(work)
        before = self.records[-1].work.op if self.records else None
        self.records.append(Record(self._step, work))
        if isinstance(before, Tail):
            self._step += 1  # reading the sampled tokens back is the last request of a step

    def promote(self, work: Work) -> None:
        self.machine.promote(work)

    def done(self, work: Work) -> bool:
        return self.machine.done(work)

    def wait_any(self, works: Sequence[Work], until_ns: int | None = None) -> Iterable[Any]:
        return self.machine.wait_any(works, until_ns)

    def close(self) -> None:
        self.machine.close()
