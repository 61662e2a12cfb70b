"""The tables of a comparison's page: every point, every run, and what differs between them."""

from __future__ import annotations

import math
from collections import Counter

from moesim.config.spelling import exact
from moesim.report.comparison import Comparison, Row
from moesim.report.limits import HIT_LIMITS, MIN_BOUND, limit
from moesim.report.metrics import SAVED, SPEEDS, Metric
from moesim.report.page.parts import DataCell, DataTable, number_cell
from moesim.report.runs import Run
from moesim.report.summary import limited_by
from moesim.report.tables import BOUND, means_table
from moesim.report.tabular import Cell, Table

__all__ = ["leaders", "points_table", "runs_table", "varied_table"]


def points_table(comparison: Comparison) -> DataTable:
    """Return all points with the cells of the terminal's tables, which are one for each setting."""
    metrics = {metric.title: metric for metric in (*comparison.headline, SAVED, BOUND)}
    titles = dict.fromkeys(metric.title for metric in comparison.headline)
    found: list[tuple[Row, dict[str, Cell]]] = []
    for setting in comparison.settings:
        within = comparison.within(setting)
        printed = means_table(setting, within, comparison.headline)
        titles |= dict.fromkeys(printed.columns[1:])
        for row, cells in zip(within, printed.rows, strict=True):
            found.append((row, dict(zip(printed.columns[1:], cells[1:], strict=True))))
    places = {id(row): place for place, row in enumerate(comparison.rows)}
    several = len(comparison.settings) > 1
    body = []
    for row, by_title in found:
        label = DataCell(row.label, href=f"run-{places[id(row)]}")
        where = [DataCell(row.setting, None, "text")] if several else []
        numbers = [_point_cell(row, metrics[title], by_title.get(title)) for title in titles]
        body.append([label, *where, number_cell(float(len(row.runs))), *numbers])
    heads = ["variant", *(["setting"] if several else []), "seeds", *titles]
    anchors = [f"point-{places[id(row)]}" for row, _ in found]
    return DataTable(
        "points-table", "Means of each point", heads, body, interactive=True, anchors=anchors
    )


def _point_cell(row: Row, metric: Metric, printed: Cell | None) -> DataCell:
    """Return a cell of the terminal with its number; empty where its setting has no such column."""
    if printed is None:
        return DataCell("")
    return DataCell(printed.text, _value(row, metric), printed.mark)


def _value(row: Row, metric: Metric) -> float | None:
    """Return the number that a cell is sorted by; None where it is undefined."""
    value = limit(row, HIT_LIMITS[MIN_BOUND]) if metric is BOUND else row.estimate(metric).mean
    return None if math.isnan(value) else value


def runs_table(comparison: Comparison) -> DataTable:
    """Return all runs with folder, seed, verdict and fingerprint."""
    heads = ("run", "point", "seed", "limited by", "fingerprint", "folder")
    body, anchors, number = [], [], 0
    for place, row in enumerate(comparison.rows):
        name = ", ".join(filter(None, (row.label, row.setting)))
        for of_row, run in enumerate(row.runs):
            number += 1
            body.append(_run_cells(run, number, DataCell(name, None, "text", f"point-{place}")))
            anchors.append(f"run-{place}" if not of_row else f"run-{place}-{of_row}")
    return DataTable("runs-table", "All runs", heads, body, interactive=True, anchors=anchors)


def _run_cells(run: Run, number: int, point: DataCell) -> list[DataCell]:
    seed = run.seed
    return [
        DataCell(str(number), number),
        point,
        DataCell("none" if seed is None else str(seed), seed),
        DataCell(limited_by(run) or "not computed", None, "text"),
        DataCell(str(run.manifest.get("fingerprint", ""))[:10], None, "text"),
        DataCell(str(run.path), None, "text"),
    ]


def varied_table(comparison: Comparison) -> DataTable:
    """Return the keys in which the runs differ, with their values."""
    body = []
    for key in dict.fromkeys((*comparison.policy_keys, *comparison.setting_keys)):
        values = dict.fromkeys(str(exact(row.values[key])) for row in comparison.rows)
        use = "names the variant" if key in comparison.policy_keys else "names the setting"
        body.append([DataCell(key), DataCell(use, None, "text"),
                     DataCell(", ".join(values), None, "text")])  # fmt: skip
    seeds = comparison.seeds
    body.append([DataCell("seed"), DataCell("repeats a point", None, "text"),
                 DataCell(", ".join(map(str, seeds)) or "none", None, "text")])  # fmt: skip
    return DataTable("varied", "What differs between the runs", ("key", "use", "values"), body)


def leaders(comparison: Comparison) -> list[str]:
    """Return for each metric which variant is best in how many settings, as the tables mark it."""
    if len(comparison.variants) < 2:
        return []
    if all(len(comparison.within(setting)) == 1 for setting in comparison.settings):
        return ["no setting has two variants, so none is called best"]
    speeds = {metric.key for metric in SPEEDS}
    printed = [means_table(setting, comparison.within(setting), comparison.headline)
               for setting in comparison.settings]  # fmt: skip
    told = []
    for metric in comparison.headline:
        if metric.key not in speeds:
            continue
        best = Counter(label for table in printed for label in _best(table, metric))
        told.append(f"best {metric.label}: {_counted(comparison, best)}")
    if comparison.equal_seeds:
        told.append(
            "seeds have no effect, so no intervals: another workload may give another order"
        )
    elif not comparison.has_intervals:
        told.append("one seed a point, so no intervals: another seed may give another order")
    return told


def _counted(comparison: Comparison, best: Counter[str]) -> str:
    """Return labels with the number of settings where each is marked."""
    total = len(comparison.settings)
    if not best:
        return "no difference to all others is resolved" + (" in any setting" * (total > 1))
    if total == 1:
        return ", ".join(best)
    return ", ".join(f"{label} in {count} of {total} settings"
                     for label, count in best.most_common())  # fmt: skip


def _best(printed: Table, metric: Metric) -> list[str]:
    place = printed.columns.index(metric.title)
    return [row[0].text for row in printed.rows if row[place].mark == "best"]
