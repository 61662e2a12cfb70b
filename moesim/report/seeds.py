"""Seeds that repeat one run: where a workload draws nothing at random, all seeds give one result.

Such runs are one observation, however many there are. An interval over them would have no width.
"""

from __future__ import annotations

from collections.abc import Sequence

from moesim.report.runs import Run

__all__ = ["repeated"]


def repeated(runs: Sequence[Run]) -> bool:
    """Return whether several runs, which differ in their seeds alone, have the same numbers."""
    first, *others = ({key: run.summary[key] for key in run.summary if key != "seed"}
                      for run in runs)  # fmt: skip
    return bool(others) and all(numbers == first for numbers in others)
