"""The result of a run: its summary and tables, in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesim.config.suggest import suggest
from moesim.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

    from moesim.scenario import Scenario

__all__ = ["Result", "in_short"]


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one simulation.

    Attributes: `summary`, flat, with units in its keys and None where undefined; `columns`, the
    tables by name, each from column to values; `path`, the run directory, or None if the result
    was not written; `simulation`, the back end of the run. docs/results.md explains every key and
    column.
    """

    scenario: Scenario
    summary: dict[str, Any]
    columns: Mapping[str, Mapping[str, Any]]
    path: Path | None = None
    simulation: str = "reference"

    def __repr__(self) -> str:
        return f"<Result {in_short(self.summary)}; {self.path or 'not written'}>"

    def table(self, name: str) -> pd.DataFrame:
        """Return `requests`, `steps`, `layers` or `timeline` as a pandas DataFrame.

        Raises:
            UsageError: there is no table `name`.
        """
        if name not in self.columns:
            near = suggest(str(name), self.columns)
            raise UsageError(
                f"a result has no table {name!r}; there are {', '.join(self.columns)}{near}"
            )
        import pandas as pd  # slow to import, and only needed here

        return pd.DataFrame(dict(self.columns[name]))


def in_short(summary: Mapping[str, Any]) -> str:
    """Return a run's name, requests, makespan, speeds and stalls on one line.

    Numbers that the summary lacks are left out.
    """
    numbers = (
        ("requests", "{:.0f} requests"),
        ("makespan_s", "{:.4g} s"),
        ("decode_mean_tokens_per_s", "{:.4g} tokens/s per user"),
        ("output_tokens_per_s", "{:.4g} output tokens/s in all"),
        ("stall_share", "{:.0%} stalled"),
    )
    texts = [
        form.format(summary[key])
        for key, form in numbers
        if isinstance(summary.get(key), int | float)
    ]
    return f"{summary.get('name')}: {', '.join(texts)}"
