"""Machines that log what a server requests, and policies that are registered for one test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import simpy
from workloads import run_on

from moesim.hardware.ops import Experts
from moesim.machine.base import GPU, READBACK, Ticket
from moesim.machine.events import EventMachine
from moesim.policies import registry
from moesim.simulate import Outcome, Plan, SimPrices


def enlist(monkeypatch: pytest.MonkeyPatch, family: str, policy: type[Any]) -> str:
    """Register a policy class for this test only; return its name, the class name in lower case."""
    name = policy.__name__.lower()
    registry.find("batching", "fcfs")  # loads all other policies first
    monkeypatch.setattr(policy, "name", name, raising=False)
    monkeypatch.setitem(registry._registry, (family, name), policy)
    return name


@dataclass(frozen=True)
class Work:
    """One request of a server: a copy of `keys[0]`, or a computation of `keys`."""

    lane: str
    kind: str
    keys: tuple[int, ...]
    nbytes: int
    priority: int
    issued_ns: int
    after: tuple[Ticket, ...]
    ticket: Ticket

    @property
    def start(self) -> int:
        return self.ticket.start_ns

    @property
    def finish(self) -> int:
        return self.ticket.finish_ns


class Watched:
    """A machine that logs all requests and passes them to another machine."""

    def __init__(self, machine: Any) -> None:
        self.machine = machine
        self.log: list[Work] = []
        self.promoted: list[Ticket] = []

    @property
    def now_ns(self) -> int:
        return int(self.machine.now_ns)

    def compute(self, lane: str, op: Any, after: Sequence[Ticket] = ()) -> Ticket:
        ticket: Ticket = self.machine.compute(lane, op, after)
        keys = op.keys if isinstance(op, Experts) else ()
        kind = type(op).__name__.lower()
        self.log.append(Work(lane, kind, tuple(keys), 0, 0, self.now_ns, tuple(after), ticket))
        return ticket

    def copy(
        self,
        direction: Any,
        key: int,
        nbytes: int,
        priority: int,
        after: Sequence[Ticket] = (),
        slot: int = -1,
    ) -> Ticket:
        ticket: Ticket = self.machine.copy(direction, key, nbytes, priority, after, slot)
        kind = "readback" if key == READBACK else "copy"
        work = Work(direction, kind, (key,), nbytes, priority, self.now_ns, tuple(after), ticket)
        self.log.append(work)
        return ticket

    def promote(self, ticket: Ticket) -> None:
        self.promoted.append(ticket)
        self.machine.promote(ticket)

    def done(self, ticket: Ticket) -> bool:
        return bool(self.machine.done(ticket))

    def wait_any(self, tickets: Sequence[Ticket], until_ns: int | None = None) -> Any:
        return self.machine.wait_any(tickets, until_ns)

    def close(self) -> None:
        self.machine.close()

    def on(self, lane: str) -> list[Work]:
        """Return the finished work of a lane, in the order of its requests."""
        return [work for work in self.log if work.lane == lane and self.done(work.ticket)]


def watch(
    plan: Plan, make: Callable[[simpy.Environment, SimPrices], Any] = EventMachine
) -> tuple[Outcome, Watched]:
    """Serve a plan, layer by layer; return its outcome and the machine with the log."""
    machines: list[Watched] = []

    def watched(env: simpy.Environment, prices: SimPrices) -> Watched:
        machines.append(Watched(make(env, prices)))
        return machines[0]

    return run_on(plan, watched), machines[0]


def most_at_once(intervals: Sequence[tuple[int, int]]) -> int:
    """Return the largest number of half-open intervals that overlap."""
    edges = sorted([(start, 1) for start, _ in intervals] + [(end, -1) for _, end in intervals])
    most = now = 0
    for _, change in edges:  # at one instant the -1 sorts first
        now += change
        most = max(most, now)
    return most


def experts_alive(machine: Watched, horizon_ns: int) -> list[tuple[int, int]]:
    """Return, for each copy of an expert to the device, the time in which its bytes must stay.

    It lasts from the start of the copy to the end of the last computation that reads it: the last
    one requested before the next copy of the same expert.
    """
    last: dict[int, int] = {}
    spans: list[list[int]] = []
    for work in machine.log:
        if work.lane == "h2d" and work.kind == "copy" and machine.done(work.ticket):
            last[work.keys[0]] = len(spans)
            spans.append([work.start, work.finish])
        elif work.lane == GPU:
            for key in work.keys:
                if key in last:
                    spans[last[key]][1] = max(spans[last[key]][1], work.finish)
    return [(start, min(end, horizon_ns)) for start, end in spans]
