"""A backend does independent tasks somewhere, and tells of each when it is done.

It knows nothing of scenarios: a picklable function, picklable tasks, outcomes in the order in
which they end. Local processes are one backend; a cluster would be another. What comes out must
not depend on where, or in which order, the tasks ran.
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
    """How task number `index` ended: `error` is None if well."""

    index: int
    error: Exception | None = None


class WorkerDied(MoesimError):
    """A worker process ended without a word, as one does that runs out of memory."""


class Backend(Protocol):
    """Somewhere to do tasks."""

    def outcomes(
        self, work: Callable[[Task], object], tasks: Sequence[Task]
    ) -> Generator[TaskResult]:
        """Do `work` on every task; yields one outcome a task, as they end.

        A failing task becomes an outcome and stops no other. Closing the iterator, or an
        interrupt while waiting, ends the workers; what was done stays done.
        """
        ...
