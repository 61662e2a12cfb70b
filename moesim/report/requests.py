"""The report of a file of requests: tables for a screen, and a figure of lengths and arrivals."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from moesim.report.chart import Chart, grid, mark_undefined, save_charts, write_whole
from moesim.report.metrics import number
from moesim.report.style import BLUE, GREEN, ORANGE
from moesim.report.tabular import Table
from moesim.workload.description import PERCENTILES, gaps_s
from moesim.workload.request_file import RequestFile

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["FILES", "remarks", "requests_chart", "tables", "write_requests"]

FILES: Final = ("workload.json",)
"""The files by which an output folder is recognised."""

_POINTS: Final = 200  # of a line of cumulative shares
_BARS: Final = 120  # at most, of arrivals over time
_COLORS: Final = (BLUE, ORANGE, GREEN)


def tables(about: Mapping[str, Any]) -> list[Table]:
    """Return the tables of a description: lengths and gaps, then single facts."""
    spread = ("mean", "min", *(f"p{p}" for p in PERCENTILES), "max")
    lengths = Table("", ["", *spread, "total"])
    for key, name in (("prompt_tokens", "prompt tokens"), ("output_tokens", "output tokens")):
        row = about[key]
        lengths.add(name, *(number(row[column]) for column in spread), f"{row['total']:,}")
    arrivals = about["arrivals"]
    if arrivals is not None and arrivals["gaps_s"] is not None:
        gaps = arrivals["gaps_s"]
        lengths.add("gap between arrivals (s)", *(number(gaps[column]) for column in spread), "")
    facts = Table("", ["", ""])
    facts.add("format", about["format"])
    facts.add("requests", f"{about['requests']:,}")
    if arrivals is None:
        facts.add("arrivals", "no times")
    else:
        facts.add("duration", f"{number(arrivals['duration_s'])} s")
        facts.add("rate", f"{_known(arrivals['rate_per_s'])} requests/s")
        facts.add("busiest minute", f"{arrivals['busiest_minute']:,} requests")
        facts.add("burstiness (CV of gaps; Poisson: 1)", _known(arrivals["burstiness"]))
        facts.add("dispersion of minutes (Poisson: 1)", _known(arrivals["dispersion"]))
    _add_prefixes(facts, about["prefixes"])
    if about["num_domains"]:
        most = [f"{name} {count:,}" for name, count in list(about["domains"].items())[:5]]
        more = ["…"] if about["num_domains"] > len(most) else []
        facts.add(f"domains ({about['num_domains']})", ", ".join([*most, *more]))
    return [facts, lengths]


def _known(value: float | None) -> str:
    """Return a statistic as text; too few arrivals leave it undefined."""
    return number(float("nan") if value is None else value)


def _add_prefixes(facts: Table, prefixes: Mapping[str, Any] | None) -> None:
    if prefixes is None:
        facts.add("token blocks", "no identities")
        return
    blocks, distinct = prefixes["blocks"], prefixes["distinct_blocks"]
    facts.add(
        "full token blocks",
        f"{blocks:,} of {prefixes['block_tokens']} tokens, {distinct:,} distinct",
    )
    facts.add(
        "an unlimited prefix cache finds",
        f"{100 * prefixes['cached_share']:.1f} % of prompt tokens, in "
        f"{prefixes['requests_with_cached_blocks']:,} requests",
    )


def remarks(about: Mapping[str, Any]) -> Sequence[str]:
    """Return what a reader must know of the file: what was repaired."""
    repaired: Sequence[str] = about["repaired"]
    return repaired


def write_requests(
    folder: Path, file: RequestFile, about: Mapping[str, Any], name: str, *, plots: bool
) -> None:
    """Write `workload.json`, and with `plots` the figure, into an existing folder.

    Raises:
        OutputError: a file cannot be written.
    """
    write_whole(folder / "workload.json", json.dumps(about, indent=1, allow_nan=False) + "\n")
    if plots:
        save_charts(folder / "plots", [lambda: requests_chart(file, name)])


def requests_chart(file: RequestFile, name: str) -> Chart:
    """Draw lengths, gaps between arrivals, and arrivals over time; `name` ends the caption."""
    chart = grid(
        "workload",
        "Lengths and arrivals of a file of requests",
        "Left: share of requests with at most x tokens. Middle: share of gaps between arrivals "
        "of at most x seconds; gaps of zero lie left of the axis. Dashed: a Poisson process "
        f"of the same rate. Right: arrivals over time. {name}, {len(file.requests):,} requests.",
        ("panel", "line", "x", "y"),
        shape=(1, 3),
        height_in=2.6,
        note=f"n = {len(file.requests):,} requests",
    )
    lengths, gaps, times = chart.axes[0]
    for label, color, values in (
        ("prompt", _COLORS[0], [it.prompt_tokens for it in file.requests]),
        ("output", _COLORS[1], [it.output_tokens for it in file.requests]),
    ):
        _cumulative(chart, lengths, "lengths", label, np.array(values, float), color)
    lengths.set_xlabel("tokens")
    lengths.set_ylabel("requests (%)")
    lengths.set_xscale("log")
    lengths.legend()
    gaps.set_xlabel("gap between arrivals (s)")
    gaps.set_ylabel("gaps (%)")
    times.set_xlabel("time (s)")
    times.set_ylabel("requests/s")
    if not file.timed or not file.requests[-1].arrival_ns:
        for axes in (gaps, times):
            mark_undefined(axes, "no two arrivals differ" if file.timed else "no times")
        return chart
    _draw_gaps(chart, gaps, gaps_s(file))
    _draw_times(chart, times, file)
    return chart


def _cumulative(
    chart: Chart, axes: Axes, panel: str, label: str, values: np.ndarray[Any, Any], color: str
) -> None:
    shares = np.linspace(0, 100, min(_POINTS, len(values) + 1))
    points = np.percentile(values, shares)
    axes.plot(points, shares, color=color, label=label)
    for x, y in zip(points.tolist(), shares.tolist(), strict=True):
        chart.record(panel, label, x, y)


def _draw_gaps(chart: Chart, axes: Axes, gaps: np.ndarray[Any, Any]) -> None:
    _cumulative(chart, axes, "gaps", "file", gaps, _COLORS[2])
    # Not to 100 %, which an exponential distribution never reaches.
    shares = np.linspace(0.5, 99.5, _POINTS)
    poisson = -np.log1p(-shares / 100) * gaps.mean()
    axes.plot(poisson, shares, color="#666666", linestyle=(0, (4, 1.5)), linewidth=1)
    for x, y in zip(poisson.tolist(), shares.tolist(), strict=True):
        chart.record("gaps", "Poisson", x, y)
    axes.set_xscale("log")


def _draw_times(chart: Chart, axes: Axes, file: RequestFile) -> None:
    times = np.array([it.arrival_ns or 0 for it in file.requests]) / 1e9
    bars = min(_BARS, max(1, len(times) // 4))
    counts, edges = np.histogram(times, bars)
    rates = counts / np.diff(edges)
    axes.stairs(rates, edges, color=_COLORS[2], fill=True, alpha=0.6)
    axes.set_ylim(bottom=0)
    for left, rate in zip(edges.tolist(), rates.tolist(), strict=False):
        chart.record("arrivals", "file", left, rate)
