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
from moesim.hardware.ops import Op
from moesim.machine.base import (
    DEMAND,
    FAR,
    LANES,
    NOWHERE,
    PREFETCH,
    Direction,
    Prices,
    Ticket,
    chunk_durations,
)

_STUCK_S = 60.0  # no simulated work takes that long, so a longer wait is a hang


class _Job(Ticket):
    __slots__ = ("after", "chunks", "what")

    def __init__(self, chunks: list[int], after: Sequence[Ticket], what: object) -> None:
        super().__init__(busy_ns=sum(chunks))
        self.chunks = deque(chunks)
        self.after = after
        self.what = what


class ThreadMachine:
    """Runs one server in real time; drive it with `drive(server.run())`."""

    def __init__(self, prices: Prices, *, speed: float = 1.0) -> None:
        self.now_ns = 0
        self._prices = prices
        self._speed = speed
        self._origin_s = time.monotonic()
        self._changed = threading.Condition()
        self._queues = {name: (deque[_Job](), deque[_Job]()) for name in LANES}
        self._closed = False
        self._workers = [
            threading.Thread(target=self._work, args=(name,), name=f"moesim-{name}", daemon=True)
            for name in LANES
        ]
        for worker in self._workers:
            worker.start()

    def compute(self, lane: str, op: Op, after: Sequence[Ticket] = ()) -> Ticket:
        return self._queue(lane, DEMAND, _Job([self._prices.compute_ns(op)], after, op))

    def copy(
        self,
        direction: Direction,
        key: int,
        nbytes: int,
        priority: int,
        after: Sequence[Ticket] = (),
        slot: int = NOWHERE,
    ) -> Ticket:
        chunks = chunk_durations(self._prices, direction, key, nbytes)
        return self._queue(direction, priority, _Job(chunks, after, f"copy of key {key}"))

    def _queue(self, lane: str, priority: int, job: _Job) -> Ticket:
        with self._changed:
            self._queues[lane][priority].append(job)
            self._changed.notify_all()
        return job

    def promote(self, ticket: Ticket) -> None:
        with self._changed:
            for queues in self._queues.values():
                if ticket in queues[PREFETCH]:
                    assert isinstance(ticket, _Job)
                    queues[PREFETCH].remove(ticket)
                    queues[DEMAND].append(ticket)
                    self._changed.notify_all()

    def done(self, ticket: Ticket) -> bool:
        return ticket.finish_ns <= self.now_ns

    def wait_any(self, tickets: Sequence[Ticket], until_ns: int | None = None) -> Iterable[Any]:
        until = FAR if until_ns is None else until_ns
        patience = time.monotonic() + _STUCK_S
        with self._changed:
            while True:
                self.now_ns = max(self.now_ns, self._clock_ns())
                if until <= self.now_ns or any(self.done(ticket) for ticket in tickets):
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
                job.start_ns = min(job.start_ns, self._clock_ns())
                chunk = job.chunks.popleft()
            # Without the lock, so that other lanes work meanwhile.
            time.sleep(chunk / 1e9 / self._speed)
            with self._changed:
                if not job.chunks:
                    for queue in self._queues[lane]:  # a promotion may have moved it meanwhile
                        if job in queue:
                            queue.remove(job)
                    job.finish_ns = max(self._clock_ns(), job.start_ns)
                    self._changed.notify_all()

    def _next(self, lane: str) -> _Job | None:
        for queue in self._queues[lane]:
            if queue and all(ticket.finish_ns < FAR for ticket in queue[0].after):
                return queue[0]
        return None

    def _pending(self) -> str:
        jobs = [job for queues in self._queues.values() for queue in queues for job in queue]
        return ", ".join(str(job.what) for job in jobs) or "nothing"


def drive(server: Generator[Any, Any, None]) -> None:
    """Run a server to its end on a machine whose waits block."""
    for _ in server:
        raise InvariantError(14, "a machine in real time has nothing to yield")
