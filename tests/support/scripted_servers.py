"""Servers that follow a script, and a literal simulation of the rules as their oracle.

A script is a list of actions of a server: copy, compute, promote, wait. `play` runs it on a
machine. `read_out` simulates it nanosecond by nanosecond from the rules alone. At each instant
work completes first, then the server acts, then lanes start work. A lane starts the head of its
demand queue if all that the job waits for is done, otherwise the head of its prefetch queue. A
chunk is never interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import simpy

from moesim.hardware.ops import BatchShape, Copy, Tail
from moesim.hardware.topology import D2H, GPU, H2D
from moesim.machine.prices import Durations
from moesim.machine.work import DEMAND, PREFETCH, Work

LANES = (GPU, H2D, D2H)


@dataclass(frozen=True)
class Tariff(Durations):
    """Prices that are easy to read: one byte per nanosecond after a latency."""

    latency_ns: int = 0
    chunk: int | None = None

    def compute_ns(self, op: Any) -> int:  # type: ignore[override]
        return int(op.batch.tokens)

    def copy_ns(self, lane: str, nbytes: int) -> int:
        return self.latency_ns + nbytes

    def readback_ns(self, nbytes: int) -> int:
        return self.latency_ns + nbytes

    landing_ns = 0

    def chunk_bytes(self, lane: str) -> int | None:
        return self.chunk if lane == H2D else None

    def durations(self, lane: str, size: int) -> list[int]:
        """Return the duration of each chunk; the first one includes the latency."""
        if lane == GPU:
            return [size]
        chunk = self.chunk_bytes(lane)
        if chunk is None or size <= chunk:
            return [self.latency_ns + size]
        whole, rest = divmod(size, chunk)
        sizes = [chunk] * whole + [rest] * (rest > 0)
        return [self.latency_ns + sizes[0], *sizes[1:]]


@dataclass(frozen=True)
class Issue:
    """Queue work: a copy of `size` bytes, or on the GPU a computation of `size` nanoseconds."""

    lane: str
    size: int
    priority: int = DEMAND
    after: tuple[int, ...] = ()
    """Numbers of earlier issues."""


@dataclass(frozen=True)
class Promote:
    job: int


@dataclass(frozen=True)
class Await:
    """Wait until one of `jobs` is done, or for `for_ns` at most."""

    jobs: tuple[int, ...] = ()
    for_ns: int | None = None


Script = Sequence[Issue | Promote | Await]
Times = list[tuple[int, int]]


def play(make: Callable[..., Any], tariff: Any, script: Script) -> tuple[Times, list[int]]:
    """Return start and finish of every issue, and when the server resumed from each wait."""
    env = simpy.Environment()
    machine = make(env, tariff)
    tickets: list[Any] = []
    resumed: list[int] = []

    def server() -> Any:
        for action in script:
            if isinstance(action, Issue):
                after = tuple(tickets[job] for job in action.after)
                copy = Copy(len(tickets), action.size)
                op = Tail(BatchShape(action.size, 0, 0, 0)) if action.lane == GPU else copy
                tickets.append(Work(action.lane, op, after, action.priority))
                machine.submit(tickets[-1])
            elif isinstance(action, Promote):
                machine.promote(tickets[action.job])
            else:
                until = None if action.for_ns is None else machine.now_ns + action.for_ns
                yield from machine.wait_any(tuple(tickets[job] for job in action.jobs), until)
                resumed.append(machine.now_ns)
        pending = list(tickets)
        while pending:
            yield from machine.wait_any(pending)
            pending = [ticket for ticket in pending if not machine.done(ticket)]
        machine.close()

    env.run(until=env.process(server()))
    return [(ticket.start_ns, ticket.finish_ns) for ticket in tickets], resumed


@dataclass(eq=False)
class _Job:
    lane: str
    chunks: list[int]
    after: list[_Job]
    start: int = -1
    finish: int = -1


@dataclass
class _Lane:
    queues: tuple[list[_Job], list[_Job]] = field(default_factory=lambda: ([], []))
    current: _Job | None = None
    until: int = 0


def read_out(tariff: Tariff, script: Script) -> tuple[Times, list[int]]:
    """Return what `play` returns, simulated nanosecond by nanosecond."""
    lanes = {name: _Lane() for name in LANES}
    jobs: list[_Job] = []
    resumed: list[int] = []
    todo = list(script)
    waiting: tuple[Sequence[_Job], int | None] | None = None
    now = 0
    while todo or waiting or any(job.finish < 0 for job in jobs):
        moved = True
        while moved:  # what takes no time may set off more at the same instant
            moved = False
            for lane in lanes.values():
                if lane.current is not None and lane.until == now:
                    if not lane.current.chunks:
                        lane.current.finish = now
                        for queue in lane.queues:
                            if lane.current in queue:
                                queue.remove(lane.current)
                    lane.current = None
                    moved = True
            if waiting is not None:
                wanted, until = waiting
                if any(job.finish >= 0 for job in wanted) or (until is not None and until <= now):
                    waiting = None
                    resumed.append(now)
                    moved = True
            while waiting is None and todo:
                moved = True
                action = todo.pop(0)
                if isinstance(action, Issue):
                    chunks = tariff.durations(action.lane, action.size)
                    job = _Job(action.lane, chunks, [jobs[number] for number in action.after])
                    jobs.append(job)
                    lanes[action.lane].queues[action.priority].append(job)
                elif isinstance(action, Promote):
                    job = jobs[action.job]
                    urgent, others = lanes[job.lane].queues
                    if job in others:
                        others.remove(job)
                        urgent.append(job)
                else:
                    until = None if action.for_ns is None else now + action.for_ns
                    wanted = [jobs[number] for number in action.jobs]
                    done = any(job.finish >= 0 for job in wanted)
                    if done or (until is not None and until <= now):
                        resumed.append(now)
                    else:
                        waiting = (wanted, until)
            for lane in lanes.values():
                if lane.current is None:
                    for queue in lane.queues:
                        if queue and all(other.finish >= 0 for other in queue[0].after):
                            job = lane.current = queue[0]
                            lane.until = now + job.chunks.pop(0)
                            if job.start < 0:
                                job.start = now
                            moved = True
                            break
        now += 1
        assert now < 100_000, "the script never ends"
    return [(job.start, job.finish) for job in jobs], resumed


__all__ = [
    "D2H",
    "DEMAND",
    "GPU",
    "H2D",
    "PREFETCH",
    "Await",
    "Issue",
    "Promote",
    "Tariff",
    "play",
    "read_out",
]
