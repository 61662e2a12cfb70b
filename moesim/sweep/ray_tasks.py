"""The backend of a Ray cluster: each task is one Ray task that takes one processor.

At most a window of tasks is in flight, so that tasks are made while others run. Tasks of a machine
that dies run again elsewhere. This class counts the attempts itself: Ray would repeat a task that
needs more memory than there is without end.

Ray is imported inside functions, because its import takes half a second.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import pickle
import queue
import secrets
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, Self, TypeVar

from moesim.errors import MissingExtra, MoesimError, UsageError
from moesim.sweep.addresses import Address, check_reachable
from moesim.sweep.backend import Again, TaskResult, UnlikeMachine, WorkerDied
from moesim.sweep.local import interrupts_blocked

__all__ = ["RayTasks", "require_ray"]

Task = TypeVar("Task")

ATTEMPTS: Final = 4
"""How often a task is started, if its worker or machine dies each time."""
_LEAST_WINDOW: Final = 16  # an autoscaler starts machines only for tasks that wait
_LOOK_AGAIN_S: Final = 5.0  # machines join and leave a cluster
_STORE_BYTES: Final = 128 << 20  # results of runs are about 0.1 MB each
_QUIET: Final[dict[str, Any]] = {"log_to_driver": False, "logging_level": "ERROR"}
_SILENT: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is reported to Ray's authors
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else Ray prints a warning about GPUs
}
# It listens on the network; without a token, others could send tasks to it. Ray takes the token
# from here instead of writing one into the home folder.
_PRIVATE: Final = {**_SILENT, "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def require_ray(address: Address) -> None:
    """Raise `MissingExtra` where Ray, or what it needs to join this cluster, is not installed."""
    needed = ("ray", "grpc") if address.host else ("ray",)
    if any(importlib.util.find_spec(name) is None for name in needed):
        raise MissingExtra("ray", f"--on {address}")


@dataclass(slots=True)
class _Flight:
    """A task that was handed to Ray, and how often."""

    index: int
    task: Any
    reference: Any
    attempt: int


class _InStore:
    """A value in Ray's object store."""

    def __init__(self, reference: Any) -> None:
        self.reference = reference

    def get(self) -> Any:
        import ray

        return ray.get(self.reference)


class RayTasks:
    """A backend of Ray; use it as a context, which starts or joins a cluster and leaves it.

    Without a host, a cluster of this machine is started, with `workers` processors. In a cluster
    that others started, at most `workers` tasks run at a time; None is one for each processor.
    """

    def __init__(self, address: Address, workers: int | None = None) -> None:
        if workers is not None and workers < 1:
            raise ValueError(f"workers ({workers}) must be at least 1")
        self.address = address
        self.workers = workers
        self.repeated = 0
        """How often a task was started again, because its worker or machine had died."""
        self._processors = 0
        self._looked_s = float("-inf")

    def __enter__(self) -> Self:
        require_ray(self.address)
        with ExitStack() as left:
            left.enter_context(_environment(private=self.address.starts))
            left.callback(_leave)
            with _signals_kept(), _said_plainly(self.address):
                if self.address.starts:
                    self._start()
                else:
                    self._join()
            self._left = left.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.close()

    def _start(self) -> None:
        import ray

        logging.getLogger("ray").setLevel(logging.ERROR)  # else it warns of its own settings
        ray.init(
            address="local",
            num_cpus=self.workers or os.cpu_count() or 1,
            include_dashboard=False,
            object_store_memory=_STORE_BYTES,
            **_QUIET,
        )

    def _join(self) -> None:
        import ray

        check_reachable(self.address)
        ray.init(address=self.address.for_ray, **_QUIET)

    def share(self, value: Any) -> _InStore:
        """Put a value into Ray's object store."""
        import ray

        return _InStore(ray.put(value))

    def answers(
        self, work: Callable[[Task], object], tasks: Iterable[Task], again: Again
    ) -> Generator[TaskResult]:
        """Yield results as `Cluster.answers` defines."""
        import ray

        # Attempts are counted here, see above. Workers keep their imports from task to task.
        remote: Any = ray.remote(_call).options(num_cpus=1, max_retries=0)
        ended: queue.SimpleQueue[tuple[_Flight, Future[Any]]] = queue.SimpleQueue()
        flying: dict[int, _Flight] = {}

        def start(index: int, task: Any, attempt: int) -> None:
            flight = _Flight(index, task, remote.remote(work, task), attempt)
            flying[index] = flight
            flight.reference.future().add_done_callback(lambda it: ended.put((flight, it)))

        waiting = iter(enumerate(tasks))
        try:
            while True:
                for index, task in _some(waiting, self._window() - len(flying)):
                    start(index, task, 1)
                if not flying:
                    return
                flight, future = _next(ended)
                del flying[flight.index]
                error, value = _answer(future)
                if isinstance(error, _Lost):
                    if flight.attempt < ATTEMPTS:
                        self.repeated += 1
                        start(flight.index, flight.task, flight.attempt + 1)
                    else:
                        yield TaskResult(flight.index, _died(error, flight.attempt))
                    continue
                if error is None and (other := again(flight.index, value)) is not None:
                    start(flight.index, other, flight.attempt)
                    continue
                if isinstance(error, UnlikeMachine):
                    raise error
                yield TaskResult(flight.index, error, value)
        except ConnectionError as reason:
            raise MoesimError(
                f"lost the connection to the Ray cluster ({reason}); what is done is kept, and the "
                "same command continues"
            ) from None
        finally:
            for flight in flying.values():
                with suppress(Exception):  # the cluster may be gone
                    ray.cancel(flight.reference, force=True)

    def _window(self) -> int:
        """Return how many tasks may be in flight now."""
        import ray

        if not self.address.starts and self.workers is not None:
            return self.workers
        if time.monotonic() > self._looked_s + _LOOK_AGAIN_S:
            resources: Any = ray.cluster_resources()  # type: ignore[no-untyped-call]
            self._processors = int(resources.get("CPU", 0))
            self._looked_s = time.monotonic()
        # Twice as many, so that a worker that ends finds its next task on its machine.
        return max(2 * self._processors, _LEAST_WINDOW)


def _some(waiting: Iterator[tuple[int, Task]], most: int) -> Iterator[tuple[int, Task]]:
    """Yield the next `most` tasks, or those that are left."""
    for _ in range(most):
        numbered = next(waiting, None)
        if numbered is None:
            return
        yield numbered


def _next(ended: queue.SimpleQueue[Any]) -> Any:
    """Return the next task that ended. A wait without a limit would delay an interrupt."""
    while True:
        with suppress(queue.Empty):
            return ended.get(timeout=1.0)


class _Lost(Exception):
    """Ray lost the worker, the machine or the answer of a task."""


def _answer(future: Future[Any]) -> tuple[Exception | None, Any]:
    """Return the error or the value of a task that ended; a lost task has the error `_Lost`."""
    from ray import exceptions

    lost = (
        exceptions.WorkerCrashedError,
        exceptions.NodeDiedError,
        exceptions.ObjectLostError,
        exceptions.OutOfMemoryError,
        exceptions.LocalRayletDiedError,
    )
    try:
        error, value = future.result()
    except lost as reason:
        return _Lost(type(reason).__name__), None
    except exceptions.RayError as reason:
        return _unlike(reason), None
    return error, value


def _died(error: _Lost, attempts: int) -> WorkerDied:
    return WorkerDied(
        f"its worker died in all of {attempts} attempts ({error}); it may have run out of memory"
    )


def _unlike(reason: Exception) -> Exception:
    """Return what a machine without this moesim makes Ray raise, as an error for the user."""
    text = " ".join(str(reason).split())
    if "No module named" in text or "failed to import" in text or "Can't get attribute" in text:
        return UnlikeMachine(
            "a machine of the cluster cannot import moesim as it is here; install the same "
            f"version on all machines ({text[-200:]})"
        )
    return reason


def _call(work: Callable[[Task], object], task: Task) -> tuple[Exception | None, object]:
    """Run one task in a worker; return its error, if any, and its value."""
    try:
        return None, work(task)
    except Exception as error:
        if not isinstance(error, MoesimError):
            error.add_note(f"in a worker:\n{traceback.format_exc()}")
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # of a library: its error takes other arguments than it has
            return RuntimeError(f"{type(error).__name__}: {error}"), None
        return error, None


def _leave() -> None:
    """End the cluster that was started, or leave the one that was joined."""
    import ray

    # Ray removes handlers here, and a signal that ended the command may be raised again meanwhile.
    with interrupts_blocked(), _signals_kept():
        ray.shutdown()


@contextmanager
def _environment(*, private: bool) -> Iterator[None]:
    """Set the variables that Ray's processes inherit, until the block ends.

    What the user has set stays, except for the path of modules of a `private` cluster: its workers
    import what this process can import.
    """
    before = dict(os.environ)
    os.environ.update({**(_PRIVATE if private else _SILENT), **before})
    if private:
        os.environ["PYTHONPATH"] = os.pathsep.join(place or os.getcwd() for place in sys.path)
    try:
        yield
    finally:
        for name in [name for name in os.environ if name.startswith("RAY_")]:
            del os.environ[name]  # Ray sets some itself
        os.environ.pop("PYTHONPATH", None)
        os.environ.update(before)


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Restore the handlers of signals that Ray replaces."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in numbers if main}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)


@contextmanager
def _said_plainly(address: Address) -> Iterator[None]:
    """Turn Ray's errors at the start into one message each."""
    try:
        yield
    except MoesimError:
        raise
    except (RuntimeError, ConnectionError, ValueError, ImportError, OSError) as error:
        text = " ".join(str(error).split())
        if "connection timeout" in text:
            text += "; the port must be that of Ray's client server, 10001 by default"
        if "ersion" in text:
            raise UsageError(
                f"--on {address}: the cluster has another version of Ray or Python than this "
                f"process; install the same on both: {text}"
            ) from None
        raise UsageError(f"--on {address}: cannot join or start the cluster: {text}") from None
