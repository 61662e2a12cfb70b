"""The backend of one machine: worker processes, started afresh so that they share no state.

An interrupt belongs to the parent. Workers never see Ctrl-C (they start with it blocked); the
parent tells them to end, they unwind, so that half-written folders are removed, and whoever
does not end in time is killed. A worker whose parent is gone ends by itself. When a worker dies,
the tasks that were under way are done again one by one, so that the guilty one is known.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Final, TypeVar

from moesim.sweep.backend import Outcome, WorkerDied

__all__ = ["LocalProcesses"]

Task = TypeVar("Task")

_PATIENCE_S: Final = 5.0
_HELD: Final = (signal.SIGINT, signal.SIGTERM)


class LocalProcesses:
    """Does tasks in `workers` processes; with one worker or one task, in this process."""

    def __init__(self, workers: int) -> None:
        if workers < 1:
            raise ValueError(f"workers ({workers}) must be at least 1")
        self.workers = workers

    def outcomes(self, work: Callable[[Task], object], tasks: Sequence[Task]) -> Generator[Outcome]:
        """See `Backend.outcomes`."""
        numbered = dict(enumerate(tasks))
        if min(self.workers, len(tasks)) <= 1:
            for index, task in numbered.items():
                yield Outcome(index, _attempt(work, task))
            return
        while numbered:
            lost = []
            for outcome in _pool(work, numbered, self.workers):
                if isinstance(outcome.error, WorkerDied):
                    lost.append(outcome.index)
                else:
                    yield outcome
            lost.sort()
            # Tasks start in order and one is handed out in advance, so these had begun.
            for index in lost[: self.workers + 1]:
                yield from _pool(work, {index: numbered[index]}, 1)
            numbered = {index: numbered[index] for index in lost[self.workers + 1 :]}


def _attempt(work: Callable[[Task], object], task: Task) -> Exception | None:
    try:
        work(task)
    except Exception as error:
        return error
    return None


def _pool(
    work: Callable[[Task], object], tasks: Mapping[int, Task], workers: int
) -> Generator[Outcome]:
    before = set(multiprocessing.active_children())
    executor = ProcessPoolExecutor(
        min(workers, len(tasks)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin,
    )
    done = False
    try:
        with _interrupts_held():
            futures = {executor.submit(_call, work, task): i for i, task in tasks.items()}
        for future in as_completed(futures):
            error = future.exception()
            if isinstance(error, BrokenProcessPool):
                error = WorkerDied("its worker process died; it may have run out of memory")
            if error is not None and not isinstance(error, Exception):
                raise error
            yield Outcome(futures[future], error)
        done = True
    finally:
        with _interrupts_held():
            executor.shutdown(wait=False, cancel_futures=True)
            if not done:
                _end(set(multiprocessing.active_children()) - before)
            executor.shutdown()


def _end(processes: set[BaseProcess]) -> None:
    """Ask processes to end, and kill those that do not."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + _PATIENCE_S
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait until the block is left; processes started inside begin with both
    held."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Ended(BaseException):
    """The parent wants this worker to end."""


def _begin() -> None:
    """What a worker does first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):  # the parent ends its workers by SIGTERM
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    threading.Thread(target=_follow_parent, daemon=True).start()


def _raise_ended(_signal: int, _frame: FrameType | None) -> None:
    raise _Ended


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _call(work: Callable[[Task], object], task: Task) -> None:
    """Do one task; its result stays in the worker, since only what it wrote matters.

    Told to end, a worker unwinds its task first; between tasks it simply dies.
    """
    signal.signal(signal.SIGTERM, _raise_ended)
    try:
        try:
            work(task)
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
    except _Ended:
        os._exit(1)  # returning would let the pool hand out the next task
