"""Samples of latencies by request, so that the same requests can be drawn from two runs."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from moesim.report.distribution import counted, latency_ns
from moesim.report.runs import Run

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["RequestPairs", "Sample"]

_MS: Final = 1e6
_S: Final = 1e9
_METRIC: Final = re.compile(
    r"(ttft|ttft_queue|ttft_service|tpot|itl|e2e|normalised)_(mean|p\d+)_ms"
    r"|(decode)_(mean|p\d+)_tokens_per_s"
)
_SAME: Final = ("prompt_tokens", "output_tokens")
"""What makes a request the same one in two runs. Arrivals of closed clients depend on the run."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Values of a latency in ms, or of a speed, ascending, each with the place of its request.

    `percentile` is what the metric takes of them, None for the mean. `requests` is their number,
    also of those without a value.
    """

    values: NDArray[np.float64]
    owners: NDArray[np.int64]
    requests: int
    percentile: float | None

    @property
    def beyond(self) -> float:
        """How many values are expected to lie beyond the percentile; infinite for a mean."""
        if self.percentile is None:
            return math.inf
        return len(self.values) * min(self.percentile, 100 - self.percentile) / 100

    @property
    def of_all(self) -> float:
        """The statistic of all requests; NaN without any value."""
        import numpy as np

        return self.statistic(np.ones(self.requests, np.int64))

    def statistic(self, counts: NDArray[np.int64]) -> float:
        """Return the statistic if request i is drawn `counts[i]` times; NaN without any value.

        Percentiles are interpolated linearly, as in a summary.
        """
        weights = counts[self.owners]
        if self.percentile is None:
            total = int(weights.sum())
            return float(weights @ self.values) / total if total else math.nan
        ends = weights.cumsum()
        if not len(ends) or not ends[-1]:
            return math.nan
        place = (int(ends[-1]) - 1) * self.percentile / 100
        low = math.floor(place)
        below, above = self.values[ends.searchsorted([low, math.ceil(place)], side="right")]
        return float(below + (above - below) * (place - low))


class RequestPairs:
    """The requests of two runs, paired by their numbers; their tables are read once."""

    def __init__(self, run: Run, baseline: Run) -> None:
        self._runs = run, baseline

    @cached_property
    def _tables(self) -> tuple[dict[str, Any], dict[str, Any]]:
        run, baseline = self._runs
        return _in_order(run), _in_order(baseline)

    def samples(self, metric: str) -> tuple[Sample, Sample] | str:
        """Return the samples of a metric in both runs, or why its requests cannot be paired."""
        match = _METRIC.fullmatch(metric)
        if match is None:
            return f"{metric} is one number of a whole run, not of its requests; give several seeds"
        if not self._same():
            return "the requests that finished, or were counted, differ between the runs"
        name, statistic = (part for part in match.groups() if part is not None)
        percentile = None if statistic == "mean" else float(statistic[1:])
        after, before = (_sample(name, table, percentile) for table in self._tables)
        for sample, run in zip((after, before), self._runs, strict=True):
            # The summary decides. An interval of other values than its own would mislead.
            if not math.isclose(sample.of_all, run.value(metric), rel_tol=1e-9, abs_tol=1e-9):
                return f"the table of requests in {run.path} does not give its {metric}"
        return after, before

    def _same(self) -> bool:
        import numpy as np

        after, before = self._tables
        return all(np.array_equal(after[key], before[key]) for key in ("request", *_SAME))


def _in_order(run: Run) -> dict[str, Any]:
    """Return the rows of the requests that the summary's latencies are of, by their numbers."""
    import numpy as np

    table = counted(run, ("request", "prompt_tokens"))
    order = np.argsort(table["request"], kind="stable")
    return {key: column[order] for key, column in table.items()}


def _sample(name: str, table: dict[str, Any], percentile: float | None) -> Sample:
    import numpy as np

    if name == "decode":
        first, finish, tokens = (
            table[key].astype(np.int64) for key in ("first_token_ns", "finish_ns", "output_tokens")
        )
        owners = np.flatnonzero(finish > first)
        values = (tokens[owners] - 1) * _S / (finish - first)[owners]
    else:
        values, owners = latency_ns(name, table)
        values = values / _MS
    order = np.argsort(values, kind="stable")
    return Sample(values[order], owners[order], len(table["request"]), percentile)
