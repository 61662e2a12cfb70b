"""One observed run of a plan, on the simulated machine or on a real one.

A `Bench` is a real machine that is ready to run: its weights exist. Repeated runs, and runs of
several plans in turn, share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Protocol

from moesim.serving.replay import Replay
from moesim.serving.request import all_at_once
from moesim.serving.run_log import PlanRecord
from moesim.simulate.build import Plan, build_server
from moesim.validate.decisions import Witness
from moesim.validate.observation import Observation, observe
from moesim.workload.workload import build_workload

if TYPE_CHECKING:
    from moesim.executor.device import Device
    from moesim.executor.executor import Executor
    from moesim.model.shapes import ModelShape

__all__ = ["Bench", "RealBench", "arrives_at_once", "ready_torch", "simulate_observed"]


class Bench(Protocol):
    """A real machine that runs plans."""

    device: str

    def run(self, plan: Plan, script: Sequence[PlanRecord] | None = None) -> Observation:
        """Serve the plan's workload once; a `script` gives the batches."""


def simulate_observed(plan: Plan, script: Sequence[PlanRecord] | None = None) -> Observation:
    """Serve the plan's workload on the simulated machine, work by work."""
    import simpy

    from moesim.machine.sim import SimMachine

    witness = Witness()
    env = simpy.Environment()
    machine = SimMachine(env, plan.prices(), plan.places.topology)
    batching = None if script is None else Replay(script)
    server = build_server(plan, machine, batching=batching, observers=[witness])
    env.run(until=env.process(server.run()))
    return observe(plan, server, witness, machine.now_ns)


class RealBench:
    """Runs plans with torch on a device: `cpu`, `cuda` or `fake`.

    Each model has one executor, with as many buffers as the largest of `plans` needs. On the CPU
    the plan's links are emulated: a copy is reported as done only when the link would be done.
    """

    def __init__(self, device: str, plans: Sequence[Plan]) -> None:
        """Prepare for `plans`. Raise `MissingExtra` without torch."""
        ready_torch(device)
        self.device = device
        self._executors: dict[ModelShape, Executor] = {}
        self._largest: dict[ModelShape, Plan] = {}
        # One set of weights and buffers serves all plans of a shape, so it must fit the largest.
        for plan in plans:
            largest = self._largest.setdefault(plan.cost.shape, plan)
            if plan.buffers > largest.buffers:
                self._largest[plan.cost.shape] = plan

    def run(self, plan: Plan, script: Sequence[PlanRecord] | None = None) -> Observation:
        """See `Bench.run`.

        Raise `UsageError` for a missing device, `BudgetError` if the weights do not fit into
        memory, `DeviceError` if the device fails, `InvariantError` if it hangs.
        """
        from moesim.executor.run import run_real

        witness = Witness()
        batching = None if script is None else Replay(script)
        # A new device for each run, because its links are those of the plan.
        with closing(self._open(plan)) as device:
            executor = self._executor_on(device, plan)
            run = run_real(plan, executor, device, batching=batching, observers=[witness])
        return observe(plan, run.server, witness, run.now_ns)

    def close(self) -> None:
        """Release the weights."""
        for executor in self._executors.values():
            executor.close()
        self._executors.clear()

    def _open(self, plan: Plan) -> Device:
        from moesim.executor.device import emulated, open_device

        return open_device(self.device, **emulated(plan.cost))

    def executor(self, plan: Plan) -> Executor:
        """Return the executor of the plan's shape; build it if no run has done so."""
        with closing(self._open(plan)) as device:
            return self._executor_on(device, plan)

    def _executor_on(self, device: Device, plan: Plan) -> Executor:
        from moesim.executor.run import executor_for

        shape = plan.cost.shape
        if shape not in self._executors:
            self._executors[shape] = executor_for(self._largest.get(shape, plan), device)
        return self._executors[shape]


def ready_torch(device: str) -> None:
    """Set torch's threads as the runs will have them. Raise `MissingExtra` without torch."""
    from moesim.record.extra import prepare_torch

    prepare_torch("running on a real machine")
    if device != "cuda":
        from moesim.executor.device import one_thread

        one_thread()


def arrives_at_once(plan: Plan) -> bool:
    """Return whether all requests arrive at time zero, so that no time can change a decision."""
    return all_at_once(build_workload(plan.scenario, plan.trace))
