"""One run of a plan, observed: on the simulated machine, or on a real one.

A `Bench` is a real machine that stands ready: its device is open, the weights are made. Repeated
runs, and runs of several plans in turn, share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from moesim.machine.journal import Journal
from moesim.serving.replay import Ask
from moesim.serving.workload import build_workload
from moesim.validate.decisions import Witness
from moesim.validate.observation import Observation, observe
from moesim.wiring import Plan, SimPrices, build_server

if TYPE_CHECKING:
    from moesim.hardware.shapes import ModelShape
    from moesim.machine.real.device import Device
    from moesim.machine.real.executor import Executor

__all__ = ["Bench", "RealBench", "arrives_at_once", "ready_torch", "simulate_observed"]


class Bench(Protocol):
    """Somewhere to run plans for real."""

    device: str

    def run(self, plan: Plan, script: Sequence[Ask] | None = None) -> Observation:
        """Serve the plan's workload once; with a `script`, batched as it says."""


def simulate_observed(plan: Plan, script: Sequence[Ask] | None = None) -> Observation:
    """The same on the simulated machine, not folded, so that each operation is seen."""
    import simpy

    from moesim.machine.sim import SimMachine

    witness = Witness(script)
    watched = replace(plan, observer=witness)
    env = simpy.Environment()
    journal = Journal(SimMachine(env, SimPrices(plan.cost)))
    server = build_server(watched, journal)
    env.run(until=env.process(server.run()))
    return observe(watched, server, journal.records, witness, journal.now_ns)


class RealBench:
    """Runs plans with torch on a device: `cpu`, `cuda` or `fake`.

    One executor a model, with as many buffers as the largest of `plans` needs. On the CPU the
    plan's links are emulated: no copy is reported before it would be over on them.
    """

    def __init__(self, device: str, plans: Sequence[Plan]) -> None:
        """Raises `MissingExtra` without torch."""
        ready_torch(device)
        self.device = device
        self._executors: dict[ModelShape, Executor] = {}
        self._largest: dict[ModelShape, Plan] = {}
        for plan in plans:
            known = self._largest.setdefault(plan.cost.shape, plan)
            if plan.buffers > known.buffers:
                self._largest[plan.cost.shape] = plan

    def run(self, plan: Plan, script: Sequence[Ask] | None = None) -> Observation:
        """Raises `UsageError` for a device that is not there, `BudgetError` if the weights do not
        fit into memory, `DeviceError` if it fails, `InvariantError` if it hangs."""
        from moesim.machine.real.run import run_real

        witness = Witness(script)
        watched = replace(plan, observer=witness)
        with closing(self._open(plan)) as device:
            made = run_real(watched, self._executor(plan, device), device)
        return observe(watched, made.server, made.journal.records, witness, made.now_ns)

    def close(self) -> None:
        """Let go of the weights."""
        for executor in self._executors.values():
            executor.close()
        self._executors.clear()

    def _open(self, plan: Plan) -> Device:
        from moesim.machine.real.device import open_device

        hardware = plan.cost.hardware
        return open_device(self.device, h2d=hardware.h2d, d2h=hardware.d2h)

    def _executor(self, plan: Plan, device: Device) -> Executor:
        from moesim.machine.real.run import executor_for

        shape = plan.cost.shape
        if shape not in self._executors:
            self._executors[shape] = executor_for(self._largest.get(shape, plan), device)
        return self._executors[shape]


def ready_torch(device: str) -> None:
    """Make torch compute as it will in the runs. Raises `MissingExtra` without torch."""
    from moesim.record.extra import prepare_torch

    prepare_torch("running on a real machine")
    if device != "cuda":
        from moesim.machine.real.device import one_thread

        one_thread()


def arrives_at_once(plan: Plan) -> bool:
    """Whether all requests are there at time zero, so that no time can change a decision."""
    requests = build_workload(plan.scenario, plan.trace)
    return all(request.arrival_ns == 0 for request in requests)
