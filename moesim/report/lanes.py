"""The lane timeline: what each lane of the machine did, over time.

Only a window of the run is drawn: whole steps from the middle of the recorded ones, as many as
stay legible. If a single step has too many operations, its first layers are drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from moesim.report.chart import Chart, grid, mark_undefined
from moesim.report.lane_names import LANES, lanes_of
from moesim.report.metrics import run_caption, run_note
from moesim.report.runs import Run
from moesim.report.style import KINDS

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

__all__ = ["lane_timeline"]

COLUMNS: Final = ("lane", "kind", "start_ns", "finish_ns", "step", "layer", "expert")
KIND_LABELS: Final = {
    "front": "attention, router",
    "demand": "demand copy",
    "states": "hidden states",
    "read": "disk read",
}
"""Legend entries of kinds whose names are not plain; other kinds show their names."""
LEGIBLE: Final = 130
"""The most rectangles in a window of the width of a page."""


@dataclass(frozen=True, slots=True)
class Window:
    """The part of a timeline to draw: a mask of its rows, its ends in ns, and its name."""

    chosen: NDArray[np.bool_]
    start_ns: int
    finish_ns: int
    text: str


def lane_timeline(run: Run) -> Chart:
    """Draw each operation and copy of a window as a rectangle on its lane, coloured by kind."""
    table = run.table("timeline", COLUMNS)
    window = choose_window(table)
    lanes = lanes_of(run) or list(LANES)[:1]
    text = (
        f"Operations and copies of {window.text}. Gaps of the GPU lane within a step are stalls."
        if window
        else "The run recorded no timeline."
    )
    chart = grid(
        "lane_timeline",
        "Lane timeline",
        f"{text} {run_caption(run)}",
        COLUMNS,
        height_in=1.0 + 0.5 * len(lanes),
        note=run_note(run),
    )
    axes = chart.axes[0][0]
    if window is None:
        mark_undefined(axes, "the run recorded no timeline; set timeline.steps")
        return chart
    rows = {column: values[window.chosen] for column, values in table.items()}
    for row in zip(*(rows[column].tolist() for column in COLUMNS), strict=True):
        chart.record(*row)
    _draw(axes, rows, window, lanes)
    _mark_steps(axes, run, window)
    handles, labels = axes.get_legend_handles_labels()
    kinds = len(labels)
    columns = kinds if kinds <= 9 else -(-kinds // 2)  # two lines of the same length
    chart.figure.legend(
        handles, labels, loc="outside upper right", ncols=columns, handlelength=1, columnspacing=1.2
    )
    return chart


def choose_window(table: dict[str, Any]) -> Window | None:
    """Return the window to draw; None if no step was recorded."""
    import numpy as np

    step, kind = table["step"].astype(np.int64), table["kind"]
    # Initial loads belong to no step and would stretch the axis.
    in_steps = (step >= 0) & (kind != "load")
    steps = np.unique(step[in_steps])
    if not len(steps):
        return None
    counts = np.array([np.count_nonzero(step == number) for number in steps])
    first = len(steps) // 2  # the middle: the first steps fill an empty cache
    last = first
    while last + 1 < len(steps) and counts[first : last + 2].sum() <= LEGIBLE:
        last += 1
    chosen = in_steps & (step >= steps[first]) & (step <= steps[last])
    text = f"step {steps[first]}" if first == last else f"steps {steps[first]} to {steps[last]}"
    if counts[first] > LEGIBLE:
        layers = np.unique(table["layer"][chosen & (table["layer"] >= 0)])
        sizes = np.cumsum([np.count_nonzero(chosen & (table["layer"] == n)) for n in layers])
        shown = layers[: max(1, int(np.searchsorted(sizes, LEGIBLE, side="right")))]
        chosen &= np.isin(table["layer"], shown)
        text = f"layers {shown[0]} to {shown[-1]} of step {steps[first]}"
    start = int(table["start_ns"][chosen].min())
    return Window(chosen, start, int(table["finish_ns"][chosen].max()), text)


def _draw(axes: Axes, rows: dict[str, Any], window: Window, lanes: Sequence[str]) -> None:
    import numpy as np

    start = (rows["start_ns"].astype(np.int64) - window.start_ns) / 1e6
    length = (rows["finish_ns"].astype(np.int64) - rows["start_ns"].astype(np.int64)) / 1e6
    # A white edge separates neighbours, but it would cover a rectangle as thin as the edge.
    thin = length < (window.finish_ns - window.start_ns) / 1e6 / 250
    for kind in [*KINDS, *sorted(set(rows["kind"]) - set(KINDS))]:
        of_kind = rows["kind"] == kind
        color = KINDS.get(kind, "#444444")
        if of_kind.any():
            # An empty bar gives the legend one entry per kind; the spans below would give many.
            axes.bar(0, 0, color=color, label=KIND_LABELS.get(kind, kind.replace("_", " ")))
        for place, lane in enumerate(lanes):
            for chosen, edge in ((~thin, "white"), (thin, color)):
                here = of_kind & (rows["lane"] == lane) & chosen
                spans = list(zip(start[here], length[here], strict=True))
                axes.broken_barh(spans, (place - 0.36, 0.72), facecolor=color, edgecolor=edge,
                                 linewidth=0.3)  # fmt: skip
    axes.set_yticks(range(len(lanes)), [LANES.get(lane, lane) for lane in lanes])
    axes.set_ylim(len(lanes) - 0.5, -0.5)  # reversed: the GPU lane on top
    axes.set_xlim(0, (window.finish_ns - window.start_ns) / 1e6)
    axes.set_xlabel(f"time (ms), from {window.start_ns / 1e6:.3f} ms into the run")
    axes.grid(False, axis="y")


def _mark_steps(axes: Axes, run: Run, window: Window) -> None:
    """Draw a line and a number wherever a step begins inside the window."""
    table = run.table("steps", ("step", "start_ns"))
    span = window.finish_ns - window.start_ns
    for step, start in zip(table["step"].tolist(), table["start_ns"].tolist(), strict=True):
        if window.start_ns <= start < window.finish_ns:
            at = (start - window.start_ns) / 1e6
            axes.axvline(at, color="black", linewidth=0.8)
            if start - window.start_ns < 0.96 * span:  # a number further right would be cut off
                axes.text(at, -0.52, f" step {step}", ha="left", va="bottom", fontsize=7)
