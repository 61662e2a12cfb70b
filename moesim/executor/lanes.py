"""A lane of the real machine: a thread that hands the most urgent eligible work to its device.

A device can neither reorder nor cancel queued copies. So the lane keeps them and hands in one or
two at a time.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from moesim.executor.device import Device, Mark
from moesim.machine.work import DEMAND, FAR, PREFETCH, Work

__all__ = ["Job", "Lane", "Piece"]

_POLL_S = 20e-6  # how often an asynchronous device is asked whether it is done


class Piece(NamedTuple):
    """A whole operation, or a chunk of a copy: the work, and its bytes that cross the link.

    `is_continuation`: it is a chunk, but not the first one.
    """

    work: Callable[[], None]
    nbytes: int = 0
    is_continuation: bool = False


class Job:
    """A work with its pieces. `what` describes it in an error."""

    __slots__ = ("issued_ns", "pieces", "what", "work")

    def __init__(self, work: Work, pieces: Sequence[Piece], what: str, issued_ns: int) -> None:
        self.work = work
        self.pieces = deque(pieces)
        self.what = what
        self.issued_ns = issued_ns

    def eligible(self) -> bool:
        """Return whether all its dependencies are done."""
        return all(work.finish_ns < FAR for work in self.work.after)

    def ready_ns(self) -> int:
        """Return the first time at which it could have begun."""
        return max([self.issued_ns, *(work.finish_ns for work in self.work.after)])


class Lane:
    """One worker thread. All lanes of a machine share `lock`.

    Under the lock, the lane calls `settled` with each finished job, and `failed` with a job and its
    error. `origin_ns` is the machine's time zero.
    """

    def __init__(
        self,
        name: str,
        device: Device,
        lock: threading.Lock,
        origin_ns: int,
        settled: Callable[[Job], None],
        failed: Callable[[Job, BaseException], None],
    ) -> None:
        self.name = name
        self.queues: tuple[deque[Job], deque[Job]] = (deque(), deque())
        self.news = threading.Condition(lock)
        self._flying: deque[tuple[Job, Mark, bool]] = deque()
        self._device = device
        self._origin_ns = origin_ns
        self._settled = settled
        self._failed = failed
        self._current: Job | None = None  # the job that the device works on in this thread
        self._closed = False
        self._thread = threading.Thread(target=self._work, name=f"moesim-{name}", daemon=True)
        self._thread.start()

    # --- called by other threads, under the lock ---

    def put(self, job: Job, priority: int) -> None:
        self.queues[priority].append(job)
        self.news.notify()

    def promote(self, job: Job) -> None:
        """Move a queued prefetch behind the demand copies issued so far."""
        if job in self.queues[PREFETCH]:
            self.queues[PREFETCH].remove(job)
            self.queues[DEMAND].append(job)
            self.news.notify()

    def heard(self, work: Work) -> None:
        """Wake up if the next job waits for this work."""
        if any(queue and work in queue[0].work.after for queue in self.queues):
            self.news.notify()

    def close(self) -> None:
        self._closed = True
        self.news.notify()

    def join(self, timeout_s: float) -> None:
        """Wait at most `timeout_s` for the worker to end. Call it without the lock."""
        self._thread.join(timeout_s)

    @property
    def pending(self) -> list[str]:
        """Return descriptions of the jobs that are queued or in progress."""
        jobs = [job for job, *_ in list(self._flying)]
        jobs += [] if self._current is None else [self._current]
        jobs += [job for queue in self.queues for job in queue]
        return [job.what for job in dict.fromkeys(jobs)]

    # --- the worker ---

    def _work(self) -> None:
        """Hand in work until closed and the device has finished its work, or until a failure."""
        while True:
            with self.news:
                piece = self._take()
                while piece is None and not self._flying:
                    if self._closed:
                        return
                    self.news.wait()
                    piece = self._take()
            if not (self._begin(piece) and self._collect()):
                return
            # Poll only if no more work can be handed in; otherwise hand in the next piece at once.
            if self._flying and (piece is None or len(self._flying) == self._limit):
                time.sleep(_POLL_S)

    def _begin(self, taken: tuple[Job, Piece, bool] | None) -> bool:
        """Hand in a piece; return False if that failed."""
        if taken is None:
            return True
        job, piece, last = taken
        self._current = job
        try:
            mark = self._device.submit(
                self.name,
                piece.work,
                nbytes=piece.nbytes,
                is_continuation=piece.is_continuation,
                ready_ns=job.ready_ns() + self._origin_ns,
            )
        except BaseException as error:
            return self._fail(job, error)
        self._flying.append((job, mark, last))
        self._current = None
        return True

    def _collect(self) -> bool:
        """Settle finished pieces; return False if one failed."""
        while self._flying:
            job, mark, last = self._flying[0]
            try:
                if not mark.done():
                    break
                self._settle(job, mark, last)
            except BaseException as error:
                return self._fail(job, error)
            self._flying.popleft()
        return True

    def _fail(self, job: Job, error: BaseException) -> bool:
        with self.news:
            self._failed(job, error)
        return False

    @property
    def _limit(self) -> int:
        return self._device.outstanding

    def _take(self) -> tuple[Job, Piece, bool] | None:
        """Return the next piece of the most urgent eligible job, and whether it is its last."""
        if self._closed or len(self._flying) >= self._limit:
            return None
        for queue in self.queues:
            if queue and queue[0].eligible():
                job = queue[0]
                piece = job.pieces.popleft()
                if not job.pieces:
                    queue.popleft()
                return job, piece, not job.pieces
        return None

    def _settle(self, job: Job, mark: Mark, last: bool) -> None:
        start, finish = mark.start_ns - self._origin_ns, mark.finish_ns - self._origin_ns
        work = job.work
        work.start_ns = min(work.start_ns, start)
        work.busy_ns += finish - start
        if last:
            with self.news:
                # A device's clock may run ahead of the host's; a finish in the future would make
                # the server believe that the job is not done.
                now = time.monotonic_ns() - self._origin_ns
                work.finish_ns = max(min(finish, now), work.start_ns)
                self._settled(job)
