"""The simulated machine without folding: one SimPy event per chunk.

It is slower than `SimMachine` and easier to read. Every chunk boundary is an event in SimPy's
queue, and tests check that both machines agree. SimPy orders simultaneous events by priority:
completions first, then the server, then lanes start work, then flows get their rates. Within a
class the order must not matter; `rng` shuffles it so that tests can check this. What the host does
at one instant keeps its order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import simpy

from moesim.hardware.topology import GPU, Topology
from moesim.machine.flows import Flow, Sharing, shares
from moesim.machine.prices import Prices
from moesim.machine.protocol import Wait
from moesim.machine.work import DEMAND, FAR, PREFETCH, Cost, Work

_COMPLETION, _SERVER, _START, _RATES = 0, 1, 2, 3  # SimPy's normal priority is 1


class _At(simpy.Event):
    """An event at a given time, with the priority of its class."""

    def __init__(
        self,
        env: simpy.Environment,
        delay_ns: int,
        order: float,
        callback: Callable[[Any], None] | None = None,
    ) -> None:
        super().__init__(env)
        self._ok = True
        self._value = None
        if callback is not None and self.callbacks is not None:
            self.callbacks.append(callback)
        env.schedule(self, priority=order, delay=delay_ns)  # type: ignore[arg-type]


class _Job:
    __slots__ = (
        "alarmed", "cancelled", "delay_ns", "finished", "flows", "order", "pieces", "promoted",
        "urgency", "work",
    )  # fmt: skip

    def __init__(self, work: Work, pieces: Sequence[Cost], delay_ns: int, order: int) -> None:
        self.work = work
        self.delay_ns = delay_ns
        self.order = order
        self.alarmed = False
        self.pieces = deque(pieces)
        self.flows = any(piece.uses for piece in pieces)
        self.urgency = work.urgency
        self.finished = False
        self.promoted = False
        self.cancelled = False


class _Running:
    """A flow on its lane. An alarm rings at its finish, if its version is still the same then."""

    def __init__(self, lane: _Lane, job: _Job, start_ns: int, flow: Flow) -> None:
        self.lane = lane
        self.job = job
        self.start_ns = start_ns
        self.flow = flow
        self.version = 0


class _Lane:
    def __init__(self) -> None:
        self.queues: tuple[deque[_Job], deque[_Job]] = (deque(), deque())
        self.current: _Job | None = None


class EventMachine:
    """Runs one server in SimPy's time, event by event."""

    def __init__(
        self,
        env: simpy.Environment,
        prices: Prices,
        topology: Topology | None = None,
        rng: np.random.Generator | None = None,
    ) -> None:
        topology = topology or Topology.single_gpu()
        self.env = env
        self._prices = prices
        self._rng = rng
        self._lanes = {name: _Lane() for name in topology.names}
        self.sharing = Sharing(topology.resources)
        self._host_ns = 0  # when the host has released all work submitted so far
        self._submitted = 0
        self._flows: list[_Running] = []
        self._rates_planned = False
        self._start_planned = False
        self._waiting: tuple[simpy.Event, Sequence[Work]] | None = None

    @property
    def now_ns(self) -> int:
        return int(self.env.now)

    def submit(self, work: Work) -> None:
        delay_ns = self._prices.landing_ns if work.lane == GPU else 0
        pieces = self._prices.pieces(work.lane, work.op)
        work.job = _Job(work, pieces, delay_ns, self._submitted)
        # How long a flow takes is known when it is over.
        work.busy_ns = 0 if work.job.flows else sum(piece.fixed_ns for piece in pieces)
        self._submitted += 1
        self._host_ns = work.release_ns = max(self._host_ns, self.now_ns) + work.issue_ns
        self._when_released(partial(self._release, work.job))

    def promote(self, work: Work) -> None:
        work.job.promoted = True
        self._when_released(partial(self._promote, work.job))

    def cancel(self, work: Work) -> bool:
        job: _Job = work.job
        if job.urgency == DEMAND or job.promoted or job.cancelled or work.start_ns < FAR:
            return False
        job.cancelled = True
        queue = self._lanes[work.lane].queues[PREFETCH]
        if job in queue:  # else the host has not released it
            queue.remove(job)
            self._plan_start()
        return True

    def _when_released(self, action: Callable[[Any], None]) -> None:
        """Do something at the release of the work submitted so far; now if that is over."""
        if self._host_ns > self.now_ns:
            _At(self.env, self._host_ns - self.now_ns, _SERVER, action)
        else:
            action(None)

    def _release(self, job: _Job, _event: Any) -> None:
        if not job.cancelled:
            self._lanes[job.work.lane].queues[job.urgency].append(job)
            self._plan_start()

    def _promote(self, job: _Job, _event: Any) -> None:
        queues = self._lanes[job.work.lane].queues
        if job in queues[PREFETCH]:
            queues[PREFETCH].remove(job)
            queues[DEMAND].append(job)
            job.urgency = DEMAND
            self._plan_start()

    def done(self, work: Work) -> bool:
        return work.job is not None and bool(work.job.finished)

    def wait_any(self, works: Sequence[Work], until_ns: int | None = None) -> Wait:
        if self._host_ns > self.now_ns:
            yield _At(self.env, self._host_ns - self.now_ns, _SERVER)
        if any(self.done(work) for work in works):
            return
        if until_ns is not None and until_ns <= self.now_ns:
            return
        wake = self.env.event()
        self._waiting = (wake, works)
        if until_ns is not None:
            delay = until_ns - self.now_ns
            _At(self.env, delay, self._order(_COMPLETION), lambda _: self._wake(wake))
        yield wake

    def close(self) -> None:
        """Do nothing: there is nothing to release."""

    def _order(self, kind: int) -> float:
        """Return the SimPy priority of a class of events, shuffled inside the class."""
        return kind + (float(self._rng.random()) / 2 if self._rng is not None else 0)

    def _wake(self, wake: simpy.Event) -> None:
        """Resume the server, unless its wait is already over."""
        if self._waiting is not None and self._waiting[0] is wake:
            self._waiting = None
            wake.succeed()  # SimPy's normal priority is that of the server here

    def _plan_start(self) -> None:
        # Lanes start after all other events of this instant, so that they see all issued work.
        if not self._start_planned:
            self._start_planned = True
            _At(self.env, 0, self._order(_START), self._start_lanes)

    def _start_lanes(self, _event: Any) -> None:
        self._start_planned = False
        lanes = list(self._lanes.values())
        if self._rng is not None:
            self._rng.shuffle(lanes)
        for lane in lanes:
            if lane.current is None:
                self._start_one(lane)

    def _start_one(self, lane: _Lane) -> None:
        for queue in lane.queues:
            # Only the first job of a queue may start: within a class the order is that of issue.
            if queue and all(self.done(work) for work in queue[0].work.after):
                job = queue[0]
                if self._too_soon(job):
                    continue
                lane.current = job
                if job.work.start_ns > self.now_ns:
                    job.work.start_ns = self.now_ns
                self._start_piece(lane, job, job.pieces.popleft())
                return

    def _start_piece(self, lane: _Lane, job: _Job, cost: Cost) -> None:
        """Run the fixed part of a piece, and then its flow if it has one."""
        if not shares(cost):
            over = partial(self._finish_piece, lane, job, self.now_ns)
        elif cost.fixed_ns:
            over = partial(self._start_flow, lane, job, cost, self.now_ns)
        else:
            self._start_flow(lane, job, cost, self.now_ns, None)
            return
        _At(self.env, cost.fixed_ns, self._order(_COMPLETION), over)

    def _start_flow(self, lane: _Lane, job: _Job, cost: Cost, start_ns: int, _event: Any) -> None:
        self._flows.append(_Running(lane, job, start_ns, Flow(cost, self.now_ns)))
        self._plan_rates()

    def _plan_rates(self) -> None:
        # After all other events of this instant, so that each flow that runs has its share.
        if not self._rates_planned:
            self._rates_planned = True
            _At(self.env, 0, self._order(_RATES), self._change_rates)

    def _change_rates(self, _event: Any) -> None:
        self._rates_planned = False
        running = sorted(self._flows, key=lambda each: each.job.order)
        finishes = self.sharing.change_rates([each.flow for each in running], self.now_ns)
        for each, finish_ns in zip(running, finishes, strict=True):
            each.version += 1
            alarm = partial(self._finish_flow, each, each.version)
            _At(self.env, finish_ns - self.now_ns, self._order(_COMPLETION), alarm)

    def _finish_flow(self, running: _Running, version: int, event: Any) -> None:
        if running.version == version and running in self._flows:
            self._flows.remove(running)
            self._plan_rates()
            self._finish_piece(running.lane, running.job, running.start_ns, event)

    def _too_soon(self, job: _Job) -> bool:
        """Return whether the landing delay of the job is not over; set an alarm for its end."""
        after = job.work.after
        ready_ns = max((work.finish_ns for work in after), default=0) + job.delay_ns
        wait_ns = ready_ns - self.now_ns
        if wait_ns > 0 and after and not job.alarmed:
            job.alarmed = True
            _At(self.env, wait_ns, self._order(_START), self._start_lanes)
        return wait_ns > 0 and bool(after)

    def _finish_piece(self, lane: _Lane, job: _Job, start_ns: int, _event: Any) -> None:
        lane.current = None
        if job.flows:
            job.work.busy_ns += self.now_ns - start_ns
        self._plan_start()
        if job.pieces:
            return
        lane.queues[job.urgency].remove(job)
        job.work.finish_ns = self.now_ns
        job.finished = True
        if self._waiting is not None and job.work in self._waiting[1]:
            self._wake(self._waiting[0])
