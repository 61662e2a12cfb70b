"""A CUDA GPU: computation on one stream, copies on one stream per direction.

Lanes that touch no GPU memory (the CPU's, a disk's) do their work in the thread that submits it.

Work runs behind the earlier work of its stream. Events mark its start and end, and time it. The
device holds no dependencies between lanes; the machine keeps them.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import torch

from moesim.errors import UsageError
from moesim.executor.device import Done, Mark
from moesim.hardware.topology import GPU, Lane, Topology

__all__ = ["CudaDevice"]

# Torch keeps freed memory, and workspaces of matrix products, for each stream. With new streams a
# run would allocate all of it again while it is timed. So a process has one stream for each lane.
_STREAMS: dict[str, Any] = {}
_CLOCK: Final = "clock"  # the stream of the events that tie the clocks together

_ANCHOR_NS: Final = 10**9  # the age at which an anchor is replaced
_TRIES: Final = 5
_DRIFT_NS: Final = 10_000  # how far the clocks drift apart within that age: 10 parts in a million
_SPINNING_CORES: Final = 8  # with fewer, a thread that waits for the GPU sleeps


class _Anchor(NamedTuple):
    """An event whose time is known on the host's clock, to within `error_ns`."""

    event: Any
    host_ns: int
    error_ns: int


class _Clock:
    """Times of events on the host's clock, `time.monotonic_ns`.

    `elapsed_time` returns milliseconds as a 32-bit float, so after minutes it is wrong by
    microseconds. The two clocks also drift apart. So times count from an anchor that was recorded
    within the last second: they are then exact to 61 ns, and to the error of the anchor.
    """

    def __init__(self) -> None:
        self._stream = _stream(_CLOCK)
        self._lock = threading.Lock()
        self._worst_ns = 0
        self._anchor = self._new()

    @property
    def error_ns(self) -> int:
        """The most that two times can be wrong against each other."""
        return 2 * (self._worst_ns + _DRIFT_NS)

    def anchor(self) -> _Anchor:
        """Return an anchor that is at most a second old."""
        with self._lock:
            if time.monotonic_ns() - self._anchor.host_ns > _ANCHOR_NS:
                self._anchor = self._new()
            return self._anchor

    def _new(self) -> _Anchor:
        """Return the best of a few anchors: the one with the shortest way to the GPU and back."""
        best = min((self._once() for _ in range(_TRIES)), key=lambda anchor: anchor.error_ns)
        self._worst_ns = max(self._worst_ns, best.error_ns)
        return best

    def _once(self) -> _Anchor:
        # The stream has nothing else to do, so the event ends at once. It spins: the shorter the
        # wait, the smaller the error.
        kind: Any = torch.cuda.Event
        event = kind(enable_timing=True)
        before_ns = time.monotonic_ns()
        event.record(self._stream)
        event.synchronize()
        after_ns = time.monotonic_ns()
        return _Anchor(event, (before_ns + after_ns) // 2, (after_ns - before_ns) // 2)


class _Event:
    """Two events around a piece of work, and the anchor that their times count from."""

    def __init__(self, anchor: _Anchor, first: Any, last: Any) -> None:
        self._anchor, self._first, self._last = anchor, first, last

    def done(self) -> bool:
        return bool(self._last.query())

    def wait(self) -> None:
        self._last.synchronize()  # without the interpreter lock

    @property
    def start_ns(self) -> int:
        return self._since(self._first)

    @property
    def finish_ns(self) -> int:
        return self._since(self._last)

    def _since(self, event: Any) -> int:
        anchor = self._anchor
        return anchor.host_ns + round(float(anchor.event.elapsed_time(event)) * 1e6)


class CudaDevice:
    """The current CUDA device. Raises `UsageError` if there is none.

    `spins`: a thread that waits for the GPU keeps its core busy, which is faster by microseconds
    (None: if the machine has cores to spare).
    """

    name = "cuda"
    torch_device = "cuda"
    pins = True
    outstanding = 2
    # 80 us at 50 GB/s: long enough for Python to hand in the next chunk, and short for an urgent
    # copy that waits behind it.
    outstanding_bytes = 4 << 20

    def __init__(self, *, spins: bool | None = None) -> None:
        if not torch.cuda.is_available():
            raise UsageError(
                f"no CUDA device is available to torch {torch.__version__}; "
                "--device cpu runs the same on the processor"
            )
        self._blocking = not ((os.cpu_count() or 1) >= _SPINNING_CORES if spins is None else spins)
        self._streams: dict[str, Any] = {}
        self.add_lanes(Topology.single_gpu().lanes)
        self._clock = _Clock()

    def add_lanes(self, lanes: Sequence[Lane]) -> None:
        """Give each new lane that touches GPU memory a stream.

        All earlier work on the GPU is done afterwards: lanes' streams do not wait for the weights
        that another stream fills.
        """
        for lane in lanes:
            if GPU in (lane.source, lane.target):
                self._streams[lane.name] = _stream(lane.name)
        torch.cuda.synchronize()

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
        anchor = self._clock.anchor()
        first, last = self._event(), self._event()
        with torch.cuda.stream(stream):
            first.record(stream)
            work()
            last.record(stream)
        return _Event(anchor, first, last)

    @property
    def clock_error_ns(self) -> int:
        return self._clock.error_ns

    def close(self) -> None:
        torch.cuda.synchronize()

    def _event(self) -> Any:
        event: Any = torch.cuda.Event
        return event(enable_timing=True, blocking=self._blocking)


def _stream(name: str) -> Any:
    """Return the stream of a lane, the same in all devices of the process."""
    if name not in _STREAMS:
        stream: Any = torch.cuda.Stream
        _STREAMS[name] = stream()
    return _STREAMS[name]
