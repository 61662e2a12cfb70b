"""Serve a plan on the real machine, with the routing of its trace.

The model computes everything, but a token's experts are read from the trace, as in the simulation.
So weights may be random and of any size.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from moesim.config.units import format_bytes
from moesim.errors import BudgetError, ScenarioError
from moesim.executor.batch import Batch, Span
from moesim.executor.device import Device
from moesim.executor.executor import Executor
from moesim.executor.machine import RealMachine
from moesim.executor.models import shaped_model
from moesim.executor.supported import check_supported
from moesim.serving.request import Request
from moesim.serving.routing import StepRouting, TraceRouting
from moesim.serving.run_log import Issued, Observer, RunLog
from moesim.simulate.build import Plan, build_server

if TYPE_CHECKING:
    from moesim.policies.batching.base import Batching
    from moesim.serving.server import Server
    from moesim.serving.step import Step
    from moesim.trace import Trace

__all__ = ["RealRun", "executor_for", "run_real", "spans_of"]

DTYPES: Final = {64: "float64", 32: "float32", 16: "bfloat16"}
_DISTINCT_BYTES: Final = 2 << 30  # beyond this, experts of random weights share storage


@dataclass(frozen=True, slots=True)
class RealRun:
    """A finished server, and the works that it issued, in order."""

    server: Server
    works: list[Issued]
    now_ns: int


class ExecutedRouting(TraceRouting):
    """The routing of a trace, which also starts each step in the executor."""

    def __init__(self, trace: Trace, executor: Executor) -> None:
        super().__init__(trace)
        self._executor = executor
        self._finished: list[Request] = []

    def step(self, step: Step) -> StepRouting:
        # A finished request's last step is over when the next one begins, so free its KV now.
        for request in self._finished:
            self._executor.release(request.index)
        self._finished = step.finished
        trace = self._trace
        ids: Any = trace.expert_ids[step.rows].astype(np.int64)
        ids[ids == trace.meta.unused] = -1
        weights: Any = None if trace.gate_weights is None else trace.gate_weights[step.rows]
        self._executor.begin(Batch(spans_of(step), None, ids, weights))
        return super().step(step)


def spans_of(step: Step) -> tuple[Span, ...]:
    """Return the span of each request in a step."""
    return tuple(
        Span(request.index, position, tokens, request.max_kv_tokens, emits)
        for request, position, tokens, emits in step.parts
    )


def run_real(
    plan: Plan,
    executor: Executor,
    device: Device,
    *,
    patience_s: float = 60.0,
    batching: Batching | None = None,
    observers: Sequence[Observer] = (),
) -> RealRun:
    """Serve the plan's workload; `batching` and `observers` are as in `build_server`.

    Raise `ScenarioError` for a plan that no real machine runs, `DeviceError` if the device fails,
    `InvariantError` if nothing happens for `patience_s`.
    """
    check_supported(plan)
    chunk_bytes = plan.cost.chunk_bytes("h2d")
    machine = RealMachine(
        executor,
        device,
        topology=plan.places.topology,
        chunk_bytes=chunk_bytes,
        patience_s=patience_s,
    )
    log = RunLog(Issued)
    routing = ExecutedRouting(plan.trace, executor)
    server = build_server(
        plan, machine, batching=batching, routing=routing, observers=[log, *observers]
    )
    try:
        machine.serve(server)
    finally:
        for request in server.requests:
            executor.release(request.index)
    return RealRun(server, log.of(Issued), machine.now_ns)


def executor_for(plan: Plan, device: Device, *, seed: int = 0) -> Executor:
    """Return an executor of the plan's shape with random weights.

    The stored bits give the type: 64, 32 or 16 (bfloat16). Raise `ScenarioError` for other bits,
    `BudgetError` if the weights do not fit into this machine's memory.
    """
    shape, scenario = plan.cost.shape, plan.scenario
    if not shape.equal_sizes:
        raise ScenarioError.at(
            scenario,
            "model.expert_bits_by",
            "the real machine computes with experts of one size; leave the key out",
        )
    if shape.expert_bits != shape.weight_bits or shape.expert_bits not in DTYPES:
        raise ScenarioError.at(
            scenario,
            "model.expert_bits",
            f"the real machine computes with weights of one type, of 64, 32 or 16 bits; here "
            f"experts have {shape.expert_bits:g} and other weights {shape.weight_bits:g}",
        )
    every = plan.trace.num_layers * plan.trace.num_experts
    distinct = max(1, min(_DISTINCT_BYTES // shape.expert_bytes, every))
    pinned = device.pins and plan.places.host.num_pinned > 0
    # On a GPU the buffers are in its own memory, so only the experts count here.
    needed = (distinct + (0 if device.pins else plan.buffers)) * shape.expert_bytes
    host = plan.places.host
    # Experts that are read from disk get rows of their own, as many as host memory holds.
    read = host.room_bytes or 0 if host.needs_disk else 0
    free = free_memory()
    if needed + read > free:
        rows = f", and those read from disk {format_bytes(read)}" if read else ""
        raise BudgetError(
            f"{distinct} experts and {plan.buffers} buffers of {shape.expert_bytes} bytes need "
            f"{format_bytes(needed)}{rows}; this machine has {format_bytes(free)} of free memory"
        )
    _check_device_memory(device, plan.buffers * shape.expert_bytes)
    dtype = DTYPES[int(shape.expert_bits)]
    model = shaped_model(
        plan.model_config or shape, dtype=dtype, seed=seed, device=device.torch_device
    )
    executor = Executor(model, buffers=plan.buffers, distinct_experts=distinct, pinned=pinned)
    if executor.expert_bytes != shape.expert_bytes:
        raise ScenarioError.at(
            scenario,
            "model",
            f"an expert of {shape.name} has {shape.expert_bytes} bytes, one of the model that "
            f"was built for it {executor.expert_bytes}",
        )
    return executor


def _check_device_memory(device: Device, nbytes: int) -> None:
    """Raise `BudgetError` if a GPU has no room for buffers of `nbytes`."""
    if device.torch_device == "cpu":
        return
    free = free_gpu_memory()
    if nbytes > free:
        raise BudgetError(
            f"the expert buffers need {format_bytes(nbytes)}; the GPU has {format_bytes(free)} of "
            "free memory. Lower cache.slots"
        )


def free_gpu_memory() -> int:
    """Return the bytes of the GPU's memory that are free.

    Torch keeps memory that was freed, like the buffers of a closed executor; it is given back.
    """
    import torch

    torch.cuda.empty_cache()
    return int(torch.cuda.mem_get_info()[0])


def free_memory() -> int:
    """Return the bytes of this machine's memory that are free."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
