"""A backend runs independent tasks, and yields the result of each when it ends.

It is not limited to scenarios: it takes a picklable function and picklable tasks. Local processes
are one backend, a Ray cluster is another. Results must not depend on where, or in which order, the
tasks ran.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

from moesim.errors import MoesimError, UsageError

__all__ = [
    "Again",
    "Backend",
    "Cluster",
    "Shared",
    "TaskResult",
    "UnlikeMachine",
    "WorkerDied",
]

Task = TypeVar("Task")
Again = Callable[[int, Any], Any]
"""`again(index, value)`: the task to run in place of the one that returned `value`; None: it ended.
"""


@dataclass(frozen=True, slots=True)
class TaskResult:
    """The end of task number `index`: its error, or None if it succeeded, and what it returned.

    Local processes return nothing: their results are the files that they write.
    """

    index: int
    error: Exception | None = None
    value: Any = None


class WorkerDied(MoesimError):
    """A worker process died without reporting, often because it ran out of memory."""


class UnlikeMachine(UsageError):
    """A machine has another moesim than the caller; its runs would not be the same.

    It ends the sweep. Otherwise this machine would fail nearly all points, because it is fast.
    """


class Backend(Protocol):
    """A place that runs tasks, and whose workers write where the caller reads."""

    def results(
        self, work: Callable[[Task], object], tasks: Sequence[Task]
    ) -> Generator[TaskResult]:
        """Call `work` with every task; yield one result per task, in the order in which they end.

        A task that raises yields a result with its error and stops no other task. Closing the
        iterator, or an interrupt, ends the workers; files of finished tasks stay.
        """
        ...


class Shared(Protocol):
    """A value that the caller has put where every worker can read it."""

    def get(self) -> Any:
        """Return the value."""
        ...


@runtime_checkable
class Cluster(Protocol):
    """A place that runs tasks on machines which may share no disk with the caller."""

    repeated: int
    """How often a task was started again, because its worker or machine had died."""

    def answers(
        self, work: Callable[[Task], object], tasks: Iterable[Task], again: Again
    ) -> Generator[TaskResult]:
        """Do as `Backend.results`, with the values that tasks return; take tasks one by one.

        Where `again` answers with a task, that task runs and the value is dropped. A task whose
        machine dies runs again elsewhere.

        Raises:
            UnlikeMachine: a machine has another moesim, or none.
        """
        ...

    def share(self, value: Any) -> Shared:
        """Put a value where every worker can read it."""
        ...
