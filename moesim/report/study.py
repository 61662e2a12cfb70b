"""The report of a validation study: its configurations, verdict, rankings and figures.

A study validates many configurations on one machine. It is given as plain rows, one per
configuration, as `results.json` keeps them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from moesim.report.chart import Chart, grid, save_charts, write_csv, write_whole
from moesim.report.embedded import embedded
from moesim.report.metrics import number
from moesim.report.panels import shared_legend
from moesim.report.style import BLACK, BLUE, GREEN, GREY
from moesim.report.tabular import Table, markdown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["configuration_table", "ranking_table", "study_errors", "verdict_table", "write_study"]

Row = Mapping[str, Any]

BAND_PCT: Final = 5.0
KINDS: Final = {
    "held-out": (BLUE, "o"),
    "calibration": ("#E69F00", "s"),
    "apart": (GREEN, "^"),
    "untestable": (GREY, "X"),
}


def write_study(
    folder: Path,
    rows: Sequence[Row],
    verdict: Mapping[str, Any],
    rankings: Sequence[Row],
    *,
    title: str,
    notes: Sequence[str],
    uncorrected: Mapping[str, Any] | None = None,
    plots: bool = True,
) -> None:
    """Write `results.csv`, `rankings.csv`, `study.md` and, with `plots`, `plots/`.

    `uncorrected` is the verdict without the numbers that were fitted to the calibration
    configurations.

    Raises:
        OutputError: a file cannot be written.
    """
    for name, table in (("results", rows), ("rankings", rankings)):
        columns = list(table[0]) if table else []
        write_csv(folder / f"{name}.csv", columns, ([row[c] for c in columns] for row in table))
    parts = [f"# {title}", "\n".join(f"- {note}" for note in notes)]
    parts.append(markdown(verdict_table(verdict)))
    # A fit could hide an error of the model; without it the error shows.
    if uncorrected is not None:
        parts.append(markdown(verdict_table(uncorrected, "Result with nothing fitted")))
    parts += [markdown(configuration_table(rows)), LEGEND]
    if rankings:
        parts.append(markdown(ranking_table(rankings)))
    if plots and rows:
        for chart in save_charts(folder / "plots", [partial(study_errors, rows)]):
            parts.append(f"{embedded(chart)}\n\n{chart.caption}")
    write_whole(folder / "study.md", "\n\n".join(parts) + "\n")


LEGEND: Final = (
    "Times are medians over the runs. Bias is (simulated - real) ÷ real of the whole workload. "
    "Step |error| is the median over steps. Spread is (p90 - p10) ÷ median of the whole over the "
    "runs. Computing and stalled are shares of the time in steps on the real machine."
)


def configuration_table(rows: Sequence[Row]) -> Table:
    """Return a table with one row per configuration; times in ms or s, errors and shares in %."""
    table = Table(
        "Configurations",
        [
            "configuration", "split", "copy (ms)", "computing (%)", "stalled (%)", "real (s)",
            "simulated (s)", "bias (%)", "bias, nothing fitted (%)", "step |error| (%)",
            "spread (%)", "decisions",
        ],
    )  # fmt: skip
    for row in rows:
        table.add(
            row["configuration"],
            kind_of(row),
            number(row["copy_ms"]),
            f"{100 * row['compute_share']:.0f}",
            f"{100 * row['stall_share']:.0f}",
            number(row["real_total_s"]),
            number(row["simulated_total_s"]),
            f"{row['total_time_bias_pct']:+.1f}",
            f"{row.get('uncorrected_bias_pct', row['total_time_bias_pct']):+.1f}",
            _percent(row["step_time_error_median_pct"]),
            f"{row['executor_spread_pct']:.1f}",
            "equal" if row["decisions_equal"] else "DIFFERENT",
        )
    return table


def verdict_table(verdict: Mapping[str, Any], title: str = "Result") -> Table:
    """Return each requirement of the study beside its result."""
    v = verdict
    finished = v["configurations"] - len(v["missing"])
    table = Table(title, ["quantity", "required", "result"])
    table.add("configurations", "≥ 24", f"{finished} of {v['configurations']} finished")
    table.add("held-out and testable", "", str(v["held_out"]))
    table.add("step time, held-out, median |error|", "≤ 5 %", _percent(v["step_error_median_pct"]))
    table.add("total, held-out, median |error|", "≤ 5 %", _percent(v["total_error_median_pct"]))
    worst = f" ({v['worst']})" if v["worst"] else ""
    table.add("total, held-out, worst", "≤ 15 %", _percent(v["total_error_worst_pct"]) + worst)
    table.add("decisions differ", "0", _names(v["decisions_differ"]))
    table.add("untestable (spread > 10 %)", "≤ a quarter", _names(v["untestable"]))
    table.add("computing over half of the time", "≥ a third", str(v["compute_bound"]))
    table.add("stalled 20-80 % of the time", "≥ a third", str(v["partly_stalled"]))
    table.add(
        "pairs of policies that differ by more than the spread, ranked the other way round",
        "0",
        f"{_names(v['rankings_reversed'])} of {v['rankings_resolved']}",
    )
    if v["missing"]:
        table.add("not finished", "0", _names(v["missing"]))
    return table


def ranking_table(rankings: Sequence[Row]) -> Table:
    """Return how much longer the second policy of each pair takes, real and simulated, in %."""
    table = Table("Policies on the same workload", ["pair", "real (%)", "simulated (%)", "ranked"])
    for pair in rankings:
        ranked = "alike" if pair["agrees"] else "REVERSED"
        table.add(
            f"{pair['first']} : {pair['second']}",
            f"{pair['real_pct']:+.1f}",
            f"{pair['simulated_pct']:+.1f}",
            # A difference that is smaller than the machine's spread ranks nothing.
            ranked if pair["resolved"] else "within the spread",
        )
    return table


def study_errors(rows: Sequence[Row]) -> Chart:
    """Draw simulated against real totals, and their errors by the stalled share of the time.

    There must be at least one row.
    """
    chart = grid(
        "study_errors",
        "Simulated against real, by configuration",
        f"One point per configuration. Left: simulated against real time of the whole workload "
        f"(median over {rows[0]['runs']} interleaved runs). Right: its error by the share of time "
        f"that the compute lane is stalled; bars are the executor's own spread. The band is "
        f"±{BAND_PCT:g} %. Untestable: a spread above 10 %. Device: {rows[0]['device']}.",
        ("configuration", "kind", "real_s", "simulated_s", "bias_pct", "stall_share", "spread_pct"),
        shape=(1, 2),
        height_in=2.9,
        widths=(1, 1.6),
    )
    totals, errors = chart.axes[0]
    for kind, (color, marker) in KINDS.items():
        chosen = [row for row in rows if kind_of(row) == kind]
        for row in chosen:
            chart.record(
                row["configuration"], kind, row["real_total_s"], row["simulated_total_s"],
                row["total_time_bias_pct"], row["stall_share"], row["executor_spread_pct"],
            )  # fmt: skip
        if chosen:
            _draw(totals, errors, chosen, color, marker, kind)
    totals.set_title("Whole workloads")
    errors.set_title("Errors")
    _identity(totals, rows)
    errors.axhspan(-BAND_PCT, BAND_PCT, color=BLACK, alpha=0.08, linewidth=0)
    errors.axhline(0, color="black", linewidth=0.9, linestyle=(0, (4, 2)))
    errors.set_xlabel("stalled (% of the time in steps)")
    errors.set_ylabel("error of the whole (%)")
    shared_legend(chart, wide=True)
    return chart


def kind_of(row: Row) -> str:
    """Return `held-out`, `calibration` or `apart`, or `untestable` for any of them."""
    # First, because an untestable configuration counts for no result.
    if not row["testable"]:
        return "untestable"
    if row["held_out"]:
        return "held-out"
    return "calibration" if row["calibrates"] else "apart"


def _draw(
    totals: Axes, errors: Axes, rows: Sequence[Row], color: str, marker: str, label: str
) -> None:
    look: dict[str, Any] = {"color": color, "marker": marker, "markersize": 4, "linestyle": ""}
    totals.plot([r["real_total_s"] for r in rows], [r["simulated_total_s"] for r in rows],
                label=label, **look)  # fmt: skip
    stalled = [100 * r["stall_share"] for r in rows]
    # Half of the spread to each side: its bar is as long as the spread.
    errors.errorbar(stalled, [r["total_time_bias_pct"] for r in rows],
                    yerr=[r["executor_spread_pct"] / 2 for r in rows], elinewidth=0.7,
                    capsize=1.5, **look)  # fmt: skip


def _identity(axes: Axes, rows: Sequence[Row]) -> None:
    values = [row[key] for row in rows for key in ("real_total_s", "simulated_total_s")]
    # From zero and with equal scales, so that the line of equality runs from corner to corner.
    low, high = 0.0, 1.08 * max(values)
    factor = BAND_PCT / 100
    axes.fill_between([low, high], [low, high * (1 - factor)], [low, high * (1 + factor)],
                      color=BLACK, alpha=0.08, linewidth=0)  # fmt: skip
    axes.plot([low, high], [low, high], color="black", linewidth=0.9, linestyle=(0, (4, 2)),
              label="equal")  # fmt: skip
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.set_box_aspect(1)
    axes.set_xlabel("real (s)")
    axes.set_ylabel("simulated (s)")


def _percent(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.1f}"


def _names(names: Sequence[str]) -> str:
    return f"{len(names)}: {', '.join(names)}" if names else "0"
