"""A device that finishes everything late and in any order, as a GPU may.

It replaces CUDA on machines without a GPU, so tests can run the code for asynchronous devices. Each
lane has a thread that does work some time after `submit`, and reports it some time after it is
done. Between lanes all orders occur.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

from moesim.executor.device import one_thread
from moesim.hardware.topology import Lane, Topology

__all__ = ["FakeDevice"]


class _Late:
    """The mark of work that will be done later."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.work = work
        self.start_ns = self.finish_ns = 0
        self.error: BaseException | None = None
        self.over = threading.Event()

    def done(self) -> bool:
        if self.over.is_set() and self.error is not None:
            raise self.error
        return self.over.is_set()

    def wait(self) -> None:
        self.over.wait()
        self.done()


class FakeDevice:
    """The device. `latest_s`: the longest delay before work is done, and again until it shows."""

    name = "fake"
    torch_device = "cpu"
    pins = False
    outstanding = 2
    outstanding_bytes = 1 << 12
    clock_error_ns = 0

    def __init__(self, *, latest_s: float = 0.001, seed: int = 0) -> None:
        self._latest_s = latest_s
        self._inbox: dict[str, queue.SimpleQueue[_Late | None]] = {}
        self._threads: list[threading.Thread] = []
        self._seeds = np.random.SeedSequence(seed)
        self._add(Topology.single_gpu().lanes)

    def add_lanes(self, lanes: Sequence[Lane]) -> None:
        """Start a thread for each new lane, in which torch computes in one thread."""
        one_thread()
        self._add(lanes)

    def _add(self, lanes: Sequence[Lane]) -> None:
        for lane in lanes:
            if lane.name in self._inbox:
                continue
            inbox = self._inbox[lane.name] = queue.SimpleQueue()
            arguments = (inbox, np.random.default_rng(self._seeds.spawn(1)[0]))
            name = f"moesim-fake-{lane.name}"
            # A daemon, so that a test that fails before `close` does not keep the process alive.
            thread = threading.Thread(target=self._work, args=arguments, name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def submit(
        self,
        lane: str,
        work: Callable[[], None],
        *,
        nbytes: int = 0,
        is_continuation: bool = False,
        ready_ns: int = 0,
    ) -> _Late:
        mark = _Late(work)
        self._inbox[lane].put(mark)
        return mark

    def _work(self, inbox: queue.SimpleQueue[_Late | None], rng: np.random.Generator) -> None:
        while (mark := inbox.get()) is not None:
            time.sleep(rng.random() * self._latest_s)
            mark.start_ns = time.monotonic_ns()
            try:
                mark.work()
            except BaseException as error:  # `done` raises it, in the thread that asks
                mark.error = error
            time.sleep(rng.random() * self._latest_s)
            mark.finish_ns = time.monotonic_ns()
            mark.over.set()  # last: from now on another thread reads the mark

    def close(self) -> None:
        for inbox in self._inbox.values():
            inbox.put(None)
        for thread in self._threads:
            thread.join(timeout=5)
