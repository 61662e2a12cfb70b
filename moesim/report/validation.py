"""What a validation came to: tables, and figures of the simulated against the measured times.

Reads the folder that `moesim validate` writes (`summary.json` and the tables beside it), so that
it can be drawn again without a machine to measure on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from moesim.errors import UsageError
from moesim.report.chart import Chart, grid, mark_undefined, save_charts
from moesim.report.distribution import latency_scale
from moesim.report.marks import mark_of, marked
from moesim.report.metrics import number
from moesim.report.panels import shared_legend
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
DECODE: Final = ("decode only", "#0072B2", "o")
PREFILL: Final = ("with prompt tokens", "#D55E00", "s")
EVENTS: Final = ("layer events", "#009E73", "v")
BAND_PCT: Final = 5.0
MOST_POINTS: Final = 3000
DURATIONS: Final = {
    "step_time": "step",
    "event_time": "layer event",
    "ttft": "time to first token",
    "e2e": "end to end",
}

Columns = Mapping[str, "NDArray[Any]"]


@dataclass(frozen=True, slots=True)
class Validated:
    """The folder of one validation: its summary, and its tables as columns."""

    path: Path
    summary: Mapping[str, Any]
    tables: Mapping[str, Columns]


def load_validation(folder: str | Path) -> Validated:
    """Read a validation back.

    Raises:
        UsageError: `folder` is none.
    """
    import numpy as np
    import pyarrow.parquet as pq

    folder = Path(folder)
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        tables = {
            name: {
                column: np.asarray(values)
                for column, values in pq.read_table(folder / f"{name}.parquet").to_pydict().items()
            }
            for name in TABLES
        }
        summary["executor_spread_pct"]
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"{folder} is not the folder of a validation: {error}") from None
    return Validated(folder, summary, tables)


def validation_tables(summary: Mapping[str, Any]) -> list[Table]:
    """Errors by what was timed, then what they stand beside."""
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
    beside = Table("beside it")
    spread = summary["executor_spread_pct"]
    untestable = "" if summary["testable"] else ": too wide, this workload is untestable here"
    runs = f"{summary['runs']} runs" if summary["runs"] > 1 else "a single run says nothing"
    beside.add("decisions", "equal" if summary["decisions_equal"] else "DIFFERENT")
    beside.add("executor's spread", f"{spread:.1f} % of the whole ({runs}){untestable}")
    beside.add(
        "time in steps",
        f"{summary['compute_share']:.0%} computing, {summary['stall_share']:.0%} stalled "
        f"(simulated: {summary['simulated_stall_share']:.0%} stalled)",
    )
    beside.add(
        "late hits",
        f"{_shown(summary['late_hits'])} real, {summary['simulated_late_hits']} simulated "
        "(a matter of time, not of decisions)",
    )
    return [errors, beside]


def plots_for_validation(folder: str | Path) -> Path:
    """Draw `predicted_measured` and `residuals` into the folder's `plots`, which is returned.

    Raises:
        UsageError: `folder` is no validation.
        OutputError: the plots cannot be written.
    """
    validated = load_validation(folder)
    plots = validated.path / "plots"
    save_charts(plots, [partial(chart, validated) for chart in (predicted_measured, residuals)])
    return plots


def predicted_measured(validated: Validated) -> Chart:
    """Simulated against real durations, with the line on which they are equal."""
    chart = grid(
        "predicted_measured",
        "Simulated against measured times",
        f"Every step, layer event and request: simulated against real duration (median over the "
        f"runs; the bars reach from p10 to p90). On the dashed line both are equal, the band is "
        f"±{BAND_PCT:g} %. {_caption(validated.summary)}",
        ("panel", "group", "real_ns", "real_p10_ns", "real_p90_ns", "simulated_ns"),
        shape=(1, 3),
        height_in=2.5,
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


def residuals(validated: Validated) -> Chart:
    """Signed errors of steps and layer events against batch size and misses."""
    chart = grid(
        "residuals",
        "Errors by batch size and by misses",
        f"Error of the simulated time, (simulated - real) ÷ real, of every step (above) and layer "
        f"event (below) by its tokens and by its misses; the black line joins medians of groups. "
        f"Above zero the simulator is too slow; the band is ±{BAND_PCT:g} %. "
        f"{_caption(validated.summary)}",
        ("panel", "by", "value", "error_pct"),
        shape=(2, 2),
        height_in=4.0,
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
        _reach(row[0], table["error_pct"])
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
        some = np.flatnonzero(chosen)[_thinned(int(chosen.sum()))]
        real, low, high, simulated = (
            table[name][some] / scale
            for name in ("real_ns", "real_p10_ns", "real_p90_ns", "simulated_ns")
        )
        axes.hlines(simulated, low, high, color=color, alpha=0.25, linewidth=0.6, rasterized=True)
        axes.plot(real, simulated, marker, color=color, markersize=2.6, alpha=0.55,
                  markeredgewidth=0, label=label, rasterized=True)  # fmt: skip
        for values in zip(real, low, high, simulated, strict=True):
            chart.record(panel, label, *(float(value) * scale for value in values))
    ends = np.array([pooled.min() / 1.15, pooled.max() * 1.15]) / scale
    factor = BAND_PCT / 100
    axes.fill_between(ends, ends * (1 - factor), ends * (1 + factor), color="#000000", alpha=0.08,
                      linewidth=0)  # fmt: skip
    axes.plot(ends, ends, color="black", linewidth=0.9, linestyle=(0, (4, 2)), label="equal")
    _square(axes, float(ends[0]), float(ends[1]))
    axes.set_xlabel(f"real ({unit})")
    axes.set_ylabel(f"simulated ({unit})")


def _square(axes: Axes, low: float, high: float) -> None:
    """The same axis both ways; logarithmic where the values are far apart."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

    far = high > 8 * low
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
    axes.axhspan(-BAND_PCT, BAND_PCT, color="#000000", alpha=0.08, linewidth=0)
    axes.axhline(0, color="black", linewidth=0.9, linestyle=(0, (4, 2)))
    for (label, color, marker), member in ((DECODE, decoding), (others, ~decoding)):
        some = chosen[member[chosen] & np.isfinite(errors[chosen])]
        if not len(some):
            continue
        axes.plot(values[some], errors[some], marker, color=color, markersize=2.6, alpha=0.45,
                  markeredgewidth=0, label=label, rasterized=True)  # fmt: skip
        for place in some.tolist():
            chart.record(panel, label, float(values[place]), float(errors[place]))
    known = np.isfinite(errors)
    if not known.any():
        mark_undefined(axes, "nothing was timed")
        return
    middle = _medians(values[known], errors[known])
    axes.plot(*middle, color="black", linewidth=1.1, marker=".", markersize=4, label="median")


def _reach(axes: Axes, errors: Floats) -> None:
    """As far up as down, so that the sign shows; the most extreme few may lie outside."""
    import numpy as np

    known = errors[np.isfinite(errors)]
    if len(known):
        reach = 1.15 * max(*np.abs(np.percentile(known, (0.5, 99.5))), BAND_PCT)
        axes.set_ylim(-reach, reach)


def _medians(values: Floats, errors: Floats) -> tuple[list[float], list[float]]:
    """Medians of the errors over groups of equal value, or of as many groups as are legible."""
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
    """Places of at most some thousand rows, evenly spread."""
    import numpy as np

    return np.unique(np.linspace(0, count - 1, min(count, MOST_POINTS)).astype(np.int64))


def _mark(summary: Mapping[str, Any]) -> str:
    return mark_of(summary.get("routing"), summary.get("sizes"))


def _caption(summary: Mapping[str, Any]) -> str:
    mark = _mark(summary)
    beware = f"{mark.upper()}. " if mark else ""
    return (
        f"{beware}{summary['name']} on {summary['device']}: {summary['runs']} runs, their spread "
        f"{summary['executor_spread_pct']:.1f} % of the whole."
    )


def _shown(value: float | None, *, sign: bool = False) -> str:
    if value is None:
        return "undefined"
    text = number(abs(round(value, 2)) if sign else round(value, 3))
    return ("-" if value < 0 else "+") + text if sign else text
