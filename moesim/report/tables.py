"""The tables of a comparison: one row a variant, best and worst marked, and what it gains or
loses against the first variant of the sweep, losses beside wins."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from moesim.config.spelling import exact
from moesim.report.chart import Chart, write_csv
from moesim.report.comparison import Comparison, Row
from moesim.report.limits import HIT_LIMITS, MIN_BOUND, limit
from moesim.report.marks import FORESEES, marked
from moesim.report.metrics import HEADLINE, UNDEFINED, Metric
from moesim.report.runs import Run
from moesim.report.statistics import Estimate, difference, estimate
from moesim.report.tabular import Cell, Table, escaped, markdown

__all__ = ["as_json", "as_markdown", "tables", "write_csvs"]

BOUND: Final = Metric("min_hit_rate", "MIN bound", "% hits", 100)
NO_BOUND: Final = "no bound"
"""What stands for MIN in a row that prefetches."""
NAMED: Final = frozenset({"seed", "num_experts", "num_layers", "cache_slots_per_layer"})


def tables(comparison: Comparison) -> list[Table]:
    """For each setting the variants' means, then their differences to the first variant."""
    made = []
    for setting in comparison.settings:
        rows = comparison.within(setting)
        mark = comparison.mark(rows)
        made.append(_means(marked(setting, mark), rows, comparison.headline))
        if len(rows) > 1:
            made.append(_differences(marked(setting, mark), rows))
    return made


def as_markdown(
    name: str,
    comparison: Comparison,
    charts: Sequence[Chart],
    command: str,
    failures: Sequence[str],
) -> str:
    """The comparison as a document: the command, what to know, the tables, the figures."""
    parts = [f"# {escaped(marked(name, comparison.mark()))}", "Made by", f"```sh\n{command}\n```"]
    parts.append(escaped(comparison.caption(hits=True)))
    if comparison.notes:
        parts.append("\n".join(f"- {escaped(note)}" for note in comparison.notes))
    if failures:
        parts.append("## Points that failed")
        parts.append("\n".join(f"- {escaped(failure)}" for failure in failures))
    parts += ["## Results", LEGEND]
    parts += [markdown(table) for table in tables(comparison)]
    if charts:
        parts.append("## Figures")
        for chart in charts:
            parts.append(f"### {chart.title}\n\n![{chart.title}](plots/{chart.name}.png)")
            files = f"([SVG](plots/{chart.name}.svg), [data](plots/{chart.name}.csv))"
            parts.append(f"{escaped(chart.caption)} {files}")
    return "\n\n".join(parts) + "\n"


LEGEND: Final = (
    "Throughput counts output tokens. The best mean of a column is **bold**, the worst in "
    "_italics_; columns that have no better direction by themselves have neither. Variants "
    f"\\[{FORESEES}] are bounds and not ranked. MIN bounds hits only where nothing is prefetched. "
    "Differences are to the first variant that is ranked, relative or in percentage points, taken "
    "seed by seed; neither better nor worse where the 95 % interval includes zero."
)


SIGNS: Final = (
    "▲ best or better, ▼ worst or worse; no sign within the interval, for what has no better "
    f"direction by itself, and for variants that are no policies [{FORESEES}]"
)


def write_csvs(comparison: Comparison, folder: Path) -> None:
    """Write `compare.csv` (one row a point, seeds averaged) and `runs.csv` (one row a run).

    Raises:
        OutputError: a file cannot be written.
    """
    keys = _number_keys(comparison.runs)
    columns = ["variant", "setting", *comparison.policy_keys, *comparison.setting_keys]
    columns += ["knows_the_future", "routing", "slots_per_layer", "share_of_experts", "n", "seeds"]
    columns += [name for key in keys for name in (key, f"{key}_half_interval")]
    write_csv(
        folder / "compare.csv", columns, (_csv_row(comparison, r, keys) for r in comparison.rows)
    )
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


def as_json(comparison: Comparison) -> dict[str, Any]:
    """The table as plain data; null where undefined."""
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
                    key: {"mean": _null(made.mean), "half_interval": made.half, "n": made.n}
                    for key in keys
                    for made in [estimate(run.value(key) for run in row.runs)]
                },
            }
            for row in comparison.rows
        ],
    }


def _means(setting: str, rows: Sequence[Row], headline: Sequence[Metric]) -> Table:
    bounded = any(not math.isnan(limit(row, HIT_LIMITS[MIN_BOUND])) for row in rows)
    metrics = (*headline, BOUND) if bounded else headline
    table = Table(setting, ["", *(metric.title for metric in metrics)])
    columns = []
    for metric in metrics:
        made = [_estimate(row, metric) for row in rows]
        marks = _marks(made, [not row.knows_the_future for row in rows], metric)
        columns.append([Cell(metric.text(e), mark) for e, mark in zip(made, marks, strict=True)])
    for place, row in enumerate(rows):
        cells = [column[place] for column in columns]
        if bounded and row.prefetches:
            cells[-1] = Cell(NO_BOUND)
        table.add(row.label, *cells)
    return table


def _estimate(row: Row, metric: Metric) -> Estimate:
    if metric is BOUND:
        return estimate(HIT_LIMITS[MIN_BOUND](run) for run in row.runs)
    return row.estimate(metric)


def _marks(estimates: Sequence[Estimate], ranked: Sequence[bool], metric: Metric) -> list[str]:
    """Which means are best and worst of those that are ranked; none where all are equal."""
    shown = [one.defined and rank for one, rank in zip(estimates, ranked, strict=True)]
    known = [one.mean for one, show in zip(estimates, shown, strict=True) if show]
    if metric.better is None or len(known) < 2 or min(known) == max(known):
        return [""] * len(estimates)
    best, worst = (max, min) if metric.better == "higher" else (min, max)
    names = {best(known): "best", worst(known): "worst"}
    return [names.get(e.mean, "") if show else "" for e, show in zip(estimates, shown, strict=True)]


def _differences(setting: str, rows: Sequence[Row]) -> Table:
    base = next((row for row in rows if not row.knows_the_future), rows[0])
    title = f"Difference to {base.label}" + (f": {setting}" if setting else "")
    units = ("points" if metric.is_share else "%" for metric in HEADLINE)
    headers = [f"{metric.label} ({unit})" for metric, unit in zip(HEADLINE, units, strict=True)]
    table = Table(title, ["", *headers])
    for row in rows:
        if row is base:
            continue
        table.add(row.label, *(_difference(row, base, metric) for metric in HEADLINE))
    return table


def _difference(row: Row, base: Row, metric: Metric) -> Cell:
    """For example "+4.2 ± 0.8", worse; paired by seed, so that the workload cancels. Neither
    better nor worse where the interval includes zero."""
    others = {run.seed: metric.of(run) for run in base.runs}
    pairs = [(metric.of(run), others[run.seed]) for run in row.runs if run.seed in others]
    made = difference(
        [value for value, _ in pairs], [value for _, value in pairs], relative=not metric.is_share
    )
    if not made.defined:
        return Cell(UNDEFINED)
    if made.mean == 0 and not made.half:
        return Cell("same")
    scale = 1 if metric.is_share else 100
    half = "" if made.half is None else f" ± {made.half * scale:.1f}"
    resolved = made.half is None or abs(made.mean) > made.half
    ranked = metric.better is not None and not (row.knows_the_future or base.knows_the_future)
    better = (made.mean > 0) == (metric.better == "higher")
    mark = ("better" if better else "worse") if resolved and ranked else ""
    return Cell(f"{made.mean * scale:+.1f}{half}", mark)


def _csv_row(comparison: Comparison, row: Row, keys: Iterable[str]) -> list[Any]:
    made = [estimate(run.value(key) for run in row.runs) for key in keys]
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
        *(value for one in made for value in (one.mean, one.half)),
    ]


def _number_keys(runs: Sequence[Run]) -> list[str]:
    """Keys of the summaries that hold a number in some run, in the summary's order."""
    keys = dict.fromkeys(key for run in runs for key in run.summary if key not in NAMED)
    return [key for key in keys if any(not math.isnan(run.value(key)) for run in runs)]


def _scalar(value: Any) -> bool:
    return not isinstance(value, list | dict)


def _null(value: float) -> float | None:
    return None if math.isnan(value) else value


def _relative(path: Path, folder: Path) -> str:
    try:
        return path.resolve().relative_to(folder.resolve()).as_posix()
    except ValueError:
        return path.as_posix()
