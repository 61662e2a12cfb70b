"""Replacements of a real machine, observed as validation observes one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import simpy

from moesim.machine.sim import SimMachine
from moesim.machine.threads import ThreadMachine, drive
from moesim.serving.replay import Replay
from moesim.simulate import Plan, SimPrices, build_server
from moesim.validate import Observation, Witness, observe


def simulated(plan: Plan, script: Any = None, *, slower: float = 1.0) -> Observation:
    """Return one run in virtual time; `slower` multiplies all prices."""
    witness = Witness()
    env = simpy.Environment()
    machine = SimMachine(env, _Scaled(plan, slower))
    server = build_server(plan, machine, batching=_replay(script), observers=[witness])
    env.run(until=env.process(server.run()))
    return observe(plan, server, witness, machine.now_ns)


def on_threads(plan: Plan, script: Any = None, *, speed: float = 200.0) -> Observation:
    """Return one run in real time, with the noise of sleeping threads."""
    witness = Witness()
    machine = ThreadMachine(SimPrices(plan.cost), speed=speed)
    try:
        server = build_server(plan, machine, batching=_replay(script), observers=[witness])
        drive(server.run())
    finally:
        machine.close()
    return observe(plan, server, witness, machine.now_ns)


def _replay(script: Any) -> Replay | None:
    return None if script is None else Replay(script)


class PretendBench:
    """A bench in virtual time, slower by a factor that differs a little from run to run."""

    def __init__(self, device: str = "pretend", plans: Sequence[Plan] = (), *, slower: float = 1.0):
        self.device = device
        self.slower = slower
        self.runs: list[str] = []
        self.closed = False
        self._rng = np.random.default_rng(0)

    def run(self, plan: Plan, script: Any = None) -> Observation:
        self.runs.append(plan.scenario.name)
        factor = self.slower * (1 + 0.01 * float(self._rng.random()))
        return simulated(plan, script, slower=factor)

    def close(self) -> None:
        self.closed = True


class _Scaled(SimPrices):
    def __init__(self, plan: Plan, factor: float) -> None:
        super().__init__(plan.cost)
        price = self.compute_ns
        self.compute_ns = lambda op: round(factor * price(op))
        layers_ns = self.layers_ns
        self.layers_ns = lambda batch: [round(factor * each) for each in layers_ns(batch)]
        self._factor = factor

    def copy_ns(self, lane: str, nbytes: int) -> int:
        return round(self._factor * super().copy_ns(lane, nbytes))

    def readback_ns(self, nbytes: int) -> int:
        return round(self._factor * super().readback_ns(nbytes))
