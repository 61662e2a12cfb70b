"""The thread machine: the same server in real time, with workers that sleep instead of working.

It tests the interface of machines: code that decides differently here than in virtual time must
have read a clock. Each lane has one worker; `speed` makes time pass faster. Late hits and latencies
differ from run to run. The sum of hits and late hits, misses, evictions and bytes do not.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from typing import Any

from moesim.errors import InvariantError
from moesim.hardware.topology import Topology
from moesim.machine.prices import Prices
from moesim.machine.work import DEMAND, FAR, PREFETCH, Work

_STUCK_S = 60.0  # no simulated work takes that long, so a longer wait is a hang


class _Job:
    __slots__ = ("chunks", "work")

    def __init__(self, work: Work, chunks: list[int]) -> None:
        self.work = work
        self.chunks = deque(chunks)


class ThreadMachine:
    """Runs one server in real time; drive it with `drive(server.run())`.

    Each piece of a work takes the time that it takes alone: lanes do not slow each other down. It
    ignores `Work.issue_ns`, because its host takes real time.
    """

    def __init__(
        self, prices: Prices, topology: Topology | None = None, *, speed: float = 1.0
    ) -> None:
        lanes = (topology or Topology.single_gpu()).names
        self.now_ns = 0
        self._prices = prices
        self._speed = speed
        self._origin_s = time.monotonic()
        self._changed = threading.Condition()
        self._queues = {name: (deque[_Job](), deque[_Job]()) for name in lanes}
        self._closed = False
        self._workers = [
            threading.Thread(target=self._work, args=(name,), name=f"moesim-{name}", daemon=True)
            for name in lanes
        ]
        for worker in self._workers:
            worker.start()

    def submit(self, work: Work) -> None:
        chunks = [piece.alone_ns for piece in self._prices.pieces(work.lane, work.op)]
        work.busy_ns = sum(chunks)
        work.job = _Job(work, chunks)
        with self._changed:
            self._queues[work.lane][work.urgency].append(work.job)
            self._changed.notify_all()

    def promote(self, work: Work) -> None:
        with self._changed:
            queues = self._queues[work.lane]
            if work.job in queues[PREFETCH]:
                queues[PREFETCH].remove(work.job)
                queues[DEMAND].append(work.job)
                self._changed.notify_all()

    def cancel(self, work: Work) -> bool:
        with self._changed:
            queue = self._queues[work.lane][PREFETCH]
            if work.job not in queue or work.start_ns < FAR:
                return False
            queue.remove(work.job)
            self._changed.notify_all()
            return True

    def done(self, work: Work) -> bool:
        return work.finish_ns <= self.now_ns

    def wait_any(self, works: Sequence[Work], until_ns: int | None = None) -> Iterable[Any]:
        until = FAR if until_ns is None else until_ns
        patience = time.monotonic() + _STUCK_S
        with self._changed:
            while True:
                self.now_ns = max(self.now_ns, self._clock_ns())
                if until <= self.now_ns or any(self.done(work) for work in works):
                    return ()
                # FAR is longer than `Condition.wait` accepts, so wake up and look again.
                left = (until - self.now_ns) / 1e9 / self._speed
                self._changed.wait(min(left, _STUCK_S))
                if until == FAR and time.monotonic() > patience:
                    raise InvariantError(14, f"stuck for {_STUCK_S:g} s on: {self._pending()}")

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for worker in self._workers:
            worker.join()

    def _clock_ns(self) -> int:
        return int((time.monotonic() - self._origin_s) * self._speed * 1e9)

    def _work(self, lane: str) -> None:
        """Run a lane's worker: take the most urgent eligible job, sleep through its next chunk."""
        while True:
            with self._changed:
                job = self._next(lane)
                while job is None:
                    if self._closed:
                        return
                    self._changed.wait()
                    job = self._next(lane)
                work = job.work
                work.start_ns = min(work.start_ns, self._clock_ns())
                chunk = job.chunks.popleft()
            # Without the lock, so that other lanes work meanwhile.
            time.sleep(chunk / 1e9 / self._speed)
            with self._changed:
                if not job.chunks:
                    for queue in self._queues[lane]:  # a promotion may have moved it meanwhile
                        if job in queue:
                            queue.remove(job)
                    work.finish_ns = max(self._clock_ns(), work.start_ns)
                    self._changed.notify_all()

    def _next(self, lane: str) -> _Job | None:
        for queue in self._queues[lane]:
            if queue and all(work.finish_ns < FAR for work in queue[0].work.after):
                return queue[0]
        return None

    def _pending(self) -> str:
        jobs = [job for queues in self._queues.values() for queue in queues for job in queue]
        return ", ".join(str(job.work.op) for job in jobs) or "nothing"


def drive(server: Generator[Any, Any, None]) -> None:
    """Run a server to its end on a machine whose waits block."""
    for _ in server:
        raise InvariantError(14, "a machine in real time has nothing to yield")
