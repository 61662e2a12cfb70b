"""The numbers of a summary that a search can ask for, and what it can ask of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from moesim.errors import UsageError, shown
from moesim.results.metric_names import SIGNS, compared, metric_named

__all__ = ["Condition", "Objective", "parse_condition", "parse_objective"]


@dataclass(frozen=True, slots=True)
class Objective:
    """A metric that a search makes as large or as small as it can."""

    metric: str
    maximize: bool

    def worth(self, value: float) -> float:
        """Return a number that is larger for a better value; NaN stays NaN."""
        return value if self.maximize else -value

    def __str__(self) -> str:
        return f"{'maximize' if self.maximize else 'minimize'} {self.metric}"


@dataclass(frozen=True, slots=True)
class Condition:
    """A metric and the limit that it must reach, or must not exceed."""

    metric: str
    sign: str
    limit: float

    def meets(self, value: float) -> bool:
        """Return whether a value meets the condition; an undefined one (NaN) does not."""
        return SIGNS[self.sign](value, self.limit)

    def excess(self, value: float) -> float:
        """Return by how much a value misses the limit, as a share of it; 0 or less if it is met."""
        miss = self.limit - value if self.sign in (">=", ">") else value - self.limit
        return miss / abs(self.limit) if self.limit else miss

    def __str__(self) -> str:
        return f"{self.metric} {self.sign} {self.limit:g}"


def parse_objective(option: str, text: str) -> Objective:
    """Return the objective of `--minimize METRIC` or `--maximize METRIC`; `option` says which.

    Raise UsageError for an unknown metric.
    """
    return Objective(metric_named(option, text.strip()), option == "--maximize")


def parse_condition(option: str, text: str) -> Condition:
    """Return the condition in a text like `"ttft_p99_ms <= 500"`. Raise UsageError."""
    metric, sign, number = compared(option, text, "a number", "output_tokens_per_s >= 20")
    try:
        limit = float(number)
    except ValueError:
        limit = math.nan
    if not math.isfinite(limit):
        raise UsageError(
            f"{option} {shown(text)}: {shown(number)} is no number; write it without a unit, in "
            "the unit at the end of the metric's name"
        )
    return Condition(metric_named(option, metric), sign, limit)
