"""A stand-in for `torch` on a machine with a GPU: streams and events of a scripted device clock."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

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


class _RealEvent:
    """An event on a CPU that works at once; its clock is the host's."""

    def __init__(self, *, enable_timing: bool = False, blocking: bool = False) -> None:
        self._at_s: float | None = None

    def record(self, stream: Any = None) -> None:
        self._at_s = time.perf_counter()

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        assert self._at_s is not None, "an event that was never recorded"

    def elapsed_time(self, later: _RealEvent) -> float:
        assert self._at_s is not None
        assert later._at_s is not None
        return (later._at_s - self._at_s) * 1e3


class _RealStream:
    def wait_stream(self, stream: Any) -> None:
        assert isinstance(stream, _RealStream)


class _Graph:
    def replay(self) -> None: ...


def rehearse(patch: pytest.MonkeyPatch) -> list[str]:
    """Let code for a GPU run on the CPU, with tensors in ordinary memory.

    Return the names of the functions of `torch.cuda` that were called, in order.
    """
    import torch

    called: list[str] = []

    def context(name: str) -> Any:
        @contextmanager
        def enter(*_: Any) -> Iterator[None]:
            called.append(name)
            yield

        return enter

    def ordinary(make: Any) -> Any:
        def allocate(*shape: Any, pin_memory: bool = False, **options: Any) -> Any:
            if pin_memory:
                called.append("pinned")
            return make(*shape, **options)

        return allocate

    def note(name: str, result: Any = None) -> Any:
        def answer(*_: Any) -> Any:
            called.append(name)
            return result

        return answer

    for name in ("empty", "zeros"):
        patch.setattr(torch, name, ordinary(getattr(torch, name)))
    replaced = {
        "Event": _RealEvent,
        "Stream": _RealStream,
        "CUDAGraph": _Graph,
        "stream": context("stream"),
        "graph": context("graph"),
        "current_stream": note("current_stream", _RealStream()),
        "synchronize": note("synchronize"),
        "empty_cache": note("empty_cache"),
        "is_available": note("is_available", True),
        "mem_get_info": note("mem_get_info", (8 << 30, 16 << 30)),
        "get_device_name": note("get_device_name", "a rehearsed GPU"),
    }
    for name, replacement in replaced.items():
        patch.setattr(torch.cuda, name, replacement)
    return called
