"""The simulated machine: virtual time, folded.

While the server waits, no other code changes the lanes, so their future is known in closed form.
Most work is *settled* (its start and finish are known) when it is issued. Two kinds of work are
not: prefetches that demand may overtake, and copies that wait for a slot. These are settled lazily,
lane decision by lane decision in order of time, and never beyond the server's next action.

`EventMachine` is the same machine with one SimPy event per chunk; tests check that both agree. If
another process has an event before the wait ends, this machine lets SimPy's clock run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import simpy

from moesim.errors import InvariantError, UsageError
from moesim.hardware.topology import D2H, GPU, H2D, Topology
from moesim.machine.base import Wait
from moesim.machine.prices import Prices
from moesim.machine.work import DEMAND, FAR, PREFETCH, Work


class _Job:
    """Work that is not settled yet, with the durations of its chunks."""

    __slots__ = ("chunks", "delay_ns", "lane", "work")

    def __init__(self, work: Work, lane: _Lane, chunks: list[int], delay_ns: int) -> None:
        self.work = work
        self.lane = lane
        self.chunks = chunks
        self.delay_ns = delay_ns

    def ready_ns(self) -> int:
        """Return when its last dependency is done; FAR or more while that is unknown."""
        return max((work.finish_ns + self.delay_ns for work in self.work.after), default=0)


class _Lane:
    """Busy until `free_ns`; two queues of unsettled jobs, the first more urgent."""

    __slots__ = ("free_ns", "name", "queues")

    def __init__(self, name: str) -> None:
        self.name = name
        self.free_ns = 0
        self.queues: tuple[deque[_Job], deque[_Job]] = (deque(), deque())

    def next_start(self, now_ns: int) -> tuple[int, _Job | None]:
        """Return when the lane starts its next chunk if nothing new is issued, and of which job."""
        soonest, chosen = FAR, None
        for queue in self.queues:
            if queue:
                start = max(queue[0].ready_ns(), self.free_ns, now_ns)
                if start < soonest:
                    soonest, chosen = start, queue[0]
        return soonest, chosen

    def start_chunk(self, job: _Job, start_ns: int) -> bool:
        """Begin the next chunk; return whether it is the last one, which settles the job."""
        work = job.work
        if work.start_ns == FAR:
            work.start_ns = start_ns
        self.free_ns = start_ns + job.chunks.pop(0)
        if job.chunks:
            return False
        work.finish_ns = self.free_ns
        urgent, prefetches = self.queues
        (urgent if urgent and urgent[0] is job else prefetches).popleft()
        return True

    def settle_urgent(self, now_ns: int) -> int:
        """Settle demand jobs that no later work can change; return how many."""
        queue = self.queues[DEMAND]
        settled = 0
        while queue:
            job = queue[0]
            start = max(self.free_ns, now_ns)
            if job.ready_ns() > start:
                break
            settled += 1
            if job.work.start_ns == FAR:
                job.work.start_ns = start
            self.free_ns = job.work.finish_ns = start + sum(job.chunks)
            job.chunks.clear()
            queue.popleft()
        return settled


class SimMachine:
    """Runs one server in virtual time inside a SimPy environment."""

    def __init__(
        self, env: simpy.Environment, prices: Prices, topology: Topology | None = None
    ) -> None:
        topology = topology or Topology.single_gpu()
        self.env = env
        self.now_ns = int(env.now)
        self.prices = prices
        self._topology = topology
        self._pieces = prices.pieces
        self._landing_ns = prices.landing_ns
        self._lanes = {lane.name: _Lane(lane.name) for lane in topology.lanes}
        self._all = tuple(self._lanes.values())
        self._unsettled = 0

    def submit(self, work: Work) -> None:
        lane, after = self._lanes[work.lane], work.after
        chunks = [piece.fixed_ns for piece in self._pieces(work.lane, work.op)]
        work.busy_ns = sum(chunks)
        copies = work.lane != GPU
        delay_ns = 0 if copies else self._landing_ns
        start = lane.free_ns
        if start < self.now_ns:
            start = self.now_ns
        ready = start
        for other in after:
            if other.finish_ns + delay_ns > ready:
                ready = other.finish_ns + delay_ns
        if work.urgency == PREFETCH and work.lane == D2H:
            raise ValueError("prefetches go to the device, not from it")
        # With no unsettled work before it, nothing issued later can change these times. While a
        # copy waits for its buffer, a prefetch issued later may use the link. There are no
        # prefetches from the device, so a copy out can be settled even if it waits.
        first = work.urgency == DEMAND and not lane.queues[DEMAND]
        if first and (ready == start or (work.lane != H2D and ready < FAR)):
            work.start_ns = ready
            lane.free_ns = work.finish_ns = ready + work.busy_ns
            return
        work.job = _Job(work, lane, chunks, delay_ns)
        lane.queues[work.urgency].append(work.job)
        self._unsettled += 1

    def twin(self) -> SimMachine:
        """Return an idle machine at time zero, with the same lanes and prices."""
        return SimMachine(simpy.Environment(), self.prices, self._topology)

    def settle(self) -> int:
        """Advance until all submitted work is done; return that time. For twins only."""
        self._settle_until((), FAR)
        self.now_ns = max(self.now_ns, *(lane.free_ns for lane in self._all))
        return self.now_ns

    def promote(self, work: Work) -> None:
        job = work.job
        if work.finish_ns < FAR or job is None:
            return
        lane: _Lane = job.lane
        # A job that already moved some chunks keeps them: only its place in the queue changes.
        if job in lane.queues[PREFETCH]:
            lane.queues[PREFETCH].remove(job)
            lane.queues[DEMAND].append(job)
        self._unsettled -= lane.settle_urgent(self.now_ns)

    def done(self, work: Work) -> bool:
        return work.finish_ns <= self.now_ns

    def wait_any(self, works: Sequence[Work], until_ns: int | None = None) -> Iterable[Any]:
        target = FAR if until_ns is None else until_ns
        if self._unsettled:
            target = self._settle_until(works, target)
        else:
            for work in works:
                if work.finish_ns < target:
                    target = work.finish_ns
        if target >= FAR:
            if until_ns is not None or any(lane.free_ns >= FAR for lane in self._all):
                raise TimeOverflow
            raise InvariantError(14, f"the server waits without end; pending: {self._pending()}")
        # Another process has an event first; it must see SimPy's clock at that time.
        if self.env.peek() <= target:
            return self._let_others_run(target)
        if target > self.now_ns:
            self.now_ns = target
        return ()

    def _let_others_run(self, target_ns: int) -> Wait:
        yield self.env.timeout(max(0, target_ns - self.env.now))
        self.now_ns = max(self.now_ns, target_ns)

    def _settle_until(self, works: Sequence[Work], until_ns: int) -> int:
        """Return the instant at which the server resumes; settle lanes up to, but not at, it."""
        while True:
            target = until_ns
            for work in works:
                if work.finish_ns < target:
                    target = work.finish_ns
            soonest, chosen = FAR, None
            for lane in self._all:
                if lane.queues[DEMAND] or lane.queues[PREFETCH]:
                    start, job = lane.next_start(self.now_ns)
                    if start < soonest:
                        soonest, chosen = start, job
            # A lane decision at `target` itself must wait: the server acts before lanes start work.
            if chosen is None or soonest >= target:
                return target
            if chosen.lane.start_chunk(chosen, soonest):
                self._unsettled -= 1

    def _pending(self) -> str:
        jobs = [job for lane in self._all for queue in lane.queues for job in queue]
        return ", ".join(f"{job.work.op} on {job.lane.name}" for job in jobs) or "nothing"

    def close(self) -> None:
        """Do nothing: there is nothing to release."""


class TimeOverflow(UsageError):
    """The simulated time exceeds what moesim can count; the caller knows the figures."""

    def __init__(self) -> None:
        super().__init__(
            "the simulated time exceeds 146 years; a figure of the hardware is too small, or has "
            "the wrong unit, for this workload"
        )

    def __reduce__(self) -> tuple[type[TimeOverflow], tuple[()]]:
        """Return how pickle makes a copy: the message is not an argument."""
        return TimeOverflow, ()
