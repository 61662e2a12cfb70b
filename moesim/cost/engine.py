"""Costs under an engine: its kernels one after another, at what they reach of the machine.

A kernel takes a fixed time, and then the longer of its traffic and its arithmetic, each at the
engine's share of the machine's peak for the stored format. A product of few rows is padded: its
tiles are computed whole. Results are integers, rounded up.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import ClassVar, NamedTuple

from moesim.cost.cpu import Call, CpuCost
from moesim.cost.parts import Part, Parts
from moesim.cost.roofline import CostModel, remember
from moesim.engines.engine import IDEAL, Engine, Kernels
from moesim.engines.profile_schema import KV
from moesim.errors import UsageError
from moesim.hardware.hardware import Hardware
from moesim.hardware.ops import BatchShape, Dense, Experts, Front, Op, Tail
from moesim.model.shapes import ModelShape

__all__ = ["EngineCost", "EngineCpuCost", "KernelTimes", "Peaks"]

_SECOND_NS = 10**9


class Peaks(NamedTuple):
    """The peaks of a processor: operations/s on floats and on integers, bytes/s of its memory."""

    flops_per_s: float
    int8_per_s: float
    bytes_per_s: float

    def ops_per_s(self, family: str) -> float:
        """Return the operations/s with weights of a family; quantised ones multiply as integers."""
        return self.flops_per_s if family in ("float", KV) else self.int8_per_s


class KernelTimes:
    """The times of an engine's kernels on one processor."""

    def __init__(self, kernels: Kernels, peaks: Peaks, threads: int = 0) -> None:
        self.kernels = kernels
        self.peaks = peaks
        self.kernel_ns = kernels.kernel_ns + threads * kernels.thread_ns

    def fixed_ns(self, parts: Sequence[Part]) -> int:
        """Return the fixed times of the kernels of all parts."""
        numbers = [self.kernels.number(part.kernels) for part in parts if part.kernels]
        return sum(numbers) * self.kernel_ns

    def moving_ns(self, part: Part) -> int:
        """Return the longer of a part's traffic and arithmetic."""
        kernels, peaks, family = self.kernels, self.peaks, part.family
        traffic = part.nbytes / (peaks.bytes_per_s * kernels.bandwidth_of(family))
        flops: float = part.flops
        if family == KV:
            pass
        elif part.step_rows > kernels.vector_rows:
            flops *= (part.rows + kernels.padding) / max(1, part.rows)
        else:
            traffic *= 1 + kernels.vector_row * (part.rows - 1)
        arithmetic = flops / (peaks.ops_per_s(family) * kernels.compute_of(family))
        return ceil(max(traffic, arithmetic) * _SECOND_NS)

    def duration_ns(self, parts: Sequence[Part]) -> int:
        """Return the time of all parts, one after another."""
        return self.fixed_ns(parts) + sum(map(self.moving_ns, parts))

    def call_ns(self, experts: int = 0, step_rows: int = 1) -> int:
        """Return the fixed times of a grouped call of routed experts."""
        kernels = self.kernels
        number = kernels.numbers["experts"]
        if step_rows > kernels.vector_rows:
            number += kernels.numbers.get("each_expert", 0) * experts
        return number * self.kernel_ns


class EngineCost(CostModel):
    """Durations of the operations and copies of one model on one machine under an engine."""

    sums_experts: ClassVar[bool] = False

    def __init__(
        self,
        hardware: Hardware,
        shape: ModelShape,
        engine: Engine,
        *,
        interface: str | None = None,
        pinned: bool = True,
    ) -> None:
        """Raise UsageError where the engine has no kernels for the interface."""
        super().__init__(hardware, shape, pinned=pinned, engine=engine)
        kernels = engine.kernels(interface)
        if kernels is None:
            raise UsageError(f"the engine {engine.name} has no figures of kernels on a GPU")
        self.interface = interface
        self.parts = Parts(shape)
        flops = hardware.flops_per_s
        self.times = KernelTimes(
            kernels,
            Peaks(
                flops,
                hardware.int8_ops_per_s or flops,
                hardware.memory_bytes_per_s,
            ),
        )

    def experts_ns(self, tokens: tuple[int, ...], nbytes: tuple[int, ...] | None = None) -> int:
        if not tokens:
            return 0
        key = tokens if nbytes is None else None
        duration_ns = None if key is None else self._experts_memo.get(key)
        if duration_ns is None:
            parts = self.parts.experts(tokens, nbytes)
            duration_ns = self.times.call_ns(len(parts), parts[0].step_rows)
            duration_ns += sum(map(self.times.moving_ns, parts))
            if key is not None:
                remember(self._experts_memo, key, duration_ns)
        return duration_ns

    @property
    def call_ns(self) -> int:
        return self.times.call_ns()

    def _layer_ns(self, layer: int, batch: BatchShape) -> int:
        key = (self.loads.kind_of[layer], batch)
        duration_ns = self._layer_memo.get(key)
        if duration_ns is None:
            duration_ns = self.times.duration_ns(self.parts.layer(layer, batch))
            remember(self._layer_memo, key, duration_ns)
        return duration_ns

    def tail_ns(self, batch: BatchShape) -> int:
        duration_ns = self._tail_memo.get(batch)
        if duration_ns is None:
            duration_ns = self.times.duration_ns(self.parts.tail(batch))
            duration_ns += self.engine.step_ns + self.router_ns(batch)
            remember(self._tail_memo, batch, duration_ns)
        return duration_ns

    def router_ns(self, batch: BatchShape) -> int:
        return self.times.duration_ns(self.parts.router(batch))

    def pageable(self) -> CostModel:
        return EngineCost(
            self.hardware, self.shape, self.engine, interface=self.interface, pinned=False
        )


class EngineCpuCost(CpuCost):
    """The calls of one model's operations on the CPU of one machine under an engine."""

    def __init__(
        self, hardware: Hardware, shape: ModelShape, kernels: Kernels, engine: Engine = IDEAL
    ) -> None:
        """Raise UsageError where the hardware lacks a figure of the CPU.

        `kernels` are those on the CPU; of `engine` the time of a step counts.
        """
        super().__init__(hardware, shape, engine)
        self.parts = Parts(shape)
        cores, threads = hardware.cpu_cores, hardware.cpu_threads or hardware.cpu_cores
        share = threads / cores if cores and threads else 1.0
        assert hardware.cpu_flops_per_s is not None
        flops = hardware.cpu_flops_per_s * share
        int8 = hardware.cpu_int8_ops_per_s * share
        peak = self.rates.bytes_per_s * (kernels.sockets if hardware.cpu_sockets > 1 else 1)
        self.times = KernelTimes(kernels, Peaks(flops, int8 or flops, peak), threads or 0)
        self.call_ns = self.times.call_ns()

    def call(self, op: Op) -> Call:
        if isinstance(op, Experts):
            return self.experts(op.tokens)
        if isinstance(op, Front | Dense):
            return self._kernels(self.parts.layer(op.layer, op.batch))
        assert isinstance(op, Tail), f"{op} is no computation"
        parts = [*self.parts.tail(op.batch), *self.parts.router(op.batch)]
        return self._kernels(parts, self.engine.step_ns)

    def experts(self, tokens: tuple[int, ...], nbytes: tuple[int, ...] | None = None) -> Call:
        call = self._experts_memo.get((tokens, nbytes))
        if call is None:
            call = Call(0, 0, 0)
            if tokens:
                parts = self.parts.experts(tokens, nbytes)
                fixed_ns = self.times.call_ns(len(parts), parts[0].step_rows)
                call = self._kernels(parts, fixed_ns)
            remember(self._experts_memo, (tokens, nbytes), call)
        return call

    def _kernels(self, parts: Sequence[Part], fixed_ns: int = 0) -> Call:
        fixed_ns += self.times.fixed_ns(parts)
        moving_ns = sum(map(self.times.moving_ns, parts))
        return Call(fixed_ns, moving_ns, sum(part.nbytes for part in parts))
