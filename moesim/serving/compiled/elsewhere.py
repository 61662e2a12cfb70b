"""Experts that run on the CPU, for the kernel of overlapping events.

Shapes: S steps, L trace layers.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moesim.cost.cpu import CpuCost
from moesim.cost.prices import SimPrices
from moesim.hardware.ops import States
from moesim.hardware.topology import D2H, H2D
from moesim.machine.prices import Prices, alone_ns
from moesim.policies.placement.cost import Cost
from moesim.policies.placement.cpu_layers import CPULayers
from moesim.serving.compiled.records import Elsewhere
from moesim.serving.experts.decision import Place
from moesim.serving.experts.placing import Placing

__all__ = ["OnCPU"]


class OnCPU:
    """Which missing experts run on the CPU, and how long that takes."""

    def __init__(self, prices: Prices, place: Place | None, state_bytes: int, layers: int) -> None:
        """Take what decides a layer event, and the bytes of a row's hidden states."""
        self._prices, self._layers = prices, layers
        self._state_bytes = state_bytes
        self._placing = place if isinstance(place, Placing) else None
        self._tables = np.zeros((3, 1), np.int64)  # chosen, durations and bytes, by rows

    def of(self, rows: int, later_rows: int, more: int) -> Elsewhere:
        """Return it for a step of some rows, and `more` steps of `later_rows` after it."""
        modes = np.zeros((more + 1, self._layers), np.int64)
        states_ns = np.zeros((2, more + 1), np.int64)
        if self._placing is None:
            return Elsewhere(modes, *self._split(), 0, states_ns[0], states_ns[1])
        if len(self._tables[0]) <= rows:
            self._tables = self._tabulate(2 * rows, self._placing)
        for steps, number in ((slice(1, None), later_rows), (slice(1), rows)):
            modes[steps] = self._modes(number, self._placing)
            op = States(0, number, number * self._state_bytes)
            states_ns[:, steps] = [[alone_ns(self._prices, lane, op)] for lane in (D2H, H2D)]
        call_ns = self._cpu.call_ns
        return Elsewhere(modes, *self._split(), call_ns, states_ns[0], states_ns[1])

    def _split(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        chosen, moving_ns, nbytes = self._tables
        return chosen, moving_ns, nbytes

    @property
    def _cpu(self) -> CpuCost:
        assert isinstance(self._prices, SimPrices)
        assert self._prices.cpu is not None, "the machine has a CPU where experts run on it"
        return self._prices.cpu

    def _modes(self, rows: int, placing: Placing) -> npt.NDArray[np.int64]:
        """Return the modes of the layers in a step of some rows, [L]; see `Elsewhere`."""
        policy = placing.policy
        if isinstance(policy, CPULayers):
            end = 0 if policy.copies(rows) else policy.on_cpu
            return (np.arange(self._layers) < end).astype(np.int64)
        return np.full(self._layers, 2 if isinstance(policy, Cost) else 1)

    def _tabulate(self, rows: int, placing: Placing) -> npt.NDArray[np.int64]:
        cpu, estimate = self._cpu, placing.estimate
        loads = [cpu.loads.expert(count) for count in range(1, rows + 1)]
        chosen = [0] * rows
        if isinstance(placing.policy, Cost):
            copy_ns = estimate.copy_ns(0)
            chosen = [
                estimate.cpu_ns(0, count) <= copy_ns + estimate.gpu_ns(0, count)
                for count in range(1, rows + 1)
            ]
        moving_ns = map(cpu.rates.duration_ns, loads)
        nbytes = [load.nbytes for load in loads]
        return np.array([[0, *chosen], [0, *moving_ns], [0, *nbytes]], np.int64)
