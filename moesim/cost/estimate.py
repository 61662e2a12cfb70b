"""Estimates of what an expert costs in each place, from which placement policies decide.

An estimate is the duration on otherwise idle lanes. Lanes that share host memory take longer when
they work at the same time, so an estimate of a copy beside CPU work is too low. It is the same on
every machine, because it comes from the cost model and not from a clock.
"""

from __future__ import annotations

from collections.abc import Callable

from moesim.cost.cpu import CpuCost
from moesim.cost.roofline import CostModel
from moesim.hardware.ops import BatchShape
from moesim.hardware.topology import DISK, H2D

__all__ = ["CostEstimate"]


class CostEstimate:
    """Durations of one expert's copy, read and computation.

    They are the protocols `Estimate` of placements and `Prices` of prefetch policies.

    - `rows`: the rows of the step; the server sets it before each step.
    - `bytes_of(key)`: the stored size of an expert; None: all experts have the same.
    - `unread_of(key)`: the bytes of it that are on disk only; None: all are in host memory.
    - `is_pinned(key)`: whether it is page-locked; None: as the cost model says.
    - `free_link`: copies take no time, as on the machine of that bound.
    """

    def __init__(
        self,
        cost: CostModel,
        cpu: CpuCost | None,
        *,
        bytes_of: Callable[[int], int] | None = None,
        unread_of: Callable[[int], int] | None = None,
        is_pinned: Callable[[int], bool] | None = None,
        free_link: bool = False,
    ) -> None:
        self.rows = 0
        self.has_cpu = cpu is not None
        self.gpu_call_ns = cost.call_ns
        self.cpu_call_ns = 0 if cpu is None else cpu.call_ns
        self._cost = cost
        self._cpu = cpu
        self._bytes_of = bytes_of
        self._unread_of = unread_of
        self._is_pinned = is_pinned
        self._pageable = cost.pageable()
        self._free_link = free_link

    def copy_ns(self, key: int) -> int:
        """Return the duration of the expert's copy from host memory to the GPU."""
        if self._free_link:
            return 0
        nbytes = self._cost.expert_bytes if self._bytes_of is None else self._bytes_of(key)
        pinned = self._is_pinned is None or self._is_pinned(key)
        return (self._cost if pinned else self._pageable).copy_ns(H2D, nbytes)

    def read_ns(self, key: int) -> int:
        """Return the duration of reading the expert from disk; 0 if it is in host memory."""
        nbytes = 0 if self._unread_of is None else self._unread_of(key)
        return self._cost.copy_ns(DISK, nbytes) if nbytes else 0

    def gpu_ns(self, key: int, rows: int) -> int:
        """Return the duration of computing `rows` rows of an expert on the GPU, in its own call."""
        return self._cost.experts_ns((rows,), self._sizes(key))

    def cpu_ns(self, key: int, rows: int) -> int:
        """Return the duration of computing `rows` rows of an expert on the CPU, in its own call.

        The machine must have a CPU.
        """
        assert self._cpu is not None, "placements with the lane cpu need a machine with a CPU"
        return self._cpu.experts((rows,), self._sizes(key)).duration_ns

    def front_ns(self, layer: int, rows: int) -> int:
        """Return the duration of MoE layer `layer` on the GPU without its routed experts.

        It is that of a step of `rows` rows which read no KV entries of earlier tokens.
        """
        batch = BatchShape(rows, kv_tokens=rows, pairs=rows, sampled=0)
        return self._cost.front_ns(self._cost.shape.moe_layers[layer], batch)

    def _sizes(self, key: int) -> tuple[int] | None:
        return None if self._bytes_of is None else (self._bytes_of(key),)
