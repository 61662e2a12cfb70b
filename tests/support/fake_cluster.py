"""A cluster whose machines are this process: it runs each task at once, or as a test wants."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Generator, Iterable
from typing import Any

from moesim.sweep.backend import Again, TaskResult


class Held:
    """A value that was shared; it counts how often it is read."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.reads = 0

    def get(self) -> Any:
        self.reads += 1
        return self.value


class FakeCluster:
    """A cluster that runs tasks one after another, the last first if `backwards` is set.

    `around` runs a task: it may change the machine, the task or the value.
    """

    def __init__(
        self,
        around: Callable[[Callable[[Any], Any], Any], Any] = lambda work, task: work(task),
        *,
        backwards: bool = False,
    ) -> None:
        self.around = around
        self.repeated = 0
        self.backwards = backwards
        self.shared: list[Held] = []

    def share(self, value: Any) -> Held:
        self.shared.append(Held(value))
        return self.shared[-1]

    def answers(
        self, work: Callable[[Any], object], tasks: Iterable[Any], again: Again
    ) -> Generator[TaskResult]:
        numbered = list(enumerate(tasks))
        for index, first in reversed(numbered) if self.backwards else numbered:
            yield self._answer(work, index, first, again)

    def _answer(
        self, work: Callable[[Any], object], index: int, task: Any, again: Again
    ) -> TaskResult:
        pickle.dumps(work)
        while True:
            try:
                value = self.around(work, task)
            except Exception as error:
                return TaskResult(index, error)
            task = again(index, value)
            if task is None:
                return TaskResult(index, None, value)
