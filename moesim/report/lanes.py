"""The lane timeline: what the GPU and both directions of the link did, side by side in time.

A window is drawn, not a run: as many whole steps from the middle of the recorded ones as stay
legible, or the first layers of one step where a single step is too much.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from moesim.report.chart import Chart, grid, mark_undefined
from moesim.report.metrics import run_caption
from moesim.report.runs import Run
from moesim.report.style import KINDS

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

__all__ = ["lane_timeline"]

LANES: Final = ("gpu", "h2d", "d2h")
LANE_LABELS: Final = ("GPU\ncompute", "host to\nGPU copy", "GPU to\nhost copy")
COLUMNS: Final = ("lane", "kind", "start_ns", "finish_ns", "step", "layer", "expert")
LEGIBLE: Final = 130
"""The most rectangles in a window of the width of a page."""


@dataclass(frozen=True, slots=True)
class Window:
    """Which rows of the timeline are drawn, from when to when."""

    chosen: NDArray[np.bool_]
    start_ns: int
    finish_ns: int
    text: str


def lane_timeline(run: Run) -> Chart:
    """Each operation and copy of a window as a rectangle on its lane, coloured by kind."""
    table = run.table("timeline", COLUMNS)
    window = choose_window(table)
    what = window.text if window else "nothing recorded"
    chart = grid(
        "lane_timeline",
        "Lane timeline",
        f"What each lane did over {what}; gaps of the GPU lane within a step are stalls. "
        f"{run_caption(run)}",
        COLUMNS,
        height_in=2.5,
    )
    axes = chart.axes[0][0]
    if window is None:
        mark_undefined(axes, "the run kept no timeline")
        return chart
    rows = {column: values[window.chosen] for column, values in table.items()}
    for row in zip(*(rows[column].tolist() for column in COLUMNS), strict=True):
        chart.record(*row)
    _draw(axes, rows, window)
    _mark_steps(axes, run, window)
    chart.figure.legend(loc="outside upper right", ncols=9, handlelength=1, columnspacing=1.2)
    return chart


def choose_window(table: dict[str, Any]) -> Window | None:
    """The window to draw; None where nothing was recorded."""
    import numpy as np

    step, kind = table["step"].astype(np.int64), table["kind"]
    moving = (step >= 0) & (kind != "load")
    steps = np.unique(step[moving])
    if not len(steps):
        return None
    counts = np.array([np.count_nonzero(step == number) for number in steps])
    first = len(steps) // 2
    last = first
    while last + 1 < len(steps) and counts[first : last + 2].sum() <= LEGIBLE:
        last += 1
    chosen = moving & (step >= steps[first]) & (step <= steps[last])
    text = f"step {steps[first]}" if first == last else f"steps {steps[first]} to {steps[last]}"
    if counts[first] > LEGIBLE:
        layers = np.unique(table["layer"][chosen & (table["layer"] >= 0)])
        sizes = np.cumsum([np.count_nonzero(chosen & (table["layer"] == one)) for one in layers])
        shown = layers[: max(1, int(np.searchsorted(sizes, LEGIBLE, side="right")))]
        chosen &= np.isin(table["layer"], shown)
        text = f"layers {shown[0]} to {shown[-1]} of step {steps[first]}"
    start = int(table["start_ns"][chosen].min())
    return Window(chosen, start, int(table["finish_ns"][chosen].max()), text)


def _draw(axes: Axes, rows: dict[str, Any], window: Window) -> None:
    import numpy as np

    start = (rows["start_ns"].astype(np.int64) - window.start_ns) / 1e6
    length = (rows["finish_ns"].astype(np.int64) - rows["start_ns"].astype(np.int64)) / 1e6
    # A white rim separates neighbours, but would swallow what is no wider than itself.
    thin = length < (window.finish_ns - window.start_ns) / 1e6 / 250
    for kind in [*KINDS, *sorted(set(rows["kind"]) - set(KINDS))]:
        of_kind = rows["kind"] == kind
        color = KINDS.get(kind, "#444444")
        if of_kind.any():
            axes.bar(0, 0, color=color, label=kind.replace("_", " "))
        for place, lane in enumerate(LANES):
            for chosen, edge in ((~thin, "white"), (thin, color)):
                here = of_kind & (rows["lane"] == lane) & chosen
                spans = list(zip(start[here], length[here], strict=True))
                axes.broken_barh(spans, (place - 0.36, 0.72), facecolor=color, edgecolor=edge,
                                 linewidth=0.3)  # fmt: skip
    axes.set_yticks(range(len(LANES)), LANE_LABELS)
    axes.set_ylim(len(LANES) - 0.5, -0.5)
    axes.set_xlim(0, (window.finish_ns - window.start_ns) / 1e6)
    axes.set_xlabel(f"time (ms), from {window.start_ns / 1e6:.3f} ms into the run")
    axes.grid(False, axis="y")


def _mark_steps(axes: Axes, run: Run, window: Window) -> None:
    """A line and a number wherever a step begins inside the window."""
    table = run.table("steps", ("step", "start_ns"))
    span = window.finish_ns - window.start_ns
    for step, start in zip(table["step"].tolist(), table["start_ns"].tolist(), strict=True):
        if window.start_ns <= start < window.finish_ns:
            at = (start - window.start_ns) / 1e6
            axes.axvline(at, color="black", linewidth=0.8)
            if start - window.start_ns < 0.96 * span:
                axes.text(at, -0.52, f" step {step}", ha="left", va="bottom", fontsize=7)
