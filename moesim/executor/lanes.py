"""A lane of the real machine: a thread that hands the most urgent eligible work to its device.

A device can neither reorder nor cancel the copies that it has. So the lane keeps them and hands in
a few at a time. If the device works later, a second thread of the lane waits for the oldest piece
and settles it. So the lane can hand in the next piece meanwhile, and learns of an end without
polling.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from moesim.executor.device import Device, Mark
from moesim.machine.work import DEMAND, FAR, PREFETCH, Work

__all__ = ["Job", "Lane", "Piece"]


class Piece(NamedTuple):
    """A whole operation, or a chunk of a copy: the work, and its bytes that cross the link.

    `is_continuation`: it is a chunk, but not the first one.
    """

    work: Callable[[], None]
    nbytes: int = 0
    is_continuation: bool = False


class Job:
    """A work with its pieces. `what` describes it in an error."""

    __slots__ = ("begun", "issued_ns", "pieces", "what", "work")

    def __init__(self, work: Work, pieces: Sequence[Piece], what: str, issued_ns: int) -> None:
        self.work = work
        self.pieces = deque(pieces)
        self.what = what
        self.issued_ns = issued_ns
        self.begun = False  # whether a piece was handed in

    def eligible(self) -> bool:
        """Return whether all its dependencies are done."""
        return all(work.finish_ns < FAR for work in self.work.after)

    def ready_ns(self) -> int:
        """Return the first time at which it could have begun."""
        return max([self.issued_ns, *(work.finish_ns for work in self.work.after)])


class _Flight(NamedTuple):
    """A piece that the device has, and whether it is the last one of its job."""

    job: Job
    mark: Mark
    last: bool
    nbytes: int


class Lane:
    """One worker thread, and one that waits if the device works later.

    All lanes of a machine share `lock`. Under the lock, the lane calls `settled` with each finished
    job, and `failed` with a job and its error. `origin_ns` is the machine's time zero.
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
        self._flying: deque[_Flight] = deque()
        self._landed = threading.Condition(lock)  # wakes the collector
        self._num_taken = self._taken_bytes = 0  # of pieces that are not settled
        self._free_ns = 0  # the end of the last piece that is settled
        self._device: Final = device
        self._origin_ns = origin_ns
        self._settled = settled
        self._failed = failed
        self._current: Job | None = None  # the job that the device works on in this thread
        self._closed = False
        self._collector: threading.Thread | None = None
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

    def cancel(self, job: Job) -> bool:
        """Remove a prefetch that is queued whole; return whether it was."""
        if job.begun or job not in self.queues[PREFETCH]:
            return False
        self.queues[PREFETCH].remove(job)
        self.news.notify()
        return True

    def heard(self, work: Work) -> None:
        """Wake up if the next job waits for this work."""
        if any(queue and work in queue[0].work.after for queue in self.queues):
            self.news.notify()

    def close(self) -> None:
        self._closed = True
        self.news.notify()
        self._landed.notify()

    def join(self, timeout_s: float) -> None:
        """Wait at most `timeout_s` for each thread to end. Call it without the lock."""
        self._thread.join(timeout_s)
        if self._collector is not None:
            self._collector.join(timeout_s)

    def forget(self) -> None:
        """Drop queued jobs, whose pieces hold memory. Do nothing while a thread hangs."""
        if any(each is not None and each.is_alive() for each in (self._thread, self._collector)):
            return
        for queue in self.queues:
            queue.clear()
        self._flying.clear()
        self._current = None

    @property
    def pending(self) -> list[str]:
        """Return descriptions of the jobs that are queued or in progress."""
        jobs = [flight.job for flight in list(self._flying)]
        jobs += [] if self._current is None else [self._current]
        jobs += [job for queue in self.queues for job in queue]
        return [job.what for job in dict.fromkeys(jobs)]

    # --- the worker ---

    def _work(self) -> None:
        """Hand in work until closed, or until a failure."""
        while True:
            with self.news:
                while (taken := self._take()) is None:
                    if self._closed:
                        return
                    self.news.wait()
            if not self._begin(*taken):
                return

    def _begin(self, job: Job, piece: Piece, last: bool) -> bool:
        """Hand in a piece; settle it if it is done at once. Return False if that failed."""
        self._current = job
        try:
            mark = self._device.submit(
                self.name,
                piece.work,
                nbytes=piece.nbytes,
                is_continuation=piece.is_continuation,
                ready_ns=job.ready_ns() + self._origin_ns,
            )
            # Only the oldest piece may be settled: a lane is first in, first out.
            at_once = not self._flying and mark.done()
            if at_once:
                self._settle(job, mark, last)
        except BaseException as error:
            return self._fail(job, piece.nbytes, error)
        self._current = None
        with self.news:
            if at_once:
                self._release(piece.nbytes)
            else:
                self._flying.append(_Flight(job, mark, last, piece.nbytes))
                self._wake_collector()
        return True

    def _wake_collector(self) -> None:
        """Start the second thread at the first piece that is not done at once."""
        if self._collector is None:
            name = f"moesim-{self.name}-ends"
            self._collector = threading.Thread(target=self._collect, name=name, daemon=True)
            self._collector.start()
        self._landed.notify()

    def _collect(self) -> None:
        """Settle pieces, oldest first, until closed and all are settled, or until a failure."""
        while True:
            with self._landed:
                while not self._flying:
                    if self._closed and not self._num_taken:
                        return
                    self._landed.wait()
                job, mark, last, nbytes = self._flying[0]
            try:
                mark.wait()
                self._settle(job, mark, last)
            except BaseException as error:
                self._fail(job, nbytes, error)
                return
            with self.news:
                self._flying.popleft()
                self._release(nbytes)
                self.news.notify()  # there is room for another piece
            del job, mark  # while this thread waits, it must not hold their memory

    def _fail(self, job: Job, nbytes: int, error: BaseException) -> bool:
        """Report a failure and end the lane; return False."""
        with self.news:
            self._release(nbytes)
            self.close()
            self._failed(job, error)
        return False

    def _release(self, nbytes: int) -> None:
        """Make room for another piece."""
        self._num_taken -= 1
        self._taken_bytes -= nbytes

    def _has_room(self, piece: Piece) -> bool:
        """Return whether the device takes another piece now."""
        if self._num_taken < self._device.outstanding:
            return True
        return 0 < piece.nbytes <= self._device.outstanding_bytes - self._taken_bytes

    def _take(self) -> tuple[Job, Piece, bool] | None:
        """Return the next piece of the most urgent eligible job, and whether it is its last."""
        if self._closed:
            return None
        for queue in self.queues:
            if not queue or not queue[0].eligible():
                continue
            job = queue[0]
            if not self._has_room(job.pieces[0]):
                return None
            piece = job.pieces.popleft()
            job.begun = True
            if not job.pieces:
                queue.popleft()
            self._num_taken += 1
            self._taken_bytes += piece.nbytes
            return job, piece, not job.pieces
        return None

    def _settle(self, job: Job, mark: Mark, last: bool) -> None:
        start, finish = self._times(job, mark)
        work = job.work
        work.start_ns = min(work.start_ns, start)
        work.busy_ns += finish - start
        self._free_ns = finish
        if last:
            with self.news:
                # A device's clock may run ahead of the host's; a finish in the future would make
                # the server believe that the job is not done.
                now = time.monotonic_ns() - self._origin_ns
                work.finish_ns = max(min(finish, now), work.start_ns)
                self._settled(job)

    def _times(self, job: Job, mark: Mark) -> tuple[int, int]:
        """Return a piece's start and finish, corrected by the error of the device's clock at most.

        A piece begins after the piece before it, and after what its job waited for. A start that is
        too early by more than that error stays, and an invariant will tell.
        """
        start, finish = mark.start_ns - self._origin_ns, mark.finish_ns - self._origin_ns
        if 0 < (early := max(self._free_ns, job.ready_ns()) - start) <= self._device.clock_error_ns:
            start += early
        return start, max(start, finish)
