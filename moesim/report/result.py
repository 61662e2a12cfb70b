"""The result of a run: its summary, its tables and its plots, in memory or read back lazily."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from moesim.config.suggest import suggest
from moesim.errors import UsageError
from moesim.report.notebook import html_table
from moesim.report.runs import Run
from moesim.results.short import in_short

if TYPE_CHECKING:
    import pandas as pd

    from moesim.report.plots import RunPlots
    from moesim.scenario import Scenario

__all__ = ["Result", "StoredTables"]

_LONGEST_TEXT: Final = 125
_LONGEST_PATH: Final = 50
"""Characters of the numbers and of the folder that `repr` shows."""


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one simulation.

    Attributes:
        scenario: the checked scenario that was simulated.
        summary: about 150 numbers and texts by key, flat, with units in the keys (`ttft_p95_ms`);
            None where a number is undefined.
        columns: the tables by name, each from column to values.
        path: the run directory, or None if the result was not written.
        simulation: the back end of the run, `reference` or `compiled`.

    `requests`, `steps`, `layers` and `timeline` are the tables as pandas DataFrames, and `plot`
    draws them. docs/results.md explains every key and column.

    >>> result = moesim.run("scenarios/quickstart.yaml", overrides={"workload.requests": 2})
    >>> result.summary["misses"]
    893
    >>> result.requests[["prompt_tokens", "output_tokens"]].sum().tolist()
    [86, 68]
    """

    scenario: Scenario
    summary: dict[str, Any]
    columns: Mapping[str, Mapping[str, Any]]
    path: Path | None = None
    simulation: str = "reference"
    _frames: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __repr__(self) -> str:
        place = "not written" if self.path is None else str(self.path)
        if len(place) > _LONGEST_PATH:
            place = f"…{place[-_LONGEST_PATH:]}"
        text = in_short(self.summary)
        if len(text) > _LONGEST_TEXT:  # a name may be long
            text = f"…{text[-_LONGEST_TEXT:]}"
        return f"<Result {text}; {place}>"

    def _repr_html_(self) -> str:
        """Return a table of the headline numbers, for a notebook."""
        from moesim.report.marks import routing_mark
        from moesim.report.metrics import HEADLINE, costs, number

        run = self.as_run()
        shown = [(each, each.of(run)) for each in HEADLINE]
        rows = [(each.label, number(value), each.unit) for each, value in shown if value == value]
        mark = f" [{mark}]" if (mark := routing_mark(run)) else ""
        title = f"{run.text('name')}: {run.text('model')} on {run.hardware}{mark}; {costs(run)}"
        return html_table(title, ("metric", "value", "unit"), rows)

    @property
    def requests(self) -> pd.DataFrame:
        """One row per request, in the order of arrival: times in ns, tokens, status."""
        return self.table("requests")

    @property
    def steps(self) -> pd.DataFrame:
        """One row per step: its times in ns, tokens, hits, misses, stalls and bytes."""
        return self.table("steps")

    @property
    def layers(self) -> pd.DataFrame:
        """One row per trace layer: accesses by outcome, stalls in ns and bytes."""
        return self.table("layers")

    @property
    def timeline(self) -> pd.DataFrame:
        """One row per work on a lane, of the steps that `timeline` of the scenario records."""
        return self.table("timeline")

    @property
    def plot(self) -> RunPlots:
        """The plots of this run: `result.plot.latency()` returns matplotlib Axes."""
        from moesim.report.plots import RunPlots

        return RunPlots(self.as_run())

    def table(self, name: str) -> pd.DataFrame:
        """Return `requests`, `steps`, `layers`, `timeline` or `summary` as a pandas DataFrame.

        A table is made once; copy it before you change it. That of the summary has the column
        `value` and a row per key.

        Raises:
            UsageError: there is no table `name`.
            DamagedRun: the result was loaded, and the table's file is missing or was changed.
        """
        if name not in self.columns and name != "summary":
            near = suggest(str(name), self.columns)
            raise UsageError(
                f"a result has no table {name!r}; there are {', '.join(self.columns)}{near}"
            )
        frame: pd.DataFrame | None = self._frames.get(name)
        if frame is None:
            frame = self._frames[name] = self._frame(name)
        return frame

    def _frame(self, name: str) -> pd.DataFrame:
        import pandas as pd  # slow to import, and only needed here

        if name != "summary":
            return pd.DataFrame(dict(self.columns[name]))
        values = pd.Series(self.summary, dtype=object, name="value")
        return values.rename_axis("key").to_frame()

    def as_run(self) -> Run:
        """Return this result as reports read it; paths of its scenario are absolute."""
        return Run(
            self.path or Path("not written"),
            self.summary,
            {},
            self.scenario.resolved_in(None),
            self.columns,
        )


class StoredTables(Mapping[str, Mapping[str, Any]]):
    """The tables of a run directory, each read and checked when it is first asked for."""

    def __init__(self, run: Run, names: tuple[str, ...]) -> None:
        self._run, self._names = run, names
        self._read: dict[str, Mapping[str, Any]] = {}

    def __getitem__(self, name: str) -> Mapping[str, Any]:
        if name not in self._names:
            raise KeyError(name)
        if name not in self._read:
            self._read[name] = self._run.arrow(name).to_pydict()
        return self._read[name]

    def __contains__(self, name: object) -> bool:
        return name in self._names  # reads no file

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
