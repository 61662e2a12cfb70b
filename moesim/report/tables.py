"""The tables of a comparison: each variant's means, and its differences to the first variant.

The same rows are written for people (Markdown), for spreadsheets (CSV) and for scripts (JSON).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from moesim.config.spelling import exact
from moesim.report.chart import Chart, write_csv
from moesim.report.comparison import Comparison, Row
from moesim.report.embedded import embedded, other_files
from moesim.report.limits import HIT_LIMITS, MIN_BOUND, limit
from moesim.report.marks import FORESEES, marked
from moesim.report.metrics import SAVED, UNDEFINED, Metric
from moesim.report.runs import Run
from moesim.report.statistics import Estimate, difference
from moesim.report.tabular import Cell, Table, escaped, markdown

__all__ = ["SPEEDS", "as_json", "as_markdown", "difference_cell", "differences_table"]
__all__ += ["legend", "means_table", "paired_change", "signs", "tables", "write_csvs"]

BOUND: Final = Metric("min_hit_rate", "MIN bound", "% hits", 100)
NO_BOUND: Final = "no bound"
"""The cell of the MIN bound in a row that it does not bound, for example one that prefetches."""
NO_PREFETCH: Final = "no prefetch"
"""The cell of the time that prefetching saves in a row that prefetches nothing."""
SPEEDS: Final = (
    "Decode speed is what one user sees: tokens after the first by the time from first to last, "
    "mean of requests. Throughput counts the output tokens of all users, and its time has queueing "
    "and prefill in it. Queued is the wait for the first step."
)
# These keys describe a run and measure nothing, so a mean over seeds would say nothing.
_DESCRIPTIVE: Final = frozenset({"seed", "num_experts", "num_layers", "cache_slots_per_layer"})


def tables(comparison: Comparison) -> list[Table]:
    """Return two tables for each setting: the variants' means, then their differences.

    Differences are to the first variant that does not know the future.
    """
    result = []
    for setting in comparison.settings:
        rows = comparison.within(setting)
        mark = comparison.mark(rows)
        result.append(means_table(marked(setting, mark), rows, comparison.headline))
        if len(rows) > 1:
            result.append(differences_table(marked(setting, mark), rows, comparison.metrics))
    return result


def as_markdown(
    name: str,
    comparison: Comparison,
    charts: Sequence[Chart],
    command: str,
    failures: Sequence[str],
) -> str:
    """Return the comparison as Markdown: the command, the notes, the tables, the figures.

    `failures` has one line for each point of the sweep that did not finish.
    """
    title = f"# {escaped(marked(name, comparison.mark()))}"
    parts = [title, "The command of this comparison:", f"```sh\n{command}\n```"]
    parts.append(escaped(comparison.caption(hits=True)))
    if comparison.notes:
        parts.append("\n".join(f"- {escaped(note)}" for note in comparison.notes))
    if failures:
        parts.append("## Points that failed")
        parts.append("\n".join(f"- {escaped(failure)}" for failure in failures))
    parts += ["## Results", legend(comparison)]
    parts += [markdown(table) for table in tables(comparison)]
    if charts:
        parts.append("## Figures")
        for chart in charts:
            parts.append(f"### {chart.title}\n\n{embedded(chart)}")
            parts.append(f"{escaped(chart.caption)} ({other_files(chart)})")
    return "\n\n".join(parts) + "\n"


def legend(
    comparison: Comparison,
    *,
    best: str = "**bold**",
    worst: str = "in _italics_",
    column: str = "a column",
    baseline: str = "the first ranked variant",
) -> str:
    """Return what the marks of the tables mean, as Markdown unless told otherwise.

    `column` says among which numbers the best is marked, and `baseline` what differences are to.
    """
    marks = (
        f"The best mean of {column} is {best} and the worst is {worst}, if the difference to "
        "each other ranked variant has a 95 % interval that excludes zero."
        if comparison.has_intervals
        else f"The best value of {column} is {best}. {_no_interval(comparison)}, and differences "
        "are neither called better nor worse."
    )
    resolved = (
        " A difference whose 95 % interval includes zero is neither better nor worse."
        if comparison.has_intervals
        else ""
    )
    return (
        f"{SPEEDS} {marks} A column where neither more nor less is always "
        f"better has no marks. Variants \\[{FORESEES}] are bounds and are not ranked. The MIN "
        "bound holds only for variants that prefetch nothing. Saved by prefetch is the time in "
        "steps that the same run without prefetch takes longer, as a share of its time; it is "
        f"negative where prefetching costs time. Differences are to {baseline}, seed by seed: in "
        "percentage points for shares, relative otherwise."
        f"{resolved}"
    )


def _no_interval(comparison: Comparison) -> str:
    if comparison.equal_seeds:
        return "Seeds without effect: no interval, so another workload may give another order"
    return "One seed: no interval, so another seed may give another order"


def signs(comparison: Comparison) -> str:
    """Return what the signs of the printed tables mean."""
    if comparison.has_intervals:
        meaning = (
            "▲ best or better, ▼ worst or worse, if the 95 % interval of the difference excludes "
            "zero; no sign"
        )
    else:
        why = "seeds without effect" if comparison.equal_seeds else "one seed"
        meaning = f"▲ best value of its column ({why}: no interval); no sign"
    return (
        f"{meaning} in columns where neither more nor less is always better, and for variants "
        f"that are bounds, not policies [{FORESEES}]"
    )


def write_csvs(comparison: Comparison, folder: Path) -> None:
    """Write `compare.csv` (one row per point, seeds averaged) and `runs.csv` (one row per run).

    The columns are keys of `summary.json`, with its units. An undefined number is an empty field.

    Raises:
        OutputError: a file cannot be written.
    """
    write_csv(folder / "compare.csv", *points_table(comparison))
    # Runs of several versions may be compared, so no single summary has all columns.
    scalars = list(
        dict.fromkeys(k for r in comparison.runs for k, v in r.summary.items() if _scalar(v))
    )
    write_csv(
        folder / "runs.csv",
        ["run", "variant", "setting", *scalars],
        (
            [_relative(run.path, folder), row.variant, row.setting,
             *(run.summary.get(key) for key in scalars)]
            for row in comparison.rows
            for run in row.runs
        ),
    )  # fmt: skip


def points_table(comparison: Comparison) -> tuple[list[str], list[list[Any]]]:
    """Return the columns and the rows of `compare.csv`: one row per point, seeds averaged."""
    keys = _number_keys(comparison.runs)
    columns = ["variant", "setting", *comparison.policy_keys, *comparison.setting_keys]
    columns += ["knows_the_future", "routing", "slots_per_layer", "share_of_experts", "n", "seeds"]
    columns += [name for key in keys for name in (key, f"{key}_half_interval")]
    return columns, [_csv_row(comparison, row, keys) for row in comparison.rows]


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Return notes and rows as plain data, ready for JSON; undefined numbers are None."""
    keys = _number_keys(comparison.runs)
    return {
        "notes": list(comparison.notes),
        "rows": [
            {
                "variant": row.variant,
                "setting": row.setting,
                "values": dict(row.values),
                "knows_the_future": row.knows_the_future,
                "routing": comparison.mark([row]) or None,
                "seeds": list(row.seeds),
                "runs": [str(run.path) for run in row.runs],
                "slots_per_layer": _null(row.slots_per_layer),
                "metrics": {
                    key: {"mean": _null(value.mean), "half_interval": value.half, "n": value.n}
                    for key in keys
                    for value in [row.over_seeds(partial(Run.value, key=key))]
                },
            }
            for row in comparison.rows
        ],
    }


def means_table(setting: str, rows: Sequence[Row], headline: Sequence[Metric]) -> Table:
    """Return the means of rows of one setting, with the best and worst of each column marked."""
    # Without bounds (`bounds: false`), a column of "undefined" would say nothing.
    bounded = any(not math.isnan(limit(row, HIT_LIMITS[MIN_BOUND])) for row in rows)
    # Each row is measured against its own run without prefetch, so differences say nothing.
    saved = any(not math.isnan(row.estimate(SAVED).mean) for row in rows)
    metrics = (*headline, *([SAVED] if saved else []), *([BOUND] if bounded else []))
    table = Table(setting, ["", *(metric.title for metric in metrics)])
    columns = []
    for metric in metrics:
        means = [_estimate(row, metric) for row in rows]
        marks = _marks(rows, metric)
        columns.append([Cell(metric.text(e), mark) for e, mark in zip(means, marks, strict=True)])
    for place, row in enumerate(rows):
        cells = [column[place] for column in columns]
        if bounded and math.isnan(limit(row, HIT_LIMITS[MIN_BOUND])):
            cells[-1] = Cell(NO_BOUND)
        if saved and not row.prefetches:
            cells[len(headline)] = Cell(NO_PREFETCH)
        table.add(row.label, *cells)
    return table


def _estimate(row: Row, metric: Metric) -> Estimate:
    if metric is BOUND:
        return row.over_seeds(HIT_LIMITS[MIN_BOUND])
    return row.estimate(metric)


def _marks(rows: Sequence[Row], metric: Metric) -> list[str]:
    """Return "best", "worst" or "" for the mean of each row.

    With several seeds, the difference to each other ranked row must be resolved. With one seed, or
    seeds without effect, there is no interval, and only the best value is marked.
    """
    if metric.better is None:
        return [""] * len(rows)
    means = [math.nan if row.knows_the_future else row.estimate(metric).mean for row in rows]
    ranked = [place for place, mean in enumerate(means) if mean == mean]
    values = {means[place] for place in ranked}
    if len(values) < 2:
        return [""] * len(rows)
    best, worst = (max, min) if metric.better == "higher" else (min, max)
    names = {best(values): "best"}
    several = any(row.has_interval for row in rows)
    if several:
        names[worst(values)] = "worst"

    def leads(place: int) -> bool:
        others = [other for other in ranked if means[other] != means[place]]  # ties share a mark
        # The later row to the earlier, as in the table of differences.
        pairs = [sorted((place, other)) for other in others]
        return all(_resolved(rows[later], rows[earlier], metric) for earlier, later in pairs)

    marks = [names.get(mean, "") for mean in means]
    return [
        mark if mark and (not several or leads(place)) else "" for place, mark in enumerate(marks)
    ]


def _resolved(row: Row, other: Row, metric: Metric) -> bool:
    """Return whether the difference of two rows has an interval that excludes zero."""
    change = paired_change(row, other, metric)
    return change.half is not None and abs(change.mean) > change.half


def differences_table(setting: str, rows: Sequence[Row], metrics: Sequence[Metric]) -> Table:
    """Return the differences of rows of one setting to the first that is ranked."""
    # A bound as baseline would show every policy as a loss.
    base = next((row for row in rows if not row.knows_the_future), rows[0])
    title = f"Difference to {base.label}" + (f": {setting}" if setting else "")
    units = ("points" if metric.is_share else "%" for metric in metrics)
    headers = [f"{metric.label} ({unit})" for metric, unit in zip(metrics, units, strict=True)]
    table = Table(title, ["", *headers])
    for row in rows:
        if row is base:
            continue
        table.add(row.label, *(difference_cell(row, base, metric) for metric in metrics))
    return table


def difference_cell(row: Row, base: Row, metric: Metric) -> Cell:
    """Return a cell like "+4.2 ± 0.8", marked "better" or "worse" where zero is excluded."""
    change = paired_change(row, base, metric)
    if not change.defined:
        return Cell(UNDEFINED)
    if change.mean == 0 and not change.half:
        return Cell("same")
    scale = 1 if metric.is_share else 100  # shares are in percent already
    half = "" if change.half is None else f" ± {change.half * scale:.1f}"
    ranked = metric.better is not None and not (row.knows_the_future or base.knows_the_future)
    better = (change.mean > 0) == (metric.better == "higher")
    mark = ("better" if better else "worse") if ranked and _resolved(row, base, metric) else ""
    return Cell(f"{change.mean * scale:+.1f}{half}", mark)


def paired_change(row: Row, base: Row, metric: Metric) -> Estimate:
    """Return the difference of a metric to another row: in points for shares, else relative.

    Runs are paired by seed, so that the workload cancels.
    """
    others = {run.seed: metric.of(run) for run in base.runs}
    pairs = [(metric.of(run), others[run.seed]) for run in row.runs if run.seed in others]
    change = difference(
        [value for value, _ in pairs], [value for _, value in pairs], relative=not metric.is_share
    )
    return replace(change, half=None) if row.repeats and base.repeats else change


def _csv_row(comparison: Comparison, row: Row, keys: Iterable[str]) -> list[Any]:
    estimates = [row.over_seeds(partial(Run.value, key=key)) for key in keys]
    return [
        row.variant,
        row.setting,
        *(exact(row.values[key]) for key in (*comparison.policy_keys, *comparison.setting_keys)),
        "yes" if row.knows_the_future else "no",
        comparison.mark([row]) or "recorded",
        row.slots_per_layer,
        row.slots_per_layer / row.mean("num_experts"),
        len(row.runs),
        " ".join(map(str, row.seeds)),
        *(value for e in estimates for value in (e.mean, e.half)),
    ]


def _number_keys(runs: Sequence[Run]) -> list[str]:
    """Return the keys that hold a number in any run's summary, in the summary's order."""
    keys = dict.fromkeys(key for run in runs for key in run.summary if key not in _DESCRIPTIVE)
    return [key for key in keys if any(not math.isnan(run.value(key)) for run in runs)]


def _scalar(value: Any) -> bool:
    return not isinstance(value, list | dict)


def _null(value: float) -> float | None:
    return None if math.isnan(value) else value


def _relative(path: Path, folder: Path) -> str:
    # Relative, so that a comparison and its runs can be moved together.
    try:
        return path.resolve().relative_to(folder.resolve()).as_posix()
    except ValueError:
        return path.as_posix()
