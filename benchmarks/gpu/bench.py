"""The means of all parts: times by the device's own clock, and a deadline."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from .recorder import Recorder

__all__ = ["Bench", "Times", "percentile"]

T = TypeVar("T")
Call = Callable[[], Any]


class Times(NamedTuple):
    """Microseconds of one call: on the device (median, shortest, longest batch), on the host.

    Calls follow each other without a wait. Where the host is slower than the device, both agree.
    """

    device_us: float
    low_us: float
    high_us: float
    host_us: float
    calls: int


class _HostEvent:
    """An event of a device that works at once."""

    def __init__(self) -> None:
        self._at_s = 0.0

    def record(self, stream: Any = None) -> None:
        self._at_s = time.perf_counter()

    def synchronize(self) -> None:
        """Return at once."""

    def elapsed_time(self, later: _HostEvent) -> float:
        return (later._at_s - self._at_s) * 1e3


@dataclass
class Bench:
    """A device to measure. `device` is `cuda`, or `cpu` to try the script without a GPU.

    `out` is the folder for files of commands. `deadline_s` is the end of the current part on the
    clock of `time.monotonic`.
    """

    device: str
    recorder: Recorder
    out: Path
    deadline_s: float = 0.0

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.on_gpu else torch.float32

    @property
    def left_s(self) -> float:
        return self.deadline_s - time.monotonic()

    def cases(self, part: str, cases: Sequence[T]) -> Iterator[T]:
        """Yield cases in order while there is time, and record how many were left out."""
        for number, case in enumerate(cases):
            if self.left_s <= 0:
                self.recorder.put("left out", len(cases) - number, "cases", part=part)
                return
            yield case

    def event(self) -> Any:
        cuda: Any = torch.cuda
        return cuda.Event(enable_timing=True) if self.on_gpu else _HostEvent()

    def stream(self) -> Any:
        cuda: Any = torch.cuda
        return cuda.Stream() if self.on_gpu else None

    def on(self, stream: Any) -> AbstractContextManager[Any]:
        """Return a context in which work is handed to `stream` (None: the current one)."""
        cuda: Any = torch.cuda
        return nullcontext() if stream is None else cuda.stream(stream)

    def synchronize(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()

    def random(self, *shape: int) -> torch.Tensor:
        """Return small random numbers on the device."""
        return torch.randn(*shape, device=self.device, dtype=self.dtype) * 0.02

    def timed(
        self, call: Call, *, stream: Any = None, batch_s: float = 0.01, batches: int = 5
    ) -> Times:
        """Time calls back to back, in batches of about `batch_s`, after a warm-up."""
        self.synchronize()  # inputs were made on another stream
        with self.on(stream):
            for _ in range(3):
                call()
            self.synchronize()
            began_s = time.perf_counter()
            call()
            self.synchronize()
            once_s = max(1e-7, time.perf_counter() - began_s)
            # Not more, or the queue of the GPU is full and the host waits for it.
            count = max(1, min(200, int(batch_s / once_s)))
            on_device, on_host = [], []
            for _ in range(batches):
                first, last = self.event(), self.event()
                first.record()
                began_s = time.perf_counter()
                for _ in range(count):
                    call()
                on_host.append((time.perf_counter() - began_s) / count * 1e6)
                last.record()
                self.synchronize()
                on_device.append(first.elapsed_time(last) / count * 1e3)
        return Times(
            statistics.median(on_device),
            min(on_device),
            max(on_device),
            statistics.median(on_host),
            count * batches,
        )

    def graphed(self, call: Call) -> Times | None:
        """Time calls as a replayed CUDA graph: without launches. None without a GPU."""
        if not self.on_gpu:
            return None
        cuda: Any = torch.cuda
        aside = cuda.Stream()
        aside.wait_stream(cuda.current_stream())
        with cuda.stream(aside):  # a capture needs a warm-up on another stream
            for _ in range(3):
                call()
        cuda.current_stream().wait_stream(aside)
        graph = cuda.CUDAGraph()
        with cuda.graph(graph):
            call()
        return self.timed(graph.replay)

    def put_times(self, measurement: str, times: Times | None, **what: Any) -> None:
        """Record times in microseconds."""
        if times is None:
            return
        self.recorder.put(
            measurement,
            round(times.device_us, 3),
            "us",
            low=round(times.low_us, 3),
            high=round(times.high_us, 3),
            host_us=round(times.host_us, 3),
            calls=times.calls,
            **what,
        )

    def put_spread(self, measurement: str, values_us: Sequence[float], **what: Any) -> None:
        """Record the median of single waits in microseconds, and their spread."""
        self.recorder.put(
            measurement,
            round(statistics.median(values_us), 3),
            "us",
            low=round(min(values_us), 3),
            p90=round(percentile(values_us, 0.9), 3),
            calls=len(values_us),
            **what,
        )


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which about `share` of the values are."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
