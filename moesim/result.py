"""The result of a run."""

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
    """`summary` (flat, units in the names) and the raw columns behind it.

    `path` is the run directory, or None for a result that was not written.
    """

    scenario: Scenario
    summary: dict[str, Any]
    columns: Mapping[str, Mapping[str, Any]]
    path: Path | None = None

    def __repr__(self) -> str:
        return f"<Result {in_short(self.summary)}; {self.path or 'not written'}>"

    def table(self, name: str) -> pd.DataFrame:
        """Return `requests`, `steps`, `layers` or `timeline` as a pandas DataFrame.

        Raises:
            UsageError: there is no such table.
        """
        if name not in self.columns:
            near = suggest(str(name), self.columns)
            raise UsageError(
                f"a result has no table {name!r}; there are {', '.join(self.columns)}{near}"
            )
        import pandas as pd

        return pd.DataFrame(dict(self.columns[name]))


def in_short(summary: Mapping[str, Any]) -> str:
    """Return the name of a run and the few numbers that say most, on one line."""
    numbers = (
        ("requests", "{:.0f} requests"),
        ("makespan_s", "{:.4g} s"),
        ("output_tokens_per_s", "{:.4g} output tokens/s"),
        ("stall_share", "{:.0%} stalled"),
    )
    told = [
        form.format(summary[key])
        for key, form in numbers
        if isinstance(summary.get(key), int | float)
    ]
    return f"{summary.get('name')}: {', '.join(told)}"
