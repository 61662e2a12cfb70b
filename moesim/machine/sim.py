"""The simulated machine: virtual time, folded.

While its server waits, nobody else touches the lanes, so their future is known in closed form:
most work is *settled* (its start and finish known) the moment it is issued. What is not —
prefetches that demand may overtake, copies that wait for a slot — is settled lazily, lane
decision by lane decision in order of time, and never beyond the instant at which the server
acts next. `EventMachine` is the same machine with one SimPy event per chunk; tests hold the two
equal. SimPy's clock is followed wherever another process has something to do before the wait
ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import simpy

from moesim.errors import InvariantError
from moesim.hardware.ops import Op
from moesim.machine.base import (
    D2H,
    DEMAND,
    FAR,
    GPU,
    H2D,
    PREFETCH,
    READBACK,
    Direction,
    Prices,
    Ticket,
    Wait,
    chunk_durations,
)


class _Job(Ticket):
    """Work that is not settled yet: what it waits for and how long its chunks take."""

    __slots__ = ("after", "chunks", "lane", "what")

    def __init__(
        self, lane: _Lane, chunks: list[int], after: Sequence[Ticket], what: object
    ) -> None:
        super().__init__(busy_ns=sum(chunks))
        self.lane = lane
        self.chunks = chunks
        self.after = after
        self.what = what

    def ready_ns(self) -> int:
        """When the last thing it waits for finishes; FAR while that is unknown."""
        return max((ticket.finish_ns for ticket in self.after), default=0)


class _Lane:
    """Busy until `free_ns`; two queues of unsettled jobs, the first more urgent."""

    __slots__ = ("free_ns", "name", "queues")

    def __init__(self, name: str) -> None:
        self.name = name
        self.free_ns = 0
        self.queues: tuple[deque[_Job], deque[_Job]] = (deque(), deque())

    def next_start(self, now_ns: int) -> tuple[int, _Job | None]:
        """When the lane starts its next chunk if nothing new is issued, and of which job."""
        soonest, chosen = FAR, None
        for queue in self.queues:
            if queue:
                start = max(queue[0].ready_ns(), self.free_ns, now_ns)
                if start < soonest:
                    soonest, chosen = start, queue[0]
        return soonest, chosen

    def start_chunk(self, job: _Job, start_ns: int) -> None:
        """Begin the next chunk; the last one settles the job."""
        if job.start_ns == FAR:
            job.start_ns = start_ns
        self.free_ns = start_ns + job.chunks.pop(0)
        if not job.chunks:
            job.finish_ns = self.free_ns
            self.queues[0 if self.queues[0] and self.queues[0][0] is job else 1].popleft()

    def settle_urgent(self, now_ns: int) -> None:
        """Settle the most urgent jobs for which nothing issued later can matter."""
        queue = self.queues[0]
        while queue:
            job = queue[0]
            start = max(self.free_ns, now_ns)
            if job.ready_ns() > start:
                return
            if job.start_ns == FAR:
                job.start_ns = start
            self.free_ns = job.finish_ns = start + sum(job.chunks)
            job.chunks.clear()
            queue.popleft()


class SimMachine:
    """Runs one server in virtual time inside a SimPy environment."""

    def __init__(self, env: simpy.Environment, prices: Prices) -> None:
        self.env = env
        self.now_ns = int(env.now)
        self._prices = prices
        self._compute_ns = prices.compute_ns
        self._chunk_memo: dict[tuple[str, bool, int], list[int]] = {}
        self._gpu = _Lane(GPU)
        self._lanes = {GPU: self._gpu, H2D: _Lane(H2D), D2H: _Lane(D2H)}
        self._all = tuple(self._lanes.values())

    def compute(self, lane: str, op: Op, after: Sequence[Ticket] = ()) -> Ticket:
        it = self._gpu if lane == GPU else self._lanes[lane]
        duration = self._compute_ns(op)
        if not it.queues[0]:
            start = it.free_ns if it.free_ns > self.now_ns else self.now_ns
            for ticket in after:
                if ticket.finish_ns > start:
                    start = ticket.finish_ns
            if start < FAR:
                it.free_ns = finish = start + duration
                return Ticket(start, finish, duration)
        job = _Job(it, [duration], after, op)
        it.queues[0].append(job)
        return job

    def copy(
        self,
        direction: Direction,
        key: int,
        nbytes: int,
        priority: int,
        after: Sequence[Ticket] = (),
    ) -> Ticket:
        lane = self._lanes[direction]
        chunks = self._chunks(direction, key, nbytes)
        if priority == DEMAND and not lane.queues[0]:
            start = lane.free_ns if lane.free_ns > self.now_ns else self.now_ns
            for ticket in after:
                if ticket.finish_ns > start:
                    break
            else:
                duration = chunks[0] if len(chunks) == 1 else sum(chunks)
                lane.free_ns = finish = start + duration
                return Ticket(start, finish, duration)
        job = _Job(lane, list(chunks), after, f"copy of key {key}")
        lane.queues[priority].append(job)
        return job

    def _chunks(self, direction: Direction, key: int, nbytes: int) -> list[int]:
        kind = (direction, key == READBACK, nbytes)
        chunks = self._chunk_memo.get(kind)
        if chunks is None:
            chunks = chunk_durations(self._prices, direction, key, nbytes)
            self._chunk_memo[kind] = chunks
        return chunks

    def promote(self, ticket: Ticket) -> None:
        if ticket.finish_ns < FAR or not isinstance(ticket, _Job):
            return
        lane = ticket.lane
        if ticket in lane.queues[PREFETCH]:
            lane.queues[PREFETCH].remove(ticket)
            lane.queues[DEMAND].append(ticket)
        lane.settle_urgent(self.now_ns)

    def done(self, ticket: Ticket) -> bool:
        return ticket.finish_ns <= self.now_ns

    def wait_any(self, tickets: Sequence[Ticket], until_ns: int | None = None) -> Wait:
        target = self._settle_until(tickets, FAR if until_ns is None else until_ns)
        if self.env.peek() <= target:
            yield self.env.timeout(target - self.env.now)
        if target > self.now_ns:
            self.now_ns = target

    def _settle_until(self, tickets: Sequence[Ticket], until_ns: int) -> int:
        """The instant at which the server resumes; lanes are settled up to, not at, it."""
        while True:
            target = until_ns
            for ticket in tickets:
                if ticket.finish_ns < target:
                    target = ticket.finish_ns
            soonest, chosen = FAR, None
            for lane in self._all:
                if lane.queues[0] or lane.queues[1]:
                    start, job = lane.next_start(self.now_ns)
                    if start < soonest:
                        soonest, chosen = start, job
            if chosen is None or soonest >= target:
                break
            chosen.lane.start_chunk(chosen, soonest)
        if target >= FAR:
            raise InvariantError(14, f"the server waits for ever; pending: {self._pending()}")
        return target

    def _pending(self) -> str:
        jobs = [job for lane in self._all for queue in lane.queues for job in queue]
        return ", ".join(f"{job.what} on {job.lane.name}" for job in jobs) or "nothing"

    def close(self) -> None:
        """Nothing to give up."""
