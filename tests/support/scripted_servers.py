"""Servers that follow a script, and a literal simulation of the rules as their oracle.

A script is a list of actions of a server: copy, compute, promote, cancel, wait. `play` runs it on a
machine. `read_out` simulates it nanosecond by nanosecond from the rules alone. At each instant
work completes first, then the server acts, then lanes start work. A lane starts the head of its
demand queue if all that the job waits for is done, otherwise the head of its prefetch queue. A
chunk is never interrupted.

The host acts one issue time after another, and a job is in its queue from then on. Bytes that move
through shared resources are exact fractions. Rates are whole bytes per second, and a job is over at
a whole nanosecond.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import simpy

from moesim.hardware.ops import BatchShape, Copy, Tail
from moesim.hardware.topology import CPU, D2H, DISK, GPU, H2D, HOST, Lane, Topology
from moesim.machine.events import EventMachine
from moesim.machine.prices import Durations
from moesim.machine.work import DEMAND, PREFETCH, Cost, Work

LANES = (
    Lane(GPU, GPU, GPU),
    Lane(H2D, HOST, GPU),
    Lane(D2H, GPU, HOST),
    Lane(CPU, HOST, HOST),
    Lane(DISK, DISK, HOST),
)
NS = 10**9


@dataclass(frozen=True)
class Tariff(Durations):
    """Prices that are easy to read: one byte per nanosecond after a latency.

    `shared` gives the lanes that use shared resources, each with the resources and how many half
    bytes it moves there for one byte of a job. On these lanes computations are counted in bytes
    too. `rates` gives other rates than one byte per nanosecond, in bytes/s.
    """

    latency_ns: int = 0
    chunk: int | None = None
    capacities: Mapping[str, int] = field(default_factory=dict)
    shared: Mapping[str, Sequence[tuple[str, int]]] = field(default_factory=dict)
    rates: Mapping[str, int] = field(default_factory=dict)

    @property
    def topology(self) -> Topology:
        return Topology(LANES, self.capacities)

    def compute_ns(self, op: Any) -> int:
        return int(op.batch.tokens)

    def copy_ns(self, lane: str, nbytes: int) -> int:
        return self.latency_ns + nbytes

    def readback_ns(self, nbytes: int) -> int:
        return self.latency_ns + nbytes

    landing_ns = 0

    def experts_ns(self, tokens: tuple[int, ...]) -> int:
        return sum(tokens)

    def layers_ns(self, batch: BatchShape) -> Sequence[int]:
        return ()

    def chunk_bytes(self, lane: str) -> int | None:
        return self.chunk if lane in (H2D, DISK) else None

    def pieces(self, lane: str, op: Any) -> Sequence[Cost]:
        if lane not in self.shared:
            return super().pieces(lane, op)
        size = op.nbytes if isinstance(op, Copy) else op.batch.tokens
        return self.parts(lane, size)

    def parts(self, lane: str, size: int) -> list[Cost]:
        """Return the cost of each chunk; the first one includes the latency."""
        if lane in (GPU, CPU) and lane not in self.shared:
            return [Cost(size)]
        chunk = self.chunk_bytes(lane)
        sizes = [size]
        if chunk is not None and size > chunk:
            whole, rest = divmod(size, chunk)
            sizes = [chunk] * whole + [rest] * (rest > 0)
        latencies = [self.latency_ns] + [0] * (len(sizes) - 1)
        if lane not in self.shared:
            return [Cost(paid + size) for paid, size in zip(latencies, sizes, strict=True)]
        rate = self.rates.get(lane, NS)
        return [
            Cost(
                paid, size, rate, tuple((name, -(-size * k // 2)) for name, k in self.shared[lane])
            )
            for paid, size in zip(latencies, sizes, strict=True)
        ]


@dataclass(frozen=True)
class Issue:
    """Queue work: a copy of `size` bytes, or a computation of `size` nanoseconds."""

    lane: str
    size: int
    priority: int = DEMAND
    after: tuple[int, ...] = ()
    """Numbers of earlier issues."""
    issue_ns: int = 0


@dataclass(frozen=True)
class Promote:
    job: int


@dataclass(frozen=True)
class Cancel:
    """Cancel a prefetch that no other job waits for. The host must not be busy then."""

    job: int


@dataclass(frozen=True)
class Await:
    """Wait until one of `jobs` is done, or for `for_ns` at most."""

    jobs: tuple[int, ...] = ()
    for_ns: int | None = None


Script = Sequence[Issue | Promote | Cancel | Await]
Times = list[tuple[int, int]]


class Played(NamedTuple):
    """What a script did on a machine."""

    times: Times
    """Start and finish of every issue; -1 where it was cancelled."""
    resumed: list[int]
    """When the server resumed from each wait."""
    seen: list[list[bool]]
    """Which issues it saw as done then."""
    busy: list[int]
    """How long the lanes worked on each issue."""


def shuffled_events(seed: int) -> Callable[..., EventMachine]:
    """Return a maker of event machines that order simultaneous events of a class at random."""
    return lambda env, prices, topology=None: EventMachine(
        env, prices, topology, rng=np.random.default_rng(seed)
    )


def play(make: Callable[..., Any], tariff: Any, script: Script) -> tuple[Times, list[int]]:
    """Return start and finish of every issue, and when the server resumed from each wait."""
    return play_all(make, tariff, script, looks=False)[:2]


def play_all(
    make: Callable[..., Any], tariff: Any, script: Script, *, looks: bool = True
) -> Played:
    """Return all that a script did on the machine that `make` builds.

    With `looks`, the server asks after each wait which of its works are done.
    """
    env = simpy.Environment()
    machine = make(env, tariff, getattr(tariff, "topology", None))
    tickets: list[Any] = []
    resumed: list[int] = []
    seen: list[list[bool]] = []
    cancelled: set[Any] = set()

    def server() -> Any:
        for action in script:
            if isinstance(action, Issue):
                after = tuple(tickets[job] for job in action.after)
                computes = action.lane in (GPU, CPU)
                copy = Copy(len(tickets), action.size)
                op = Tail(BatchShape(action.size, 0, 0, 0)) if computes else copy
                tickets.append(
                    Work(action.lane, op, after, action.priority, issue_ns=action.issue_ns)
                )
                machine.submit(tickets[-1])
            elif isinstance(action, Promote):
                machine.promote(tickets[action.job])
            elif isinstance(action, Cancel):
                if machine.cancel(tickets[action.job]):
                    cancelled.add(tickets[action.job])
            else:
                until = None if action.for_ns is None else machine.now_ns + action.for_ns
                yield from machine.wait_any(tuple(tickets[job] for job in action.jobs), until)
                resumed.append(machine.now_ns)
                if looks:
                    seen.append([machine.done(ticket) for ticket in tickets])
        pending = [ticket for ticket in tickets if ticket not in cancelled]
        while pending:
            yield from machine.wait_any(pending)
            pending = [ticket for ticket in pending if not machine.done(ticket)]
        machine.close()

    env.run(until=env.process(server()))
    times = [
        (-1, -1) if ticket in cancelled else (ticket.start_ns, ticket.finish_ns)
        for ticket in tickets
    ]
    return Played(times, resumed, seen, [ticket.busy_ns for ticket in tickets])


@dataclass(eq=False)
class _Job:
    lane: str
    parts: list[Cost]
    after: list[_Job]
    order: int
    start: int = -1
    finish: int = -1
    cancelled: bool = False
    promoted: bool = False
    busy: int = 0


@dataclass(eq=False)
class _Lane:
    """What a lane does: the fixed part of a chunk until `until`, then the `left` bytes of it."""

    queues: tuple[list[_Job], list[_Job]] = field(default_factory=lambda: ([], []))
    current: _Job | None = None
    part: Cost = Cost(0)  # noqa: RUF009
    until: int = 0
    left: Fraction | None = None
    rate: int = 0


class _ReadOut:
    """A literal simulation of the rules; `now` is the instant in nanoseconds."""

    def __init__(self, tariff: Tariff, script: Script) -> None:
        self.tariff = tariff
        self.todo = list(script)
        self.lanes = {lane.name: _Lane() for lane in LANES}
        self.jobs: list[_Job] = []
        self.resumed: list[int] = []
        self.seen: list[list[bool]] = []
        self.waiting: tuple[Sequence[_Job], int | None] | None = None
        self.now = 0
        self.host = 0  # the host is busy until then
        self.issuing = False  # the next action's issue time is already in `host`

    def run(self) -> Played:
        while self.todo or self.waiting or any(map(pending, self.jobs)):
            for lane in self.lanes.values():
                if lane.current is not None:
                    lane.current.busy += 1
                if lane.left is not None:
                    lane.left -= Fraction(lane.rate, NS)
            # What takes no time may set off more at the same instant.
            while self.complete() or self.act() or self.start():
                pass
            self.share()
            self.now += 1
            assert self.now < 100_000, "the script never ends"
        times = [(job.start, job.finish) for job in self.jobs]
        return Played(times, self.resumed, self.seen, [job.busy for job in self.jobs])

    def complete(self) -> bool:
        moved = False
        for lane in self.lanes.values():
            if lane.current is None:
                continue
            if lane.left is None and lane.until == self.now:
                moved = True
                if lane.part.uses and lane.part.nbytes:
                    lane.left = Fraction(lane.part.nbytes)
                else:
                    self.end(lane)
            elif lane.left is not None and lane.left <= 0:
                moved = True
                self.end(lane)
        return moved

    def end(self, lane: _Lane) -> None:
        """End the chunk of a lane, and with the last chunk the job."""
        job, lane.current, lane.left = lane.current, None, None
        assert job is not None
        if not job.parts:
            job.finish = self.now
            for queue in lane.queues:
                if job in queue:
                    queue.remove(job)

    def act(self) -> bool:
        """Let the server act, if it does not wait and its host is not busy."""
        if self.waiting is not None:
            wanted, until = self.waiting
            if not self.over(wanted, until):
                return False
            self.resume()
            return True
        if not self.todo:
            return False
        action = self.todo[0]
        if isinstance(action, Issue) and not self.issuing:
            self.host += action.issue_ns
            self.issuing = True
        if self.host > self.now:
            return False
        self.todo.pop(0)
        if isinstance(action, Issue):
            self.issuing = False
            parts = self.tariff.parts(action.lane, action.size)
            after = [self.jobs[number] for number in action.after]
            self.jobs.append(_Job(action.lane, parts, after, len(self.jobs)))
            self.lanes[action.lane].queues[action.priority].append(self.jobs[-1])
        elif isinstance(action, Promote):
            job = self.jobs[action.job]
            job.promoted = True
            urgent, others = self.lanes[job.lane].queues
            if job in others:
                others.remove(job)
                urgent.append(job)
        elif isinstance(action, Cancel):
            job = self.jobs[action.job]
            others = self.lanes[job.lane].queues[PREFETCH]
            if job in others and job.start < 0 and not job.promoted:
                others.remove(job)
                job.cancelled = True
        else:
            # The server reads the time of its last wait, whatever it has issued since.
            seen = self.resumed[-1] if self.resumed else 0
            until = None if action.for_ns is None else seen + action.for_ns
            self.waiting = [self.jobs[number] for number in action.jobs], until
        return True

    def over(self, wanted: Sequence[_Job], until: int | None) -> bool:
        done = any(job.finish >= 0 for job in wanted)
        return done or (until is not None and until <= self.now)

    def resume(self) -> None:
        self.waiting = None
        self.resumed.append(self.now)
        self.seen.append([job.finish >= 0 for job in self.jobs])
        self.host = self.now

    def start(self) -> bool:
        moved = False
        for lane in self.lanes.values():
            if lane.current is None:
                for queue in lane.queues:
                    if queue and all(other.finish >= 0 for other in queue[0].after):
                        job = lane.current = queue[0]
                        lane.part = job.parts.pop(0)
                        lane.until = self.now + lane.part.fixed_ns
                        if job.start < 0:
                            job.start = self.now
                        moved = True
                        break
        return moved

    def share(self) -> None:
        """Give the running flows their rates for the next nanosecond."""
        rest = {name: Fraction(size) for name, size in self.tariff.capacities.items()}
        flows = [lane for lane in self.lanes.values() if lane.left is not None]
        flows.sort(key=lambda lane: (lane.part.rate, lane.current.order if lane.current else 0))
        while flows:
            bounds = [self.bound(lane, flows, rest) for lane in flows]
            lane = flows.pop(bounds.index(min(bounds)))
            lane.rate = max(1, min(bounds))
            for name, nbytes in lane.part.uses:
                rest[name] -= lane.rate * Fraction(nbytes, lane.part.nbytes)

    def bound(self, lane: _Lane, flows: Sequence[_Lane], rest: Mapping[str, Fraction]) -> int:
        """Return the speed of a flow if all flows without a rate had the same speed."""
        bounds = [lane.part.rate]
        for name, _ in lane.part.uses:
            per_byte = [
                Fraction(nbytes, each.part.nbytes)
                for each in flows
                for used, nbytes in each.part.uses
                if used == name
            ]
            bounds.append(rest[name] // sum(per_byte))
        return min(bounds)


def pending(job: _Job) -> bool:
    return job.finish < 0 and not job.cancelled


def read_out(tariff: Tariff, script: Script) -> tuple[Times, list[int]]:
    """Return what `play` returns, simulated nanosecond by nanosecond."""
    return read_out_all(tariff, script)[:2]


def read_out_all(tariff: Tariff, script: Script) -> Played:
    """Return what `play_all` returns, simulated nanosecond by nanosecond."""
    return _ReadOut(tariff, script).run()


__all__ = [
    "CPU",
    "D2H",
    "DEMAND",
    "DISK",
    "GPU",
    "H2D",
    "PREFETCH",
    "Await",
    "Cancel",
    "Issue",
    "Promote",
    "Tariff",
    "play",
    "play_all",
    "read_out",
    "read_out_all",
    "shuffled_events",
]
