"""Lanes of the simulated machine: queues of work whose times are not known yet.

Times are computed without one event for each work (`moesim/machine/sim.py`).
Each lane has a queue of demand and one of prefetches, in order of release. Only the head of a queue
may start. A promoted prefetch stands in both queues until it leaves the second one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from moesim.hardware import topology
from moesim.machine.work import FAR, Cost, Work

_UNKNOWN = -1


class Job:
    """Work that is not settled yet, with the pieces that it still has to start.

    - `left`: how many of its pieces have not started.
    - `order`: the number of its submission.
    - `delay_ns`: how long after the work that it waits for it may start.
    - `promoted_ns`: when it moves to the queue of demand; FAR if it does not.
    - `flows`: whether a piece of it uses a shared resource.
    """

    __slots__ = (
        "_ready_ns",
        "_release_ns",
        "delay_ns",
        "flows",
        "lane",
        "left",
        "order",
        "pieces",
        "promoted_ns",
        "work",
    )

    def __init__(
        self,
        work: Work,
        lane: Lane,
        pieces: Sequence[Cost],
        release_ns: int,
        *,
        order: int,
        flows: bool,
    ) -> None:
        self.work = work
        self.lane = lane
        self.pieces = pieces
        self.order = order
        self.delay_ns = lane.delay_ns
        self.left = len(pieces)
        self.promoted_ns = FAR
        self.flows = flows
        self._release_ns = release_ns
        self._ready_ns = _UNKNOWN

    def ready_ns(self) -> int:
        """Return when it is released and its `after` done; FAR or more while that is unknown."""
        ready = self._ready_ns
        if ready == _UNKNOWN:
            ready = self._release_ns
            for work in self.work.after:
                if work.finish_ns + self.delay_ns > ready:
                    ready = work.finish_ns + self.delay_ns
            if ready < FAR:
                self._ready_ns = ready
        return ready

    def start_ns(self) -> int:
        """Return when it may start as demand; FAR or more while that is unknown."""
        ready = self._ready_ns
        if ready == _UNKNOWN:
            ready = self.ready_ns()
        return ready if self.promoted_ns == FAR or ready > self.promoted_ns else self.promoted_ns

    def left_ns(self) -> int:
        """Return the duration of the pieces that have not started; none uses a shared resource."""
        return sum([piece.fixed_ns for piece in self.pieces[-self.left :]])


class Lane:
    """Busy until `free_ns`; while it runs a flow, FAR.

    `fifo` lanes take no prefetches: they compute, or copy from GPU memory.
    """

    __slots__ = ("delay_ns", "fifo", "free_ns", "name", "prefetches", "urgent")

    def __init__(self, lane: topology.Lane, landing_ns: int) -> None:
        self.name = lane.name
        self.delay_ns = landing_ns if lane.name == topology.GPU else 0
        self.fifo = lane.computes or lane.source == topology.GPU
        self.free_ns = 0
        self.urgent: deque[Job] = deque()
        self.prefetches: deque[Job] = deque()

    def next_start(self, now_ns: int) -> tuple[int, Job | None]:
        """Return when the lane starts its next piece if nothing new is issued, and of which job."""
        soonest, chosen = FAR, None
        free = self.free_ns
        if free >= FAR:
            return soonest, chosen
        if free < now_ns:
            free = now_ns
        if self.urgent:
            job = self.urgent[0]
            start = job.start_ns()
            if start < free:
                start = free
            if start < soonest:
                soonest, chosen = start, job
        for job in self.prefetches:
            start = job.ready_ns()
            if start < free:
                start = free
            if start < job.promoted_ns:
                if start < soonest:
                    soonest, chosen = start, job
                break
            if job.promoted_ns > free:  # until then the next one is not the head
                free = job.promoted_ns
        return soonest, chosen

    def start(self, job: Job, start_ns: int) -> Cost:
        """Start the next piece of a job; return its cost."""
        if job.work.start_ns == FAR:
            job.work.start_ns = start_ns
        cost = job.pieces[-job.left]
        job.left -= 1
        if not job.left:
            self.tidy(start_ns)
        return cost

    def tidy(self, now_ns: int) -> None:
        """Take jobs from the heads of the queues that have started, or were promoted by now."""
        urgent, prefetches = self.urgent, self.prefetches
        while urgent and not urgent[0].left:
            urgent.popleft()
        while prefetches and (not prefetches[0].left or prefetches[0].promoted_ns <= now_ns):
            prefetches.popleft()

    def settle_urgent(self, now_ns: int) -> int:
        """Settle jobs at the head of the queue of demand that no later work can change.

        Return how many. `now_ns` is an instant at which the lane may start work. Jobs that take no
        time are left to the lane's next start: what waits for them may start a moment later than
        other work of the same instant.
        """
        urgent, settled = self.urgent, 0
        free = self.free_ns
        if free < now_ns:
            free = now_ns
        while urgent and free < FAR:
            job = urgent[0]
            work = job.work
            if job.left:  # else it was promoted, but over before
                start = job.start_ns()
                if start > free:
                    # A prefetch that is issued, or gets ready, before then would go first.
                    if not self.fifo or start >= FAR:
                        break
                    free = start
                if job.flows or not work.busy_ns:
                    break
                if work.start_ns == FAR:
                    work.start_ns = free
                free += work.busy_ns if job.left == len(job.pieces) else job.left_ns()
                self.free_ns = work.finish_ns = free
                job.left = 0
                work.job = None  # so that no cycle of references is left
                settled += 1
            urgent.popleft()
        return settled
