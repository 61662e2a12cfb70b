"""A CUDA GPU: computation on one stream, copies on one stream per direction.

Lanes that touch no GPU memory (the CPU's, a disk's) do their work in the thread that submits it.

Work runs behind the earlier work of its stream. Events mark its start and end, and time it. CUDA
cannot wait for any one of several events, so lanes poll. The device holds no dependencies between
lanes; the machine keeps them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from moesim.errors import UsageError
from moesim.executor.device import Done, Mark
from moesim.hardware.topology import GPU, Lane, Topology

__all__ = ["CudaDevice"]


class _Event:
    """Two events around a piece of work, and the origin that their times count from."""

    def __init__(self, origin: Any, origin_ns: int, first: Any, last: Any) -> None:
        self._origin, self._origin_ns = origin, origin_ns
        self._first, self._last = first, last

    def done(self) -> bool:
        return bool(self._last.query())

    @property
    def start_ns(self) -> int:
        return self._since(self._first)

    @property
    def finish_ns(self) -> int:
        return self._since(self._last)

    def _since(self, event: Any) -> int:
        return self._origin_ns + round(float(self._origin.elapsed_time(event)) * 1e6)


class CudaDevice:
    """The current CUDA device. Raises `UsageError` if there is none."""

    name = "cuda"
    torch_device = "cuda"
    pins = True
    outstanding = 2

    def __init__(self) -> None:
        import torch

        if not torch.cuda.is_available():
            raise UsageError(
                f"no CUDA device is available to torch {torch.__version__}; "
                "--device cpu runs the same on the processor"
            )
        self._torch: Any = torch
        self._streams: dict[str, Any] = {}
        self.add_lanes(Topology.single_gpu().lanes)
        self._origin = self._torch.cuda.Event(enable_timing=True)
        # One origin event ties the device's clock to the host's: `elapsed_time` gives differences
        # only.
        torch.cuda.synchronize()
        self._origin.record(torch.cuda.current_stream())
        self._origin.synchronize()
        self._origin_ns = time.monotonic_ns()

    def add_lanes(self, lanes: Sequence[Lane]) -> None:
        """Give each new lane that touches GPU memory a stream."""
        for lane in lanes:
            if GPU in (lane.source, lane.target) and lane.name not in self._streams:
                self._streams[lane.name] = self._torch.cuda.Stream()

    def submit(
        self,
        lane: str,
        work: Callable[[], None],
        *,
        nbytes: int = 0,
        is_continuation: bool = False,
        ready_ns: int = 0,
    ) -> Mark:
        stream = self._streams.get(lane)
        if stream is None:
            start_ns = time.monotonic_ns()
            work()
            return Done(start_ns, time.monotonic_ns())
        first, last = (self._torch.cuda.Event(enable_timing=True) for _ in range(2))
        with self._torch.cuda.stream(stream):
            first.record(stream)
            work()
            last.record(stream)
        return _Event(self._origin, self._origin_ns, first, last)

    def close(self) -> None:
        self._torch.cuda.synchronize()
