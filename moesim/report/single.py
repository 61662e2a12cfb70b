"""The charts of one run: latencies, stalls, hits by layer, and the lanes of a window."""

from __future__ import annotations

import shlex
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from moesim.files import as_path
from moesim.report.chart import Chart, grid, mark_undefined, save_charts
from moesim.report.distribution import (
    LATENCIES,
    PERCENTILES,
    cdf,
    latencies_ns,
    latency_axis,
    latency_scale,
    percentiles,
)
from moesim.report.drawing import commanded
from moesim.report.lane_names import STALL_CAUSES, causes_of, lanes_of
from moesim.report.lanes import lane_timeline
from moesim.report.metrics import HITS_LEGEND, run_caption, run_note
from moesim.report.runs import Run, load_run
from moesim.report.style import BLUE, GREEN, ORANGE, OUTCOMES, STALLS

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

__all__ = ["hits_by_layer", "latency_cdf", "plots_for_run", "stall_breakdown"]


def plots_for_run(run_dir: str | Path, folder: str | Path | None = None) -> Path:
    """Draw every chart of a run into `folder` (default: the run's `plots`) and return the folder.

    The charts are `latency_cdf`, `stall_breakdown`, `hits_by_layer` and `lane_timeline`, each with
    its data and its caption. They replace the folder's content.

    Raises:
        UsageError: `run_dir` is not a run directory.
        DamagedRun: the directory is half-written or damaged.
        OutputError: the plots cannot be written.
    """
    run = load_run(run_dir)
    folder = run.path / "plots" if folder is None else as_path(folder)
    charts = (latency_cdf, stall_breakdown, hits_by_layer, lane_timeline)
    with commanded(shlex.join(["moesim", "report", str(run.path)])):
        save_charts(folder, [partial(chart, run) for chart in charts])
    return folder


def latency_cdf(run: Run) -> Chart:
    """Draw the cumulative share of requests over each latency; over token gaps for ITL."""
    chart = grid(
        "latency_cdf",
        "Latency distributions",
        "Latency distributions with p50, p95 and p99 marked. Beside the TTFT its parts: queued, "
        "until the first step that serves the request, and served, from there to the first token. "
        f"{run_caption(run)}",
        ("latency", "value_ns", "share"),
        shape=(2, 2),
        height_in=4.0,
        note=run_note(run),
    )
    samples = latencies_ns(run)
    for axes, (name, label) in zip(chart.panels, LATENCIES.items(), strict=True):
        sample = samples[name]
        axes.set_title(name.upper())
        if not len(sample):
            mark_undefined(axes, NO_SAMPLE[name])
            continue
        scale, unit = latency_axis(axes, [sample])
        values, shares = cdf(sample)
        # A distribution starts at zero, so the first step needs its lower end.
        axes.plot([values[0] / scale, *values / scale], [0, *shares], drawstyle="steps-post",
                  color=BLUE)  # fmt: skip
        _mark_quantiles(axes, sample, scale, unit)
        axes.set_ylim(0, 1.02)
        axes.set_xlabel(f"{label} ({unit})")
        axes.set_ylabel(f"share of {len(sample)} {'gaps' if name == 'itl' else 'requests'}")
        for value, share in zip(values, shares, strict=True):
            chart.record(name, float(value), float(share))
        if name == "ttft":
            _parts_of_ttft(chart, axes, samples, scale)
    return chart


PARTS: Final = {
    "ttft_queue": ("queued", ORANGE, (0, (1, 1.2))),
    "ttft_service": ("served", GREEN, (0, (4, 1.5))),
}


def _parts_of_ttft(chart: Chart, axes: Axes, samples: dict[str, Any], scale: float) -> None:
    """Draw the distributions of queueing and service, whose sum is each request's TTFT."""
    for name, (label, color, line) in PARTS.items():
        values, shares = cdf(samples[name])
        axes.plot([0, *values / scale], [0, *shares], drawstyle="steps-post", color=color,
                  linestyle=line, linewidth=1.1, label=label, zorder=1.8)  # fmt: skip
        for value, share in zip(values.tolist(), shares.tolist(), strict=True):
            chart.record(name, value, share)
    axes.legend(loc="lower right")


NO_SAMPLE: Final = {
    "ttft": "no request got a token",
    "tpot": "no request has two tokens",
    "itl": "no request has two tokens",
    "e2e": "no request finished",
}


def stall_breakdown(run: Run) -> Chart:
    """Draw the GPU lane's time by cause, and its stalls by layer; recorded in seconds."""
    import numpy as np

    chart = grid(
        "stall_breakdown",
        "Stalls by cause and by layer",
        "Left: time of the GPU lane by what it did or waited for, with shares of the "
        f"{'window' if run.windowed else 'makespan'}. "
        f"Right: its stalls by the layer that waited{_of_whole_run(run)}, in the same colours. "
        f"{run_caption(run)}",
        ("scope", "layer", "cause", "seconds"),
        shape=(1, 2),
        height_in=2.7,
        note=run_note(run),
        widths=(1, 1.7),
    )
    total, by_layer = chart.axes[0]
    seconds = {"compute": run.value("busy_s")}
    causes = causes_of([run])
    seconds |= {label: run.value(f"stall_{cause}_s") for cause, label in causes.items()}
    seconds["idle"] = run.value("idle_s")
    colors = [BLUE, *(STALLS[cause][0] for cause in causes), "#FFFFFF"]
    hatches = ["", *(STALLS[cause][1] for cause in causes), ""]
    window = run.window_s
    for place, (label, value) in enumerate(seconds.items()):
        total.barh(place, np.nan_to_num(value), color=colors[place], hatch=hatches[place],
                   edgecolor="#444444", linewidth=0.5, height=0.7)  # fmt: skip
        share = f" {value / window:.1%}" if window > 0 else ""
        # NaN, which differs from itself: the summary has no such number.
        text = f" {value:.3g} s{share and ',' + share}" if value == value else " undefined"
        total.text(np.nan_to_num(value), place, text, va="center", fontsize=7)
        chart.record("run", None, label, value)
    total.set_yticks(range(len(seconds)), list(seconds))
    total.invert_yaxis()
    total.grid(False, axis="y")
    # Texts stand to the right of the bars, and matplotlib reserves no room for them.
    total.set_xlim(0, np.nanmax([1e-9, *seconds.values()]) * 1.6)
    total.set_xlabel("time (s)")
    total.set_title("GPU lane")
    _stalls_by_layer(chart, by_layer, run)
    return chart


def hits_by_layer(run: Run) -> Chart:
    """Draw each layer's accesses as shares of hits, late hits and misses.

    Where the machine has a CPU lane, misses that were computed there are shown apart.
    """
    import numpy as np

    on_cpu = "cpu" in lanes_of(run)
    chart = grid(
        "hits_by_layer",
        "Hits by layer",
        f"Share of hits, late hits and misses at each layer{_of_whole_run(run)}. "
        f"{run_caption(run)} {HITS_LEGEND}",
        ("layer", "model_layer", "accesses", "hits", "late_hits", "misses",
         *(["elsewhere"] if on_cpu else [])),
        height_in=2.7,
        note=run_note(run),
    )  # fmt: skip
    axes = chart.axes[0][0]
    table = run.table("layers", chart.columns)
    for row in zip(*(table[column].tolist() for column in chart.columns), strict=True):
        chart.record(*row)
    accesses = table["accesses"].astype(np.float64)
    if not accesses.sum():
        mark_undefined(axes, "no expert was accessed")
        return chart
    counts = {"hit": table["hits"], "late hit": table["late_hits"], "miss": table["misses"]}
    if on_cpu:
        elsewhere = table["elsewhere"].astype(np.int64)
        del counts["miss"]
        counts["miss, on the CPU"] = elsewhere
        counts["miss, copied"] = table["misses"].astype(np.int64) - elsewhere
    parts = {label: count / np.maximum(accesses, 1) for label, count in counts.items()}
    _stack(axes, table["layer"], parts, OUTCOMES)
    # Of the table, because the summary may be of a window.
    hits, late = (table[key].sum() / accesses.sum() for key in ("hits", "late_hits"))
    axes.axhline(hits, color="black", linewidth=1, linestyle=(0, (4, 2)),
                 label=f"all layers: {hits:.1%} hit, {late:.1%} late")  # fmt: skip
    axes.set_ylim(0, 1)
    axes.set_ylabel("share of accesses")
    axes.set_xlabel("layer (numbered as in the trace)")
    handles, labels = axes.get_legend_handles_labels()
    # Matplotlib lists lines before bars; the dashed line belongs last, after what it averages.
    order = sorted(range(len(labels)), key=lambda place: labels[place].startswith("all"))
    chart.figure.legend([handles[i] for i in order], [labels[i] for i in order],
                        loc="outside upper right", ncols=5)  # fmt: skip
    return chart


def _of_whole_run(run: Run) -> str:
    """Return what to say of numbers by layer, which are of the whole run, where others are not."""
    return " over the whole run, not only its window" if run.windowed else ""


def _mark_quantiles(axes: Axes, sample: NDArray[np.float64], scale: float, unit: str) -> None:
    """Draw dots on the curve at p50, p95 and p99, with their values above the panel."""
    # Beside the dots the values would overlap: p95 and p99 often lie on one spot.
    texts = []
    for percent, value in zip(PERCENTILES, percentiles(sample).tolist(), strict=True):
        axes.plot(value / scale, percent / 100, "o", color="black", markersize=3.5, zorder=3)
        texts.append(f"p{percent} {value / scale:.4g}")
    axes.set_title(f"{', '.join(texts)} {unit}", loc="right", fontsize=7.5, fontweight="normal")


def _stalls_by_layer(chart: Chart, axes: Axes, run: Run) -> None:
    import numpy as np

    causes = causes_of([run])
    columns = [f"stall_{cause}_ns" for cause in causes]
    table = run.table("layers", ["layer", *columns])
    layers = table["layer"]
    parts: dict[str, Any] = {}
    for cause, column in zip(causes, columns, strict=True):
        parts[cause] = table[column].astype(np.float64)
        for layer, value in zip(layers.tolist(), parts[cause].tolist(), strict=True):
            chart.record("layer", layer, STALL_CAUSES[cause], value / 1e9)
    axes.set_title("Stalls by layer")
    if not sum(part.sum() for part in parts.values()):
        mark_undefined(axes, "nothing stalled")
        return
    scale, unit = latency_scale(float(sum(parts.values()).max()))
    _stack(axes, layers, {cause: part / scale for cause, part in parts.items()}, STALLS)
    axes.set_xlabel("layer (numbered as in the trace)")
    axes.set_ylabel(f"stalled ({unit})")


def _stack(
    axes: Axes, layers: Any, parts: dict[str, Any], look: dict[str, tuple[str, str]]
) -> None:
    """Draw one stacked bar per layer, in the order of `parts`."""
    from matplotlib.ticker import MaxNLocator

    below = 0.0
    for label, heights in parts.items():
        color, hatch = look[label]
        axes.bar(layers, heights, bottom=below, color=color, hatch=hatch, edgecolor="#444444",
                 linewidth=0.4, width=0.82, label=label)  # fmt: skip
        below = below + heights
    axes.set_xlim(min(layers) - 0.6, max(layers) + 0.6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(False, axis="x")
