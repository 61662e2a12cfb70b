"""The simulated machine without folding: one SimPy event per chunk.

It is slower than `SimMachine` and easier to read. Every chunk boundary is an event in SimPy's
queue, and tests check that both machines agree. SimPy orders simultaneous events by priority:
completions first, then the server, then lanes start work. Within a class the order must not
matter; `rng` shuffles it so that tests can check this.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import simpy

from moesim.hardware.topology import GPU, Topology
from moesim.machine.base import Wait
from moesim.machine.prices import Prices
from moesim.machine.work import DEMAND, PREFETCH, Work

_COMPLETION, _START = 0, 2  # the server resumes at SimPy's normal priority, 1


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
    __slots__ = ("alarmed", "chunks", "delay_ns", "finished", "urgency", "work")

    def __init__(self, work: Work, chunks: list[int], delay_ns: int) -> None:
        self.work = work
        self.delay_ns = delay_ns
        self.alarmed = False
        self.chunks = deque(chunks)
        self.urgency = work.urgency
        self.finished = False


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
        self._start_planned = False
        self._waiting: tuple[simpy.Event, Sequence[Work]] | None = None

    @property
    def now_ns(self) -> int:
        return int(self.env.now)

    def submit(self, work: Work) -> None:
        chunks = [piece.fixed_ns for piece in self._prices.pieces(work.lane, work.op)]
        work.busy_ns = sum(chunks)
        work.job = _Job(work, chunks, self._prices.landing_ns if work.lane == GPU else 0)
        self._lanes[work.lane].queues[work.urgency].append(work.job)
        self._plan_start()

    def promote(self, work: Work) -> None:
        job, queues = work.job, self._lanes[work.lane].queues
        if job in queues[PREFETCH]:
            queues[PREFETCH].remove(job)
            queues[DEMAND].append(job)
            job.urgency = DEMAND
            self._plan_start()

    def done(self, work: Work) -> bool:
        return work.job is not None and bool(work.job.finished)

    def wait_any(self, works: Sequence[Work], until_ns: int | None = None) -> Wait:
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
                _At(
                    self.env,
                    job.chunks.popleft(),
                    self._order(_COMPLETION),
                    partial(self._finish_chunk, lane, job),
                )
                return

    def _too_soon(self, job: _Job) -> bool:
        """Return whether the landing delay of the job is not over; set an alarm for its end."""
        after = job.work.after
        ready_ns = max((work.finish_ns for work in after), default=0) + job.delay_ns
        wait_ns = ready_ns - self.now_ns
        if wait_ns > 0 and after and not job.alarmed:
            job.alarmed = True
            _At(self.env, wait_ns, self._order(_START), self._start_lanes)
        return wait_ns > 0 and bool(after)

    def _finish_chunk(self, lane: _Lane, job: _Job, _event: Any) -> None:
        lane.current = None
        self._plan_start()
        if job.chunks:
            return
        lane.queues[job.urgency].remove(job)
        job.work.finish_ns = self.now_ns
        job.finished = True
        if self._waiting is not None and job.work in self._waiting[1]:
            self._wake(self._waiting[0])
