"""The report of a validation: tables and figures of simulated against measured times.

It reads the folder that `moesim validate` writes, `summary.json` and the Parquet tables. So it can
be made again without a machine to measure on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from moesim.errors import UsageError
from moesim.files import as_path
from moesim.inputs import read_json, read_table
from moesim.report.chart import Chart, grid, mark_undefined, save_charts
from moesim.report.distribution import latency_scale
from moesim.report.marks import mark_of, marked
from moesim.report.metrics import number
from moesim.report.panels import shared_legend
from moesim.report.runs import engine_in_words
from moesim.report.style import BLACK, BLUE, GREEN, ORANGE
from moesim.report.tabular import Table

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = [
    "Validated",
    "load_validation",
    "plots_for_validation",
    "predicted_measured",
    "residuals",
    "validation_tables",
]

TABLES: Final = ("steps", "events", "requests", "runs")
DECODE: Final = ("decode only", BLUE, "o")
PREFILL: Final = ("with prompt tokens", ORANGE, "s")
EVENTS: Final = ("layer events", GREEN, "v")
BAND_PCT: Final = 5.0  # the error that docs/validation.md sets as the goal of a median
MOST_POINTS: Final = 3000
_UNMEASURED: Final = {"assumed": ": from the hardware profile; no calibration measures them"}
DURATIONS: Final = {
    "step_time": "step",
    "event_time": "layer event",
    "ttft": "time to first token",
    "e2e": "end to end",
}

Columns = Mapping[str, "NDArray[Any]"]


@dataclass(frozen=True, slots=True)
class Validated:
    """The folder of one validation: its summary, and its tables by name, as arrays by column."""

    path: Path
    summary: Mapping[str, Any]
    tables: Mapping[str, Columns]


def load_validation(folder: str | Path) -> Validated:
    """Read the folder of a validation.

    Raises:
        UsageError: `folder` is not the folder of a validation.
    """
    import numpy as np

    folder = as_path(folder)
    try:
        summary = read_json(folder / "summary.json")
        tables = {
            name: {
                column: np.asarray(values)
                for column, values in read_table(folder / f"{name}.parquet").to_pydict().items()
            }
            for name in TABLES
        }
        summary["executor_spread_pct"]  # runs have a summary, too, but without this key
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{folder} is not the folder of a validation: {error}") from None
    return Validated(folder, summary, tables)


def validation_tables(summary: Mapping[str, Any]) -> list[Table]:
    """Return the errors of each kind of duration, then what helps to judge them.

    Times are in ms. Errors are (simulated - real) ÷ real, in %.
    """
    return [_errors(summary), _context(summary)]


def _errors(summary: Mapping[str, Any]) -> Table:
    errors = Table(
        marked("simulated against real", _mark(summary)),
        ["", "rows", "real (ms)", "simulated (ms)", "bias (%)", "|error| (%)", "|error| p90 (%)"],
    )
    for key, label in DURATIONS.items():
        errors.add(
            f"{label}, median",
            str(summary[f"{key}_rows"]),
            _shown(summary[f"{key}_real_median_ms"]),
            _shown(summary[f"{key}_simulated_median_ms"]),
            _shown(summary[f"{key}_bias_median_pct"], sign=True),
            _shown(summary[f"{key}_error_median_pct"]),
            _shown(summary[f"{key}_error_p90_pct"]),
        )
    errors.add(
        "whole workload",
        str(summary["runs"]),
        _shown(1000 * summary["real_total_s"]),
        _shown(1000 * summary["simulated_total_s"]),
        _shown(summary["total_time_bias_pct"], sign=True),
        _shown(summary["total_time_error_pct"]),
        "",
    )
    return errors


def _context(summary: Mapping[str, Any]) -> Table:
    context = Table("to judge the errors")
    spread = summary["executor_spread_pct"]
    # An error below the machine's own spread cannot be told from noise.
    untestable = (
        "" if summary["testable"] else ": too wide, so this workload is untestable on this machine"
    )
    runs = (
        f"{summary['runs']} runs" if summary["runs"] > 1 else "one run has no spread; use --runs 5"
    )
    context.add("decisions", _decisions(summary))
    if engine := engine_in_words(summary):  # older summaries have none
        context.add("simulated engine", engine)
    for key, what in (("cpu_cost_kind", "the CPU"), ("disk_cost_kind", "the disk")):
        # Older summaries have no such key.
        if (kind := summary.get(key)) is not None:
            context.add(f"costs of {what}", f"{kind}{_UNMEASURED.get(kind, '')}")
    context.add("executor's spread", f"{spread:.1f} % of the whole ({runs}){untestable}")
    context.add(
        "time in steps",
        f"{summary['compute_share']:.0%} computing, {summary['stall_share']:.0%} stalled "
        f"(simulated: {summary['simulated_stall_share']:.0%} stalled)",
    )
    # Equal decisions may still give other late hits: they depend on when a copy ends.
    context.add(
        "late hits",
        f"{_shown(summary['late_hits'])} real, {summary['simulated_late_hits']} simulated "
        "(they depend on times, not on decisions)",
    )
    return context


def _decisions(summary: Mapping[str, Any]) -> str:
    if summary["decisions_equal"]:
        return "equal"
    if not summary.get("decisions_timed"):
        return "DIFFERENT"
    by = summary.get("decisions_timed_by", summary["placement_policy"])
    return f"different: {by} decides by which copies are under way"


def plots_for_validation(folder: str | Path) -> Path:
    """Draw `predicted_measured` and `residuals` into the folder's `plots`, and return that path.

    Raises:
        UsageError: `folder` is not the folder of a validation.
        OutputError: the plots cannot be written.
    """
    validated = load_validation(folder)
    plots = validated.path / "plots"
    save_charts(plots, [partial(chart, validated) for chart in (predicted_measured, residuals)])
    return plots


def predicted_measured(validated: Validated) -> Chart:
    """Draw simulated against real durations, with the line on which they are equal."""
    chart = grid(
        "predicted_measured",
        "Simulated against measured times",
        f"Simulated against real duration of every step, layer event and request (median over the "
        f"runs; bars: p10 to p90). On the dashed line both are equal; the band is "
        f"±{BAND_PCT:g} %. {_caption(validated.summary)}",
        ("panel", "group", "real_ns", "real_p10_ns", "real_p90_ns", "simulated_ns"),
        shape=(1, 3),
        height_in=2.5,
        note=_note(validated),
    )
    steps, events, requests = (validated.tables[name] for name in TABLES[:3])
    prompts = steps["prefill_tokens"] > 0
    first = requests["duration"] == "ttft"
    panels = {
        "steps": [(DECODE, steps, ~prompts), (PREFILL, steps, prompts)],
        "layer events": [(EVENTS, events, events["tokens"] > 0)],
        "requests": [
            (("time to first token", "#AA4499", "^"), requests, first),
            (("end to end", "#332288", "D"), requests, ~first),
        ],
    }
    for axes, (title, groups) in zip(chart.axes[0], panels.items(), strict=True):
        axes.set_title(title.capitalize())
        _against(chart, axes, title, groups)
    shared_legend(chart, wide=True)
    return chart


def _note(validated: Validated) -> str:
    """Return how many durations a figure compares."""
    counts = [len(next(iter(validated.tables[name].values()))) for name in TABLES[:2]]
    steps, events = counts
    return f"n = {steps:,} steps, {events:,} layer events; simulated beside measured"


def residuals(validated: Validated) -> Chart:
    """Draw the signed errors of steps and layer events against batch size and misses."""
    chart = grid(
        "residuals",
        "Errors by batch size and by misses",
        f"Error of the simulated time, (simulated - real) ÷ real, of every step (above) and layer "
        f"event (below), by its tokens (left) and misses (right). The black line joins medians of "
        f"groups. Above zero the simulated time is too long; the band is ±{BAND_PCT:g} %. "
        f"{_caption(validated.summary)}",
        ("panel", "by", "value", "error_pct"),
        shape=(2, 2),
        height_in=4.0,
        note=_note(validated),
        sharey="row",
    )
    import numpy as np

    labels = ("tokens", "misses")
    for row, name in zip(chart.axes, ("steps", "events"), strict=True):
        table = validated.tables[name]
        decoding = (
            table["prefill_tokens"] == 0 if name == "steps" else np.zeros(len(table["step"]), bool)
        )
        others = PREFILL if name == "steps" else EVENTS
        chosen = _thinned(len(table["step"]))
        for axes, key in zip(row, labels, strict=True):
            axes.set_title("Steps" if name == "steps" else "Layer events")
            _errors_by(chart, axes, f"{name} by {key}", (table, key), (decoding, others), chosen)
            axes.set_xlabel(f"{key} of the {'step' if name == 'steps' else 'layer event'}")
        _center_on_zero(row[0], table["error_pct"])
        row[0].set_ylabel("error (%)")
    shared_legend(chart, wide=True)
    return chart


def _against(chart: Chart, axes: Axes, panel: str, groups: list[Any]) -> None:
    import numpy as np

    every = [
        table[name][chosen] for _, table, chosen in groups for name in ("real_ns", "simulated_ns")
    ]
    pooled = np.concatenate(every)
    pooled = pooled[pooled > 0]
    if not len(pooled):
        mark_undefined(axes, "nothing was timed")
        return
    scale, unit = latency_scale(float(pooled.max()))
    for (label, color, marker), table, chosen in groups:
        if not chosen.any():
            continue
        drawn = np.flatnonzero(chosen)[_thinned(int(chosen.sum()))]
        real, low, high, simulated = (
            table[name][drawn] / scale
            for name in ("real_ns", "real_p10_ns", "real_p90_ns", "simulated_ns")
        )
        # Rasterized, since thousands of points as shapes would make SVG files slow to show.
        axes.hlines(simulated, low, high, color=color, alpha=0.25, linewidth=0.6, rasterized=True)
        axes.plot(real, simulated, marker, color=color, markersize=2.6, alpha=0.55,
                  markeredgewidth=0, label=label, rasterized=True)  # fmt: skip
        for values in zip(real, low, high, simulated, strict=True):
            chart.record(panel, label, *(float(value) * scale for value in values))
    ends = np.array([pooled.min() / 1.15, pooled.max() * 1.15]) / scale
    factor = BAND_PCT / 100
    axes.fill_between(ends, ends * (1 - factor), ends * (1 + factor), color=BLACK, alpha=0.08,
                      linewidth=0)  # fmt: skip
    axes.plot(ends, ends, color="black", linewidth=0.9, linestyle=(0, (4, 2)), label="equal")
    _square(axes, float(ends[0]), float(ends[1]))
    axes.set_xlabel(f"real ({unit})")
    axes.set_ylabel(f"simulated ({unit})")


def _square(axes: Axes, low: float, high: float) -> None:
    """Give both axes the same range and scale; logarithmic if the values are far apart."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

    far = high > 8 * low
    # Over few decades, ticks at powers of ten alone would leave an axis with one number.
    subs = (1.0, 2.0, 5.0) if high < 100 * low else (1.0,)
    for axis in (axes.xaxis, axes.yaxis):
        if far:
            axis.axes.set(**{f"{axis.axis_name}scale": "log"})
            axis.set_major_locator(LogLocator(subs=subs, numticks=8))
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())
        else:
            axis.set_major_locator(MaxNLocator(5))
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.set_box_aspect(1)


def _errors_by(
    chart: Chart,
    axes: Axes,
    panel: str,
    what: tuple[Columns, str],
    groups: tuple[Any, tuple[str, str, str]],
    chosen: NDArray[np.int64],
) -> None:
    import numpy as np

    table, key = what
    decoding, others = groups
    values, errors = table[key].astype(np.float64), table["error_pct"]
    axes.axhspan(-BAND_PCT, BAND_PCT, color=BLACK, alpha=0.08, linewidth=0)
    axes.axhline(0, color="black", linewidth=0.9, linestyle=(0, (4, 2)))
    for (label, color, marker), member in ((DECODE, decoding), (others, ~decoding)):
        drawn = chosen[member[chosen] & np.isfinite(errors[chosen])]
        if not len(drawn):
            continue
        axes.plot(values[drawn], errors[drawn], marker, color=color, markersize=2.6, alpha=0.45,
                  markeredgewidth=0, label=label, rasterized=True)  # fmt: skip
        for place in drawn.tolist():
            chart.record(panel, label, float(values[place]), float(errors[place]))
    finite = np.isfinite(errors)
    if not finite.any():
        mark_undefined(axes, "nothing was timed")
        return
    # Of all rows, not only of those drawn.
    middle = _medians(values[finite], errors[finite])
    axes.plot(*middle, color="black", linewidth=1.1, marker=".", markersize=4, label="median")


def _center_on_zero(axes: Axes, errors: Floats) -> None:
    """Let the axis reach as far up as down, so that the sign shows; 1 % may lie outside."""
    import numpy as np

    finite = errors[np.isfinite(errors)]
    if len(finite):
        reach = 1.15 * max(*np.abs(np.percentile(finite, (0.5, 99.5))), BAND_PCT)
        axes.set_ylim(-reach, reach)


def _medians(values: Floats, errors: Floats) -> tuple[list[float], list[float]]:
    """Return the median value and error of each group of `values`.

    Groups are of equal value, or at most 13 of about equal size.
    """
    import numpy as np

    edges = np.unique(values)
    if len(edges) > 12:
        edges = np.unique(np.percentile(values, np.linspace(0, 100, 13)))
    group = np.searchsorted(edges, values, side="right")
    numbers = np.unique(group).tolist()
    return (
        [float(np.median(values[group == g])) for g in numbers],
        [float(np.median(errors[group == g])) for g in numbers],
    )


def _thinned(count: int) -> NDArray[np.int64]:
    """Return the places of at most `MOST_POINTS` of `count` rows, evenly spread."""
    import numpy as np

    return np.unique(np.linspace(0, count - 1, min(count, MOST_POINTS)).astype(np.int64))


def _mark(summary: Mapping[str, Any]) -> str:
    return mark_of(summary.get("routing"), summary.get("sizes"))


def _caption(summary: Mapping[str, Any]) -> str:
    mark = _mark(summary)
    warning = f"{mark.upper()}. " if mark else ""
    engine = engine_in_words(summary)
    simulated = f" Simulated engine: {engine}." if engine else ""
    return (
        f"{warning}{summary['name']} on {summary['device']}: {summary['runs']} runs, their spread "
        f"{summary['executor_spread_pct']:.1f} % of the whole.{simulated}"
    )


def _shown(value: float | None, *, sign: bool = False) -> str:
    if value is None:
        return "undefined"
    text = number(abs(round(value, 2)) if sign else round(value, 3))
    return ("-" if value < 0 else "+") + text if sign else text
