"""Machines that log what a server requests, and policies that are registered for one test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import simpy
from workloads import run_on

from moesim.hardware.ops import Copy, Experts
from moesim.hardware.topology import GPU
from moesim.machine.events import EventMachine
from moesim.machine.work import Work
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
class Asked:
    """One request of a server: a copy of `keys[0]`, or a computation of `keys`."""

    work: Work
    issued_ns: int

    @property
    def lane(self) -> str:
        return self.work.lane

    @property
    def kind(self) -> str:
        return type(self.work.op).__name__.lower()

    @property
    def keys(self) -> tuple[int, ...]:
        op = self.work.op
        if isinstance(op, Copy):
            return (op.key,)
        return op.keys if isinstance(op, Experts) else ()

    @property
    def nbytes(self) -> int:
        return int(getattr(self.work.op, "nbytes", 0))

    @property
    def priority(self) -> int:
        return self.work.urgency

    @property
    def after(self) -> tuple[Work, ...]:
        return tuple(self.work.after)

    @property
    def start(self) -> int:
        return self.work.start_ns

    @property
    def finish(self) -> int:
        return self.work.finish_ns


class Watched:
    """A machine that logs all requests and passes them to another machine."""

    def __init__(self, machine: Any) -> None:
        self.machine = machine
        self.log: list[Asked] = []
        self.promoted: list[Work] = []
        self.cancelled: list[Work] = []

    @property
    def now_ns(self) -> int:
        return int(self.machine.now_ns)

    def submit(self, work: Work) -> None:
        self.machine.submit(work)
        self.log.append(Asked(work, self.now_ns))

    def promote(self, work: Work) -> None:
        self.promoted.append(work)
        self.machine.promote(work)

    def cancel(self, work: Work) -> bool:
        done = bool(self.machine.cancel(work))
        self.cancelled += [work] * done
        return done

    def done(self, work: Work) -> bool:
        return bool(self.machine.done(work))

    def wait_any(self, works: Sequence[Work], until_ns: int | None = None) -> Any:
        return self.machine.wait_any(works, until_ns)

    def close(self) -> None:
        self.machine.close()

    def on(self, lane: str) -> list[Asked]:
        """Return the finished work of a lane, in the order of its requests."""
        return [each for each in self.log if each.lane == lane and self.done(each.work)]


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
        if work.lane == "h2d" and work.kind == "copy" and machine.done(work.work):
            last[work.keys[0]] = len(spans)
            spans.append([work.start, work.finish])
        elif work.lane == GPU:
            for key in work.keys:
                if key in last:
                    spans[last[key]][1] = max(spans[last[key]][1], work.finish)
    return [(start, min(end, horizon_ns)) for start, end in spans]


def check_buffers(machine: Watched) -> int:
    """Check each buffer by the log alone; return how many copies follow a cancelled one.

    A copy into a buffer starts when all earlier work on it is over. An expert leaves for the host
    from where it has landed.
    """
    users: dict[int, list[Any]] = {}
    place: dict[int, int] = {}
    holds: dict[int, int] = {}
    emptied: set[int] = set()
    follow = 0
    for asked in machine.log:
        buffer, work = asked.work.buffer, asked.work
        if asked.lane == "h2d" and work in machine.cancelled:
            emptied.add(buffer)
        elif asked.lane == "h2d":
            (key,) = asked.keys
            assert all(user.finish_ns <= work.start_ns for user in users.pop(buffer, ()))
            follow += buffer in emptied
            emptied.discard(buffer)
            place[key], holds[buffer] = buffer, key
            users[buffer] = [work]
        elif asked.kind == "copy":
            assert buffer not in emptied
            assert holds[buffer] == asked.keys[0]
            users[buffer].append(work)
        elif asked.kind == "experts":
            for key in asked.keys:
                users[place[key]].append(work)
    return follow
