"""What a run came to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from moesim.scenario import Scenario


@dataclass(frozen=True, slots=True)
class Result:
    """`summary` (flat, units in the names) and the raw columns behind it.

    `path` is the run directory, or None for a result that was not written.
    """

    scenario: Scenario
    summary: dict[str, Any]
    columns: Mapping[str, Mapping[str, Any]]
    path: Path | None = None

    def table(self, name: str) -> pd.DataFrame:
        """`requests`, `steps`, `layers` or `timeline` as a pandas DataFrame."""
        import pandas as pd

        return pd.DataFrame(dict(self.columns[name]))
