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

from moesim.hardware.ops import Op
from moesim.machine.base import (
    DEMAND,
    LANES,
    NOWHERE,
    PREFETCH,
    Direction,
    Prices,
    Ticket,
    Wait,
    chunk_durations,
)

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


class _Job(Ticket):
    __slots__ = ("after", "alarmed", "chunks", "delay_ns", "finished", "priority")

    def __init__(
        self, chunks: list[int], after: Sequence[Ticket], priority: int, delay_ns: int
    ) -> None:
        super().__init__(busy_ns=sum(chunks))
        self.delay_ns = delay_ns
        self.alarmed = False
        self.chunks = deque(chunks)
        self.after = after
        self.priority = priority
        self.finished = False


class _Lane:
    def __init__(self) -> None:
        self.queues: tuple[deque[_Job], deque[_Job]] = (deque(), deque())
        self.current: _Job | None = None


class EventMachine:
    """Runs one server in SimPy's time, event by event."""

    def __init__(
        self, env: simpy.Environment, prices: Prices, rng: np.random.Generator | None = None
    ) -> None:
        self.env = env
        self._prices = prices
        self._rng = rng
        self._lanes = {name: _Lane() for name in LANES}
        self._start_planned = False
        self._waiting: tuple[simpy.Event, Sequence[Ticket]] | None = None

    @property
    def now_ns(self) -> int:
        return int(self.env.now)

    def compute(self, lane: str, op: Op, after: Sequence[Ticket] = ()) -> Ticket:
        landing_ns = self._prices.landing_ns
        return self._issue(lane, [self._prices.compute_ns(op)], DEMAND, after, landing_ns)

    def copy(
        self,
        direction: Direction,
        key: int,
        nbytes: int,
        priority: int,
        after: Sequence[Ticket] = (),
        slot: int = NOWHERE,
    ) -> Ticket:
        chunks = chunk_durations(self._prices, direction, key, nbytes)
        return self._issue(direction, chunks, priority, after)

    def _issue(
        self,
        lane: str,
        chunks: list[int],
        priority: int,
        after: Sequence[Ticket],
        delay_ns: int = 0,
    ) -> Ticket:
        job = _Job(chunks, after, priority, delay_ns)
        self._lanes[lane].queues[priority].append(job)
        self._plan_start()
        return job

    def promote(self, ticket: Ticket) -> None:
        for lane in self._lanes.values():
            if ticket in lane.queues[PREFETCH]:
                assert isinstance(ticket, _Job)
                lane.queues[PREFETCH].remove(ticket)
                lane.queues[DEMAND].append(ticket)
                ticket.priority = DEMAND
                self._plan_start()

    def done(self, ticket: Ticket) -> bool:
        return isinstance(ticket, _Job) and ticket.finished

    def wait_any(self, tickets: Sequence[Ticket], until_ns: int | None = None) -> Wait:
        if any(self.done(ticket) for ticket in tickets):
            return
        if until_ns is not None and until_ns <= self.now_ns:
            return
        wake = self.env.event()
        self._waiting = (wake, tickets)
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
            if queue and all(self.done(ticket) for ticket in queue[0].after):
                job = queue[0]
                if self._too_soon(job):
                    continue
                lane.current = job
                if job.start_ns > self.now_ns:
                    job.start_ns = self.now_ns
                _At(
                    self.env,
                    job.chunks.popleft(),
                    self._order(_COMPLETION),
                    partial(self._finish_chunk, lane, job),
                )
                return

    def _too_soon(self, job: _Job) -> bool:
        """Return whether the landing delay of the job is not over; set an alarm for its end."""
        ready_ns = max((ticket.finish_ns for ticket in job.after), default=0) + job.delay_ns
        wait_ns = ready_ns - self.now_ns
        if wait_ns > 0 and job.after and not job.alarmed:
            job.alarmed = True
            _At(self.env, wait_ns, self._order(_START), self._start_lanes)
        return wait_ns > 0 and bool(job.after)

    def _finish_chunk(self, lane: _Lane, job: _Job, _event: Any) -> None:
        lane.current = None
        self._plan_start()
        if job.chunks:
            return
        lane.queues[job.priority].remove(job)
        job.finish_ns = self.now_ns
        job.finished = True
        if self._waiting is not None and job in self._waiting[1]:
            self._wake(self._waiting[0])
