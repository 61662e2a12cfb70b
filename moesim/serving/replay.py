"""Replay: form the same steps as an earlier run, on any machine.

With open arrivals, the batch of a step depends on how long earlier steps took. So two machines form
different batches, and then make different decisions. If one replays the schedule of the other, only
times differ. A replayed step waits until all its requests have arrived.

This wait ends with closed clients, too. After the same steps, the same requests have finished on
both machines. So the same clients become ready, after think times that are drawn per request. They
send the requests in the same order, and the same requests are rejected or end on arrival. So each
request that the first machine had before a step arrives on the second one without a further step.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

from moesim.errors import UsageError
from moesim.policies.batching.base import Batching, Queue, StepPlan
from moesim.serving.run_log import PlanRecord

__all__ = ["Replay"]


class Replay(Batching):
    """A batching policy that repeats the recorded plans of another one.

    It repeats plans and not steps, so that requests are preempted at the same points, too. Raises
    `UsageError` if the schedule does not fit the workload.
    """

    name = "replay"

    def __init__(self, script: Sequence[PlanRecord]) -> None:
        super().__init__()
        self._script = script
        self._next = 0

    def ready(self, running: Sequence[Any], waiting: Sequence[Any]) -> bool:
        present = {request.index for request in chain(running, waiting)}
        # A step must not form before all its requests are here: it would lack some of them.
        return present.issuperset(index for index, _, _ in self._current())

    def plan(self, queue: Queue) -> StepPlan:
        planned = self._current()
        self._next += 1
        present = {request.index: request for request in chain(queue.running, queue.waiting)}
        for index, position, _ in planned:
            request = present.get(index)
            # Another position means other rows, so the comparison would be of two different
            # workloads.
            if request is None or request.position != position:
                at = "not in the queue" if request is None else f"at row {request.position}"
                raise UsageError(
                    f"step {self._next - 1} of the replayed schedule takes request {index} at row "
                    f"{position}, but it is {at}: the schedule is of another workload or memory; "
                    "replay it with the scenario that recorded it"
                )
        return [(present[index], tokens) for index, _, tokens in planned]

    def _current(self) -> PlanRecord:
        """Return the plan to be repeated next."""
        if self._next >= len(self._script):
            raise UsageError(
                f"the replayed schedule ends after {len(self._script)} steps, before the workload "
                "does; replay it with the scenario that recorded it"
            )
        return self._script[self._next]
