"""The backend of one machine: worker processes, started anew so that they share no state.

Only the parent process handles an interrupt. Workers start with Ctrl-C blocked. The parent ends
them by SIGTERM; they unwind, so that half-written folders are removed. A worker that does not end
in time is killed. A worker whose parent has died ends by itself.

When a worker dies, all tasks in progress are lost. They run again one at a time, which shows
which of them kills its worker.
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
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Final, TypeVar

from moesim.errors import UsageError, shown
from moesim.sweep.backend import TaskResult, WorkerDied

__all__ = ["LocalProcesses"]

Task = TypeVar("Task")

_GRACE_S: Final = 5.0  # enough to remove the temporary folder of a run
_BLOCKED: Final = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


class LocalProcesses:
    """A backend of `workers` processes; one worker or one task runs in the calling process."""

    def __init__(self, workers: int) -> None:
        if not isinstance(workers, int) or workers < 1:
            raise UsageError(f"workers must be a whole number of at least 1, not {shown(workers)}")
        self.workers = workers

    def results(
        self, work: Callable[[Task], object], tasks: Sequence[Task]
    ) -> Generator[TaskResult]:
        """Yield results as `Backend.results` defines."""
        numbered = dict(enumerate(tasks))
        if min(self.workers, len(tasks)) <= 1:
            for index, task in numbered.items():
                yield TaskResult(index, _attempt(work, task))
            return
        while numbered:
            lost = []
            for result in _pool(work, numbered, self.workers):
                if isinstance(result.error, WorkerDied):
                    lost.append(result.index)
                else:
                    yield result
            lost.sort()
            # The executor starts tasks in order and hands out one in advance. So only the first of
            # the lost tasks can have started; the others did no harm and run in a new pool.
            for index in lost[: self.workers + 1]:
                yield from _pool(work, {index: numbered[index]}, 1)
            numbered = {index: numbered[index] for index in lost[self.workers + 1 :]}


def _attempt(work: Callable[[Task], object], task: Task) -> Exception | None:
    """Run a task in this process; return its error, if any."""
    try:
        work(task)
    except Exception as error:
        return error
    return None


def _pool(
    work: Callable[[Task], object], tasks: Mapping[int, Task], workers: int
) -> Generator[TaskResult]:
    """Run numbered tasks in worker processes; yield results as tasks end."""
    # The executor does not say which processes are its own; the difference does.
    before = set(multiprocessing.active_children())
    _start_tracker()
    executor = ProcessPoolExecutor(
        min(workers, len(tasks)),
        # A forked process copies locks that other threads hold, and would wait for them forever.
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
    )
    done = False
    try:
        with interrupts_blocked():  # workers start here and inherit the blocked signals
            futures = {executor.submit(_call, work, task): i for i, task in tasks.items()}
        for future in as_completed(futures):
            error = future.exception()
            if isinstance(error, BrokenProcessPool):
                error = WorkerDied("its worker process died; it may have run out of memory")
            if error is not None and not isinstance(error, Exception):
                raise error  # an interrupt is not the result of a task
            yield TaskResult(futures[future], error)
        done = True
    finally:
        with interrupts_blocked():  # a second Ctrl-C must not leave workers behind
            executor.shutdown(wait=False, cancel_futures=True)
            if not done:
                _end(set(multiprocessing.active_children()) - before)
            executor.shutdown()


def _end(processes: set[BaseProcess]) -> None:
    """End processes by SIGTERM; kill those that are still alive after `_GRACE_S` together."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + _GRACE_S
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


@contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Delay Ctrl-C, SIGTERM and SIGHUP until the block is left.

    Processes started inside begin with all three blocked. The mask alone delays nothing here: other
    threads (those of numpy, for example) still take signals, and Python then runs the handler in
    the main thread.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    arrived: list[int] = []
    main = threading.current_thread() is threading.main_thread()  # no other may set handlers
    handlers = {number: signal.getsignal(number) for number in _BLOCKED if main}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)
    try:
        for number in handlers:
            signal.signal(number, lambda number, _frame: arrived.append(number))
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number in arrived[:1]:
            signal.raise_signal(number)


def _start_tracker() -> None:
    """Start Python's resource tracker, the process that removes semaphores, before any worker.

    The tracker does not ignore SIGHUP. A closed terminal would end it, and its successor would
    print a complaint after the last line. Starting it also unblocks signals.
    """
    if hasattr(signal, "pthread_sigmask"):
        with interrupts_blocked():
            resource_tracker.ensure_running()


class _Ended(BaseException):
    """The parent ends this worker; no task must catch it as an `Exception`."""


def _start_worker() -> None:
    """Prepare a worker process to end by SIGTERM, and when its parent dies."""
    # A terminal sends Ctrl-C to every process of a command; only the parent must handle it.
    for number in _BLOCKED:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        # Inherited as blocked; the parent ends its workers by SIGTERM.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _raise_ended(_signal: int, _frame: FrameType | None) -> None:
    raise _Ended


def _exit_with_parent() -> None:
    """Wait for the end of the parent process, then end this one."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # `sys.exit` would end only this thread


def _call(work: Callable[[Task], object], task: Task) -> None:
    """Run one task in a worker, and discard what it returns: its results are the files it writes.

    On SIGTERM the worker unwinds its task first; between tasks it dies at once.
    """
    signal.signal(signal.SIGTERM, _raise_ended)
    try:
        try:
            work(task)
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
    except _Ended:
        os._exit(1)  # returning would make the pool hand out the next task
