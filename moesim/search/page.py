"""What a search found as files: `search.json`, `search.csv` and `search.md`.

The files depend on the scenario and the options alone: not on the number of processes, and not on
whether a run was made by this command or lay in the folder already.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from moesim.config.spelling import exact
from moesim.report.chart import write_csv, write_whole
from moesim.report.comparison import Comparison, compare_runs
from moesim.report.marks import FORESEES, marked
from moesim.report.metrics import number
from moesim.report.statistics import Estimate
from moesim.report.tabular import Table, escaped, markdown
from moesim.search.grid import Grid, Place
from moesim.search.tried import Tried

__all__ = ["Finding", "Page", "Saved", "estimate_text", "undefined", "value_text", "write_page"]


@dataclass(frozen=True, slots=True)
class Saved:
    """How many runs a search took, and how many the whole grid has.

    `cost` is the number of whole runs that take as long: a run of a prefix counts as its share of
    the requests.
    """

    whole: int
    prefix: int
    cost: float
    grid: int

    @property
    def share(self) -> float:
        """The share of the grid's runs that the search did not need; negative if it needed more."""
        return 1 - self.cost / self.grid

    def __str__(self) -> str:
        runs = f"{self.whole} of the grid's {self.grid} runs"
        if self.prefix:
            runs += f" and {self.prefix} runs of a prefix, which cost {number(self.cost)} runs"
        return f"{runs}: {self.share:.0%} saved"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a search found, for any kind of search.

    `tried` are all points with whole runs, `prefixes` those of a prefix. `found` holds the answer
    as plain data, `marks` a word for some places, for the column `mark` of `search.csv`.
    """

    kind: str
    asked: str
    sentences: Sequence[str]
    metrics: Sequence[str]
    tried: Sequence[Tried]
    found: Sequence[dict[str, Any]]
    tables: Sequence[Table]
    saved: Saved
    marks: dict[Place, str]
    notes: Sequence[str] = ()
    prefixes: Sequence[Tried] = ()
    refused: str = ""
    """Why the search found nothing that may be used; "" if it did not have to stop."""
    reached: bool = True
    """Whether any tried point meets what was asked."""


@dataclass(frozen=True, slots=True)
class Page:
    """A finding with the grid that was searched and the command that makes it."""

    grid: Grid
    finding: Finding
    command: str

    @property
    def comparison(self) -> Comparison | None:
        """The comparison of all whole runs; None without any."""
        runs = [run for each in self.finding.tried for run in each.runs]
        return compare_runs(runs) if runs else None

    @property
    def caption(self) -> str:
        """What was simulated: requests, seeds, trace, model, machine, costs and caveats."""
        return "" if (comparison := self.comparison) is None else comparison.caption()

    @property
    def failures(self) -> list[str]:
        """One line for each tried point that failed, with the reason."""
        tried = [*self.finding.prefixes, *self.finding.tried]
        return [f"{self.grid.label(each.place)}: {each.error}" for each in tried if each.error]

    @property
    def notes(self) -> list[str]:
        """The notes of the search, then those of the runs."""
        comparison = self.comparison
        return [*self.finding.notes, *(() if comparison is None else comparison.notes)]

    def as_plain(self) -> dict[str, Any]:
        """Return everything as plain data, undefined numbers as None."""
        saved = self.finding.saved
        return {
            "name": self.grid.scenario.name,
            "command": self.command,
            "kind": self.finding.kind,
            "asked": self.finding.asked,
            "grid": {key: list(values) for key, values in self.grid.values.items()},
            "seeds": list(self.grid.seeds),
            "sentences": list(self.finding.sentences),
            "found": list(self.finding.found),
            "runs": saved.whole,
            "prefix_runs": saved.prefix,
            "cost_runs": saved.cost,
            "grid_runs": saved.grid,
            "saved_share": saved.share,
            "caption": self.caption,
            "tried": [self._point(each) for each in self._every()],
            "failures": self.failures,
            "notes": self.notes,
        }

    def as_markdown(self) -> str:
        """Return the page in Markdown."""
        parts = [
            f"# Search: {escaped(self.grid.scenario.name)}",
            f"```sh\n{self.command}\n```",
            *(f"**{escaped(sentence)}**" for sentence in self.finding.sentences),
            f"Runs: {escaped(str(self.finding.saved))}.",
        ]
        parts += [escaped(self.caption)] if self.caption else []
        parts += [markdown(table) for table in self.finding.tables]
        if self.failures:
            parts.append("## Points that failed")
            parts.append("\n".join(f"- {escaped(line)}" for line in self.failures))
        if self.notes:
            parts.append("\n".join(f"- {escaped(note)}" for note in self.notes))
        return "\n\n".join(parts) + "\n"

    def columns(self) -> list[str]:
        """Return the columns of `search.csv`."""
        metrics = [name for key in self.finding.metrics for name in (key, f"{key}_half_interval")]
        return [*self.grid.keys, "requests", "seeds", *metrics, "mark", "knows_the_future", "error"]

    def rows(self) -> list[list[Any]]:
        """Return a row for each tried point; those of a prefix first."""
        return [self._row(each) for each in self._every()]

    def _every(self) -> list[Tried]:
        return [*self.finding.prefixes, *self.finding.tried]

    def _row(self, tried: Tried) -> list[Any]:
        row: list[Any] = [exact(value) for value in self.grid.chosen(tried.place).values()]
        row += ["all" if tried.requests is None else tried.requests, len(tried.runs)]
        for metric in self.finding.metrics:
            value = tried.estimate(metric)
            row += [value.mean, value.half]
        return [*row, self._mark(tried), ", ".join(tried.seers), tried.error]

    def _point(self, tried: Tried) -> dict[str, Any]:
        return {
            "values": self.grid.chosen(tried.place),
            "requests": tried.requests,
            "metrics": {key: plain_estimate(tried.estimate(key)) for key in self.finding.metrics},
            "mark": self._mark(tried),
            "knows_the_future": ", ".join(tried.seers),
            "error": tried.error,
        }

    def _mark(self, tried: Tried) -> str:
        return self.finding.marks.get(tried.place, "") if tried.requests is None else ""


def plain_estimate(value: Estimate) -> dict[str, Any]:
    """Return a mean as plain data: `mean` (None for NaN), `half_interval`, and `n` seeds."""
    mean = None if math.isnan(value.mean) else value.mean
    return {"mean": mean, "half_interval": value.half, "n": value.n}


def estimate_text(value: Estimate) -> str:
    """Return a mean with its interval as text, rounded for people."""
    text = number(value.mean)
    return f"{text} ± {number(value.half)}" if value.half is not None else text


def value_text(tried: Tried, metric: str) -> str:
    """Return a point's metric as text: its mean, or that it failed or does not fit."""
    if tried.error:
        return "does not fit" if tried.too_large else "failed"
    return marked(estimate_text(tried.estimate(metric)), FORESEES if tried.seers else "")


def undefined(tried: Sequence[Tried], metrics: Sequence[str]) -> str:
    """Return which metric no run defines, and what to do; "" if some run defines each."""
    runs = [run for each in tried for run in each.runs]
    for metric in metrics:
        if runs and all(math.isnan(run.value(metric)) for run in runs):
            return (
                f"{metric}: is undefined in every run, so nothing can be found; numbers of bounds "
                "need `bounds: true`, and docs/results.md says what the others need"
            )
    return ""


def write_page(page: Page) -> None:
    """Write `search.json`, `search.csv` and `search.md` into the grid's folder.

    Raises:
        OutputError: a file cannot be written.
    """
    folder = page.grid.folder
    write_csv(folder / "search.csv", page.columns(), page.rows())
    text = json.dumps(page.as_plain(), indent=1, allow_nan=False, default=str)
    write_whole(folder / "search.json", f"{text}\n")
    write_whole(folder / "search.md", page.as_markdown())
