"""Layer events with known prices, and servers on machines that have a CPU and a disk."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import simpy

from moesim.hardware.ops import BatchShape, Experts, Op
from moesim.hardware.topology import CPU, D2H, DISK, GPU, H2D, HOST, Lane, Topology
from moesim.machine.prices import Durations
from moesim.machine.sim import SimMachine
from moesim.machine.work import Cost
from moesim.policies.view import View
from moesim.serving.experts.decision import Decision
from moesim.serving.experts.program import Program
from moesim.serving.experts.residency import ExpertCache
from moesim.serving.experts.slots import Slot
from moesim.serving.layers import LayerPlan
from moesim.serving.ledger import Ledger
from moesim.serving.server import Server
from moesim.serving.step_memo import EventTimes, StepMemo
from moesim.simulate import Outcome, Plan, SimPrices, build_server, finish

FIVE_LANES = Topology(
    (
        Lane(GPU, GPU, GPU),
        Lane(H2D, HOST, GPU),
        Lane(D2H, GPU, HOST),
        Lane(CPU, HOST, HOST),
        Lane(DISK, DISK, HOST),
    )
)
"""One GPU, one CPU and a disk that share no bandwidth."""
COPY_NS = 100
EXPERT_BYTES = 1000


class HandPrices(Durations):
    """10 ns per row and 1 ns per call of experts, 100 ns per copy of an expert.

    Fronts and the end of a step take `other_ns`. `table` overrides the price of expert calls.
    """

    def __init__(
        self,
        landing_ns: int = 0,
        table: Callable[[tuple[int, ...]], int] | None = None,
        other_ns: int = 0,
    ) -> None:
        self.landing_ns = landing_ns
        self.experts_ns = table or (lambda tokens: 1 + 10 * sum(tokens))
        self._other_ns = other_ns
        self.compute_ns = self._compute_ns

    def _compute_ns(self, op: Op) -> int:
        return self.experts_ns(op.tokens) if isinstance(op, Experts) else self._other_ns

    def copy_ns(self, lane: str, nbytes: int) -> int:
        return COPY_NS * nbytes // EXPERT_BYTES

    def readback_ns(self, nbytes: int) -> int:
        return nbytes

    def layers_ns(self, batch: BatchShape) -> Sequence[int]:
        return [self._other_ns]


def program_on(topology: Topology) -> Callable[[Any], Program]:
    """Return a maker of programs for experts of `EXPERT_BYTES` and hidden states of 100 bytes."""
    return lambda machine: Program(machine, topology, lambda _: EXPERT_BYTES, 100, 1000)


def memo_of(
    prices: HandPrices, topology: Topology | None = None, layers: int = 1
) -> tuple[StepMemo, Ledger]:
    """Return a memo for a model of `layers` layers, and its ledger."""
    topology = topology or Topology.single_gpu()
    plan = LayerPlan(tuple(range(layers)), ((),) * (layers + 1))
    ledger = Ledger(plan, 1000, topology)
    machine = SimMachine(simpy.Environment(), prices, topology)
    return StepMemo(machine, program_on(topology), topology, ledger), ledger


def event_times(
    rows: Sequence[int],
    absent: Sequence[bool],
    buffers: Sequence[int] = (),
    prices: HandPrices | None = None,
) -> EventTimes:
    """Return the times of an event of keys 0, 1, ...; `buffers` are the numbers of their slots.

    By default each key has a slot of its own.
    """
    memo, _ = memo_of(prices or HandPrices())
    return memo.event(decision(rows, absent, buffers), range(len(rows)), tuple(rows), sum(rows))


def decision(
    rows: Sequence[int],
    absent: Sequence[bool],
    buffers: Sequence[int] = (),
    waves: int = 0,
    keys: Sequence[int] = (),
) -> Decision:
    """Return the decision of an event of `keys` (0, 1, ...); the absent ones are copied in."""
    numbers, keys = buffers or range(len(rows)), keys or range(len(rows))
    slots = {number: Slot(number) for number in numbers}
    union = [
        (key, count, slots[number]) for key, count, number in zip(keys, rows, numbers, strict=True)
    ]
    ready = [item for item, missing in zip(union, absent, strict=True) if not missing]
    loads = [item for item, missing in zip(union, absent, strict=True) if missing]
    held = [slot for _, _, slot in ready]
    return Decision(
        0,
        [key for key, *_ in ready],
        [count for _, count, _ in ready],
        held,
        loads=loads,
        waves=waves or bool(loads),
    )


# --- servers with a CPU and a disk ----------------------------------------------------------------


class FiveLanePrices(SimPrices):
    """Prices of a plan; experts take three times as long on the CPU, and a disk is half as fast."""

    def pieces(self, lane: str, op: Op) -> Sequence[Cost]:
        if lane == CPU:
            return (Cost(3 * self.compute_ns(op)),)
        return super().pieces(lane, op)

    def copy_ns(self, lane: str, nbytes: int) -> int:
        return 2 * super().copy_ns(H2D, nbytes) if lane == DISK else super().copy_ns(lane, nbytes)

    def chunk_bytes(self, lane: str) -> int | None:
        return None if lane == DISK else super().chunk_bytes(lane)


class LeastRecent:
    """Host memory that holds some experts; the least recently used one goes to disk."""

    def __init__(self, capacity: int, nbytes: int) -> None:
        self._capacity = capacity
        self._nbytes = nbytes
        self._held: OrderedDict[int, None] = OrderedDict()

    def read(self, key: int) -> int:
        here = self.place(key) == HOST
        self._held[key] = None
        self._held.move_to_end(key)
        if len(self._held) > self._capacity:
            self._held.popitem(last=False)
        return 0 if here else self._nbytes

    def place(self, key: int) -> str:
        return HOST if key in self._held else DISK


def some_on_the_cpu(
    view: View, missing: Sequence[int], arriving: Sequence[int], rows_of_step: int
) -> dict[int, str]:
    """Place about half of the absent experts on the CPU, by their keys and rows."""
    rows = dict(zip(view.union, view.tokens, strict=True))
    return {key: CPU for key in (*missing, *arriving) if (key * 5 + rows[key]) % 4 < 2}


def run_on_five_lanes(
    plan: Plan,
    machine: type[Any],
    monkeypatch: pytest.MonkeyPatch,
    *,
    in_host: int | None = None,
    **execution: Any,
) -> Outcome:
    """Serve a plan with some experts on the CPU, and all but `in_host` experts on disk."""

    def serve(on: Any, *given: Any, caches: Sequence[ExpertCache], **rest: Any) -> Server:
        nbytes = plan.cost.expert_bytes
        host: Any = None if in_host is None else LeastRecent(in_host, nbytes)
        for cache in caches:
            cache.place, cache.host = some_on_the_cpu, host
        rest["ledger"].busy_ns = dict.fromkeys(FIVE_LANES.names, 0)
        rest["execution"] = replace(
            rest["execution"], topology=FIVE_LANES, state_bytes=1024, **execution
        )
        return Server(on, *given, caches=caches, **rest)

    env = simpy.Environment()
    with monkeypatch.context() as patch:
        patch.setattr("moesim.simulate.build.Server", serve)
        prices = FiveLanePrices(plan.cost)
        server = build_server(plan, machine(env, prices, topology=FIVE_LANES))
        env.run(until=env.process(server.run()))
    return finish(plan, server, server.machine.now_ns)
