"""A stand-in for `torch` on a machine with a GPU: streams and events of a scripted device clock."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

LAUNCH_NS, WAKE_NS = 4_000, 3_000  # from a record to the GPU, and from an end to the host


class Clock:
    """The host's clock, which a test moves; the GPU's runs faster by `drift`."""

    def __init__(self, drift: float = 0.0) -> None:
        self.now_ns = 5_000_000_000
        self.drift = drift

    def monotonic_ns(self) -> int:
        return self.now_ns

    def device_ns(self) -> float:
        return self.now_ns * (1 + self.drift) + 123_456_789


class Event:
    def __init__(self, cuda: Cuda, *, enable_timing: bool, blocking: bool = False) -> None:
        assert enable_timing, "an event without timing cannot be compared"
        self._cuda = cuda
        self.blocking = blocking
        self.at_ns: float | None = None

    def record(self, stream: Stream) -> None:
        clock = self._cuda.clock
        clock.now_ns += LAUNCH_NS
        self.at_ns = clock.device_ns()

    def query(self) -> bool:
        self._cuda.queries += 1
        return False

    def synchronize(self) -> None:
        self._cuda.waits += 1
        self._cuda.clock.now_ns += WAKE_NS

    def elapsed_time(self, later: Event) -> float:
        assert self.at_ns is not None
        assert later.at_ns is not None
        return float(np.float32((later.at_ns - self.at_ns) / 1e6))


class Stream:
    pass


class Cuda:
    """`torch.cuda`; counts what is asked of it."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.queries = self.waits = self.streams = self.synchronized = 0
        self.current: list[Any] = []

    def is_available(self) -> bool:
        return True

    def Event(self, **options: bool) -> Event:  # noqa: N802
        return Event(self, **options)

    def Stream(self) -> Stream:  # noqa: N802
        self.streams += 1
        return Stream()

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        self.current.append(stream)
        yield
        self.current.pop()

    def synchronize(self) -> None:
        self.synchronized += 1


class Torch:
    __version__ = "a fake one"

    def __init__(self, clock: Clock) -> None:
        self.cuda = Cuda(clock)
