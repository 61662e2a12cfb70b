"""Parts that the charts of a comparison share: legends, labels, titles and captions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from moesim.report.chart import Chart, drawn
from moesim.report.comparison import Comparison
from moesim.report.marks import FORESEES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "LABEL",
    "MOST_SETTINGS",
    "OUTPUT_ONLY",
    "about_bounds",
    "left_out",
    "named",
    "rows_in",
    "shared_legend",
    "titled",
]

# More rows of panels would not fit on a page.
MOST_SETTINGS: Final = 3
LABEL: Final = 28
"""Characters of a line of a row's or a legend's label."""
WIDE_CHARACTERS: Final = 132
"""Characters that fit across a figure, in the type of legends."""
HANDLE_CHARACTERS: Final = 8
OUTPUT_ONLY: Final = (
    "Decode speed is that of one user: tokens after the first by the time from first to last, mean "
    "of requests. Throughput counts the output tokens of all users."
)


def about_bounds(comparison: Comparison, text: str) -> str:
    """Return `text`, which explains the bounds of a chart, or why it has none; with a space."""
    keys = ("min_hit_rate", "infinite_cache_hit_rate", "infinite_cache_makespan_s")
    computed = [
        run for run in comparison.runs if any(run.value(key) == run.value(key) for key in keys)
    ]
    if not computed:
        text = "These runs computed no bounds."
    elif all(run.windowed for run in computed):
        text = "Bounds are of whole runs, so these windows have none."
    return f"{text} "


def left_out(every: Sequence[str], shown: Sequence[str]) -> str:
    """Return how many settings a chart draws, for its caption; "" if it draws all."""
    return "" if len(every) == len(shown) else f" ({len(shown)} of {len(every)} settings drawn)"


def shared_legend(chart: Chart, *, wide: bool = False) -> None:
    """Add one legend for all panels, to their right or, if `wide`, above them."""
    # By label: a variant has one look in all panels, so one entry is enough.
    entries: dict[str, Any] = {}
    for row in chart.axes:
        for axes in row:
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                entries.setdefault(label, handle)
    if not entries:
        return
    longest = max(len(line) for label in entries for line in label.splitlines())
    columns = max(1, min(6, len(entries), WIDE_CHARACTERS // (longest + HANDLE_CHARACTERS)))
    handles, names = list(entries.values()), list(entries)
    # Inches for a line of legend type and the gap between entries, at the sizes of `HOUSE`.
    heights = [0.05 + 0.125 * (label.count("\n") + 1) for label in entries]
    if wide:
        _grow(chart, sum(heights) / columns - 0.175)
        chart.figure.legend(handles, names, loc="outside upper center", ncols=columns)
    else:
        caption_in = 0.13 * (chart.figure.get_supxlabel().count("\n") + 1)
        _grow(chart, sum(heights) + caption_in - chart.figure.get_figheight())
        chart.figure.legend(handles, names, loc="outside right upper")


def _grow(chart: Chart, inches: float) -> None:
    """Add `inches` of height, if positive, for a legend higher than the panels allow."""
    if inches > 0:
        chart.figure.set_figheight(chart.figure.get_figheight() + inches)


def named(label: str) -> str:
    """Return the label of a row, broken into lines but not inside its mark."""
    # `textwrap` breaks lines at spaces, and a non-breaking space is none to it.
    return drawn(label.replace(f"[{FORESEES}]", f"[{FORESEES}]".replace(" ", "\u00a0")), LABEL)


def rows_in(labels: Iterable[str]) -> float:
    """Return the inches that each row needs, by the label with the most lines."""
    return max(0.19, 0.06 + 0.125 * max(named(label).count("\n") + 1 for label in labels))


def titled(axes: Axes, text: str, width: int) -> None:
    """Set a panel's title, in lines of at most `width` characters.

    The layout counts only its height, so a long title makes no panel wider.
    """
    from matplotlib import rcParams
    from matplotlib.transforms import ScaledTranslation

    shown = drawn(text, width)
    # The blank title reserves the height; the text itself is drawn outside the layout.
    spacer = axes.set_title("\n".join(" " for _ in shown.split("\n")))
    up = ScaledTranslation(0, rcParams["axes.titlepad"] / 72, axes.figure.dpi_scale_trans)
    axes.figure.text(0, 1, shown, transform=axes.transAxes + up, in_layout=False,
                     fontproperties=spacer.get_fontproperties(), va="baseline")  # fmt: skip
