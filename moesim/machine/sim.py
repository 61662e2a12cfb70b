"""The simulated machine, whose times are computed without one event for each work.

While the server waits, no other code changes the lanes, so their future is known in closed form.
Most work is *settled* (its start and finish are known) when it is issued. The rest is settled
lazily, start by start in order of time, and never beyond the server's next action:

- prefetches, which demand may overtake;
- copies that wait for a slot, or for the host while a prefetch may start;
- work that uses a shared resource, and what waits for it.

`EventMachine` is the same machine with one SimPy event per chunk; tests check that both agree. If
another process has an event before the wait ends, this machine lets SimPy's clock run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import simpy

from moesim.errors import InvariantError, UsageError
from moesim.hardware.topology import Topology
from moesim.machine.flows import Flow, Sharing, shares
from moesim.machine.lanes import Job, Lane
from moesim.machine.prices import Prices
from moesim.machine.protocol import Wait
from moesim.machine.work import DEMAND, FAR, Cost, Work


class _Running:
    """A piece that uses a shared resource, on its lane.

    Until `next_ns` its fixed part runs, and `flow` is None; then `next_ns` is the flow's finish, as
    far as it is known.
    """

    __slots__ = ("cost", "flow", "job", "next_ns", "start_ns")

    def __init__(self, job: Job, cost: Cost, start_ns: int) -> None:
        self.job = job
        self.cost = cost
        self.start_ns = start_ns
        self.next_ns = start_ns + cost.fixed_ns
        self.flow: Flow | None = None


class SimMachine:
    """Runs one server in virtual time inside a SimPy environment."""

    def __init__(
        self, env: simpy.Environment, prices: Prices, topology: Topology | None = None
    ) -> None:
        topology = topology or Topology.single_gpu()
        self.env = env
        self.now_ns = int(env.now)
        self.sharing = Sharing(topology.resources)
        self._host_ns = self.now_ns  # when the host has released all work submitted so far
        self.prices = prices
        self._topology = topology
        self._pieces = prices.pieces
        self._landing_ns = prices.landing_ns
        self._lanes = {lane.name: Lane(lane, prices.landing_ns) for lane in topology.lanes}
        self._all = tuple(self._lanes.values())
        self._fifo = tuple(lane for lane in self._all if lane.fifo)
        self._unsettled = 0
        self._unsettled_ever = 0
        self._running: list[_Running] = []
        self._changed_ns: int | None = None  # when flows began or ended, until rates are computed

    def submit(self, work: Work) -> None:
        if work.issue_ns:
            self._host_ns += work.issue_ns
        work.release_ns = release = self._host_ns
        lane = self._lanes[work.lane]
        pieces = self._pieces(work.lane, work.op)
        busy_ns, _, _, uses = pieces[0]
        if len(pieces) > 1:
            for piece in pieces[1:]:
                busy_ns += piece[0]
                uses = uses or piece[3]
        work.busy_ns = busy_ns
        start = lane.free_ns
        if start < release:
            start = release
        ready = start
        if work.after:
            delay_ns = lane.delay_ns
            for other in work.after:
                if other.finish_ns + delay_ns > ready:
                    ready = other.finish_ns + delay_ns
        # With no unsettled work before it, nothing issued later can change these times. But while a
        # copy waits for its buffer, a prefetch issued later may use the link; and until the copy is
        # released, a prefetch issued before may. Work that takes no time is over only when lanes
        # have started at that instant.
        if busy_ns and ready < FAR and not (uses or work.urgency or lane.urgent):
            overtaken = lane.prefetches and lane.free_ns < release > self.now_ns
            if lane.fifo or (ready == start and not overtaken):
                work.start_ns = ready
                lane.free_ns = work.finish_ns = ready + busy_ns
                return
        order = self._unsettled_ever = self._unsettled_ever + 1
        work.job = Job(work, lane, pieces, release, order=order, flows=bool(uses))
        if uses:
            work.busy_ns = 0  # known when it is over
        if work.urgency == DEMAND:
            lane.urgent.append(work.job)
        elif lane.fifo:
            raise ValueError(f"lane {lane.name} takes no prefetches")
        else:
            lane.prefetches.append(work.job)
        self._unsettled += 1

    def twin(self) -> SimMachine:
        """Return an idle machine at time zero, with the same lanes and prices."""
        return SimMachine(simpy.Environment(), self.prices, self._topology)

    def settle(self) -> int:
        """Advance until all submitted work is done; return that time. For twins only."""
        self._settle_until((), FAR)
        frees = [lane.free_ns for lane in self._all]
        self.now_ns = self._host_ns = max(self.now_ns, *frees)
        return self.now_ns

    def promote(self, work: Work) -> None:
        job: Job | None = work.job
        if job is None or work.urgency == DEMAND or job.promoted_ns < FAR or not job.left:
            return
        # It stands in both queues until then, and may start from either. Pieces that have started
        # stay started: only its place changes.
        job.promoted_ns = self._host_ns
        job.lane.urgent.append(job)
        job.lane.tidy(self.now_ns)
        self._unsettled -= job.lane.settle_urgent(self.now_ns)

    def cancel(self, work: Work) -> bool:
        job: Job | None = work.job
        if job is None or work.urgency == DEMAND or job.promoted_ns < FAR or work.start_ns < FAR:
            return False
        job.lane.prefetches.remove(job)
        work.job = None
        self._unsettled -= 1
        return True

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
            if target < self._host_ns:
                target = self._host_ns
        if target >= FAR:
            times_ns = (self._host_ns, *[lane.free_ns for lane in self._all])
            if until_ns is not None or max(times_ns) >= FAR:
                raise TimeOverflow
            raise InvariantError(14, f"the server waits without end; pending: {self._pending()}")
        # Another process has an event first; it must see SimPy's clock at that time.
        if self.env.peek() <= target:
            return self._let_others_run(target)
        self.now_ns = self._host_ns = target
        return ()

    def _let_others_run(self, target_ns: int) -> Wait:
        yield self.env.timeout(max(0, target_ns - self.env.now))
        self.now_ns = self._host_ns = target_ns

    def _settle_until(self, works: Sequence[Work], until_ns: int) -> int:
        """Return the instant at which the server resumes; settle lanes up to, but not at, it."""
        while True:
            for lane in self._fifo:
                if lane.urgent:
                    self._unsettled -= lane.settle_urgent(0)
            target = until_ns
            for work in works:
                if work.finish_ns < target:
                    target = work.finish_ns
            if target < self._host_ns:
                target = self._host_ns
            soonest, starting = self._next_starts()
            if self._running and self._move_flows(soonest, target):
                continue
            # Starts at `target` itself must wait: the server acts before lanes start work. Nothing
            # starts at FAR or later, not even before a target that host time has moved behind it.
            if soonest >= target or not starting:
                return target
            for job in starting:
                urgent = job.lane.urgent
                if urgent and urgent[0] is job:
                    settled = job.lane.settle_urgent(soonest)
                    if settled:
                        self._unsettled -= settled
                        continue
                self._start(job, soonest)

    def _next_starts(self) -> tuple[int, list[Job]]:
        """Return the instant of the next starts if nothing new is issued, and their jobs."""
        soonest, now_ns = FAR, self.now_ns
        starting: list[Job] = []
        for lane in self._all:
            if lane.urgent or lane.prefetches:
                start, job = lane.next_start(now_ns)
                if job is not None and start <= soonest:
                    if start < soonest:
                        soonest, starting = start, [job]
                    else:
                        starting.append(job)
        return soonest, starting

    def _start(self, job: Job, now_ns: int) -> None:
        """Start the next piece of a job; settle the job if it is the last and shares nothing."""
        cost, lane = job.lane.start(job, now_ns), job.lane
        if job.flows and shares(cost):
            lane.free_ns = FAR
            running = _Running(job, cost, now_ns)
            self._running.append(running)
            if not cost.fixed_ns:
                self._begin_flow(running)
            return
        lane.free_ns = now_ns + cost.fixed_ns
        if job.flows:
            job.work.busy_ns += cost.fixed_ns
        if not job.left:
            job.work.finish_ns = lane.free_ns
            job.work.job = None  # so that no cycle of references is left
            self._unsettled -= 1

    def _begin_flow(self, running: _Running) -> None:
        """End the fixed part of a piece; its bytes move from now on."""
        self._changed_ns = now_ns = running.next_ns
        running.flow = Flow(running.cost, now_ns)
        running.next_ns = FAR

    def _move_flows(self, soonest_ns: int, target_ns: int) -> bool:
        """Do what running flows do next, if it comes before lanes start and the server resumes.

        Return whether there was anything to do. Rates are computed once an instant, after its
        starts.
        """
        changed_ns = self._changed_ns
        if changed_ns is not None and changed_ns < soonest_ns and changed_ns < target_ns:
            self._change_rates(changed_ns)
        next_ns = min([running.next_ns for running in self._running])
        if next_ns > soonest_ns or next_ns > target_ns or next_ns >= FAR:
            return False
        for running in [running for running in self._running if running.next_ns == next_ns]:
            if running.flow is None:
                self._begin_flow(running)
            else:
                self._end_flow(running)
        return True

    def _change_rates(self, now_ns: int) -> None:
        self._changed_ns = None
        moving = [running for running in self._running if running.flow is not None]
        moving.sort(key=lambda running: running.job.order)
        flows = [running.flow for running in moving if running.flow is not None]
        finishes = self.sharing.change_rates(flows, now_ns)
        for running, finish_ns in zip(moving, finishes, strict=True):
            running.next_ns = finish_ns

    def _end_flow(self, running: _Running) -> None:
        job, now_ns = running.job, running.next_ns
        self._changed_ns = now_ns
        self._running.remove(running)
        job.lane.free_ns = now_ns
        job.work.busy_ns += now_ns - running.start_ns
        if not job.left:
            job.work.finish_ns = now_ns
            job.work.job = None
            self._unsettled -= 1

    def _pending(self) -> str:
        queued = [job for lane in self._all for job in (*lane.urgent, *lane.prefetches)]
        jobs = {id(job): job for job in (*(each.job for each in self._running), *queued)}
        works = [job.work for job in jobs.values()]
        return ", ".join([f"{work.op} on {work.lane}" for work in works]) or "nothing"

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
