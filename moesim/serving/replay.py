"""Replaying a recorded schedule: the steps another run formed, formed again on any machine.

With open arrivals the batch of a step depends on how fast earlier steps were, so two machines
batch differently and their decisions part. Replaying the schedule of one on the other takes that
away: what is left to compare is time. A scripted step whose requests have not all arrived waits
for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

from moesim.errors import UsageError
from moesim.policies.batching.base import Batching, Plan, Queue

__all__ = ["Ask", "Noted", "Replay"]

# One answer of a batching policy: (request, its rows computed so far, tokens of it).
Ask = tuple[tuple[int, int, int], ...]


class Replay(Batching):
    """Answers what another policy answered when it was asked; memory then disposes as it did.

    Answers and not steps are replayed, so that requests are preempted at the same moments.
    """

    name = "replay"

    def __init__(self, script: Sequence[Ask]) -> None:
        super().__init__()
        self._script = script
        self._next = 0

    def ready(self, running: Sequence[Any], waiting: Sequence[Any]) -> bool:
        present = {request.index for request in chain(running, waiting)}
        return present.issuperset(index for index, _, _ in self._answer())

    def plan(self, queue: Queue) -> Plan:
        answer = self._answer()
        self._next += 1
        present = {request.index: request for request in chain(queue.running, queue.waiting)}
        for index, position, _ in answer:
            found = present.get(index)
            if found is None or found.position != position:
                at = "not in the queue" if found is None else f"at row {found.position}"
                raise UsageError(
                    f"step {self._next - 1} of the replayed schedule takes request {index} at row "
                    f"{position}, and it is {at}: the schedule is of another workload or memory"
                )
        return [(present[index], tokens) for index, _, tokens in answer]

    def _answer(self) -> Ask:
        if self._next >= len(self._script):
            raise UsageError(
                f"the replayed schedule ends after {len(self._script)} steps, before the workload"
            )
        return self._script[self._next]


class Noted(Batching):
    """A batching policy whose answers are noted in `asks`."""

    def __init__(self, policy: Batching, asks: list[Ask]) -> None:
        super().__init__(policy.options)
        self.name = policy.name  # type: ignore[misc]
        self.clairvoyant = policy.clairvoyant  # type: ignore[misc]
        self.ready = policy.ready  # type: ignore[method-assign]
        self._policy = policy
        self._asks = asks

    def plan(self, queue: Queue) -> Plan:
        plan = self._policy.plan(queue)
        self._asks.append(
            tuple((request.index, request.position, tokens) for request, tokens in plan)
        )
        return plan
