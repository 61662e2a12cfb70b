"""CPU time by part of a run: stopwatches around functions, each without the parts inside it."""

from __future__ import annotations

import functools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

__all__ = ["timed_parts"]


class _Watch:
    """CPU seconds by part, and the parts that run now."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.spent_s: dict[str, float] = defaultdict(float)
        self._inner_s: list[float] = []

    def around(self, function: Any, part: str) -> Any:
        """Return a function that adds its own time, without that of parts inside it."""

        @functools.wraps(function)
        def timed(*arguments: Any, **options: Any) -> Any:
            start_s = self._clock()
            self._inner_s.append(0.0)
            try:
                return function(*arguments, **options)
            finally:
                whole_s = self._clock() - start_s
                self.spent_s[part] += whole_s - self._inner_s.pop()
                if self._inner_s:
                    self._inner_s[-1] += whole_s

        return timed


@contextmanager
def timed_parts(
    parts: Sequence[tuple[Any, str, str]], clock: Callable[[], float] = time.process_time
) -> Iterator[dict[str, float]]:
    """Yield the CPU seconds by part, which grow while the block runs.

    `parts` are (module or class, name of its function, part). Functions are replaced where they are
    looked up, and are put back at the end.
    """
    watch = _Watch(clock)
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in parts]
    for owner, name, part in parts:
        setattr(owner, name, watch.around(getattr(owner, name), part))
    try:
        yield watch.spent_s
    finally:
        for owner, name, function in before:
            setattr(owner, name, function)
