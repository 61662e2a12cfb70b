"""Parts that the charts of a comparison share: legends, labels, titles and captions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from moesim.report.chart import Chart, drawn
from moesim.report.comparison import Comparison
from moesim.report.drawing import current
from moesim.report.marks import FORESEES
from moesim.report.statistics import Estimate
from moesim.report.style import BOUNDS, Style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.transforms import Transform

__all__ = [
    "LABEL",
    "MOST_BANDS",
    "MOST_SETTINGS",
    "NARROW_IN",
    "OUTPUT_ONLY",
    "about_bounds",
    "about_intervals",
    "beside",
    "left_out",
    "line_with_interval",
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
"""Characters that fit across a page, in the type of legends."""
NARROW_IN: Final = 5.0
"""The width of a figure below which its legend is above its panels and not beside them."""
HANDLE_CHARACTERS: Final = 8
MOST_BANDS: Final = 3
"""The most lines of a panel whose intervals are drawn as shaded bands."""
BESIDE_POINTS: Final = 2.0
"""Points between lines that have whiskers."""
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
    for axes in chart.panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if not entries:
        return
    # Matplotlib lists lines before whiskers; bounds belong last.
    entries = dict(sorted(entries.items(), key=lambda entry: entry[0] in BOUNDS))
    longest = max(len(line) for label in entries for line in label.splitlines())
    narrow = chart.size.width_in < NARROW_IN
    # Letters of one long label are wider than the mean of many.
    room = int(chart.size.across(WIDE_CHARACTERS) * (0.8 if narrow else 1))
    columns = max(1, min(6, len(entries), room // (longest + HANDLE_CHARACTERS)))
    handles, names = list(entries.values()), list(entries)
    # Inches for a line of legend type and the gap between entries, at the sizes of `HOUSE`.
    heights = [0.05 + 0.125 * (label.count("\n") + 1) for label in entries]
    if wide or narrow:
        chart.grow(sum(heights) / columns - 0.175)
        chart.figure.legend(handles, names, loc="outside upper center", ncols=columns)
    else:
        caption_in = 0.13 * (chart.figure.get_supxlabel().count("\n") + 1)
        chart.grow(sum(heights) + caption_in - chart.figure.get_figheight())
        chart.figure.legend(handles, names, loc="outside right upper")


def named(label: str) -> str:
    """Return the label of a row, broken into lines but not inside its mark."""
    # `textwrap` breaks lines at spaces, and a non-breaking space is none to it.
    return drawn(label.replace(f"[{FORESEES}]", f"[{FORESEES}]".replace(" ", "\u00a0")), LABEL)


def rows_in(labels: Iterable[str]) -> float:
    """Return the inches that each row needs, by the label with the most lines."""
    return max(0.19, 0.06 + 0.125 * max(named(label).count("\n") + 1 for label in labels))


def line_with_interval(
    axes: Axes,
    sizes: Sequence[float],
    estimates: Sequence[Estimate],
    look: Style,
    label: str,
    place: tuple[int, int],
) -> None:
    """Draw a line with its intervals: a band, or whiskers where many bands would hide each other.

    `place` is the number of the line and how many there are. Lines with whiskers stand a little
    beside each other. Undefined means leave gaps.
    """
    import numpy as np

    mean, low, high = (
        np.array([getattr(each, part) for each in estimates]) for part in ("mean", "low", "high")
    )
    known = bool((high > low).any())
    drawing: dict[str, Any] = {
        "color": look.color, "linestyle": look.line, "marker": look.marker,
        "markerfacecolor": look.face, "label": label,
    }  # fmt: skip
    if not known or place[1] <= MOST_BANDS:
        axes.plot(sizes, mean, **drawing)
        if known:
            axes.fill_between(sizes, low, high, color=look.color, alpha=0.18, linewidth=0)
        return
    # Points without an interval, of one seed, have NaN and so no whisker.
    axes.errorbar(sizes, mean, yerr=(mean - low, high - mean), **drawing, linewidth=0.9,
                  elinewidth=0.8, capsize=1.5, capthick=0.8, markersize=3.2,
                  transform=beside(axes, place))  # fmt: skip
    # Matplotlib takes no limits from lines with a transform of their own.
    ends = [(x, y) for side in (mean, low, high) for x, y in zip(sizes, side, strict=True)]
    axes.update_datalim([point for point in ends if point[1] == point[1]])
    axes.margins(x=0.09)
    axes.autoscale_view()


def beside(axes: Axes, place: tuple[int, int]) -> Transform:
    """Return the transform that shifts line `place[0]` of `place[1]` to its place beside others."""
    from matplotlib.transforms import ScaledTranslation

    points = BESIDE_POINTS * (place[0] - (place[1] - 1) / 2)
    return axes.transData + ScaledTranslation(points / 72, 0, axes.figure.dpi_scale_trans)


def about_intervals(lines: int) -> str:
    """Return how the intervals of `lines` lines are drawn, for a caption; with a space."""
    if lines <= MOST_BANDS:
        return "Shaded: intervals. "
    return "Whiskers: intervals; lines are shifted sideways so that they can be told apart. "


def titled(axes: Axes, text: str, width: int) -> None:
    """Set a panel's title, in lines of at most `width` characters on a page.

    The layout counts only its height, so a long title makes no panel wider.
    """
    from matplotlib import rcParams
    from matplotlib.transforms import ScaledTranslation

    shown = drawn(text, current().size.across(width))
    # The blank title reserves the height; the text itself is drawn outside the layout.
    spacer = axes.set_title("\n".join(" " for _ in shown.split("\n")))
    up = ScaledTranslation(0, rcParams["axes.titlepad"] / 72, axes.figure.dpi_scale_trans)
    axes.figure.text(0, 1, shown, transform=axes.transAxes + up, in_layout=False,
                     fontproperties=spacer.get_fontproperties(), va="baseline")  # fmt: skip
