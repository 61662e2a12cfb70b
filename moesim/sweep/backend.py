"""A backend runs independent tasks, and yields the result of each when it ends.

It is not limited to scenarios: it takes a picklable function and picklable tasks. Local processes
are one backend; a cluster would be another. Results must not depend on where, or in which order,
the tasks ran.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from moesim.errors import MoesimError

__all__ = ["Backend", "TaskResult", "WorkerDied"]

Task = TypeVar("Task")


@dataclass(frozen=True, slots=True)
class TaskResult:
    """The end of task number `index`: its error, or None if it succeeded."""

    index: int
    error: Exception | None = None


class WorkerDied(MoesimError):
    """A worker process died without reporting, often because it ran out of memory."""


class Backend(Protocol):
    """A place that runs tasks."""

    def results(
        self, work: Callable[[Task], object], tasks: Sequence[Task]
    ) -> Generator[TaskResult]:
        """Call `work` with every task; yield one result per task, in the order in which they end.

        A task that raises yields a result with its error and stops no other task. Closing the
        iterator, or an interrupt, ends the workers; files of finished tasks stay.
        """
        ...
