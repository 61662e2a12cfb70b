"""The picture of the study: break-even lines, and where published predictors lie."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from prefetch_places import DEEPSEEK
from prefetch_runs import Found
from published_predictors import Predictor

from moesim.dial import Border
from moesim.report.chart import Chart, drawn, grid
from moesim.report.statistics import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["caption_of", "predictor_chart"]

_COLUMNS: Final = 3
_PAYS, _LOSES, _OPEN = "#0072B2", "#D55E00", "#8C8C8C"
_MARKERS: Final = ("*", "D", "s", "P", "o", "^", "v")
# Two predictors have nearly the same accuracy: one mark is drawn inside the other.
_LOOK: Final[dict[str, dict[str, Any]]] = {
    "s": {"markersize": 8, "fillstyle": "none"},
    "P": {"markersize": 4},
}
_LOWEST: Final = 25


def caption_of(found: Sequence[Found]) -> str:
    """Return what stands beside the picture."""
    return (
        "Break-even precision by recall, one layer ahead, one user, LRU: above the line prefetch "
        "saves time (dotted: not resolved). Points: published accuracies, run as the dial of that "
        "accuracy. Blue pays, orange loses, grey is not resolved (95 % over "
        f"{len(found[0].plane.base)} seeds). [synthetic routing]: Mixtral's routing is drawn at "
        "random with measured hit rates. Costs assumed (datasheets); engine ideal, or with 12.2 ms "
        "of host time a layer (slow engine)."
    )


def predictor_chart(found: Sequence[Found], predictors: Sequence[Predictor]) -> Chart:
    """Return a panel for each place: its break-even line and the published predictors."""
    rows = -(-len(found) // _COLUMNS)
    chart = grid(
        "predictors",
        "Published predictors and break-even lines",
        caption_of(found),
        ("place", "predictor", "recall_pct", "precision_pct", "saved_pct", "low_pct", "high_pct"),
        shape=(rows, _COLUMNS),
        height_in=2.0 * rows + 0.5,
        note="blue: saves time; orange: costs time; grey: not resolved; simulated, costs assumed "
        "(datasheet); published accuracies",
        sharex=True,
        sharey=True,
    )
    places = [axes for line in chart.axes for axes in line]
    for axes, each in zip(places, found, strict=False):
        _panel(chart, axes, each, predictors)
    for axes in places[len(found) :]:
        axes.set_visible(False)
    for number, axes in enumerate(places[: len(found)]):
        axes.set_ylabel("" if number % _COLUMNS else "precision (%)")
        axes.set_xlabel("recall (%)" if number + _COLUMNS >= len(found) else "")
        axes.tick_params(labelbottom=number + _COLUMNS >= len(found))
    _legend(chart, predictors)
    return chart


def _panel(chart: Chart, axes: Axes, each: Found, predictors: Sequence[Predictor]) -> None:
    mark = "" if each.place.model == DEEPSEEK else " [synthetic routing]"
    axes.set_title(drawn(f"{each.place.name}{mark}", 34), fontsize=6.5)
    _line(axes, each.plane.borders)
    for predictor, marker in zip(predictors, _MARKERS, strict=True):
        saved = each.published[predictor.name]
        axes.plot(
            100 * predictor.recall, 100 * predictor.precision, marker=marker, linestyle="",
            color=_color(saved), clip_on=False, zorder=3, **_LOOK.get(marker, {"markersize": 5}),
        )  # fmt: skip
        ends = (None, None) if saved.half is None else (100 * saved.low, 100 * saved.high)
        chart.record(
            each.place.name, predictor.name, 100 * predictor.recall, 100 * predictor.precision,
            100 * saved.mean, *ends,
        )  # fmt: skip
    axes.set_xlim(45, 103)
    axes.set_ylim(_LOWEST, 103)


def _line(axes: Axes, borders: Sequence[Border]) -> None:
    """Draw the break-even line, or say on which side of all precisions it lies."""
    placed = [(border, border.mean) for border in borders if border.mean is not None]
    for (left, low), (right, high) in pairwise(placed):
        solid = left.claimed and right.claimed
        axes.plot(
            [100 * left.recall, 100 * right.recall], [100 * low, 100 * high], color="black",
            linestyle="-" if solid else (0, (1, 1.2)),
        )  # fmt: skip
    if all(border.fails_at is None for border in borders):
        axes.text(50, 76, "every accuracy of the grid pays", fontsize=6, style="italic")


def _color(saved: Estimate) -> str:
    if saved.low > 0:
        return _PAYS
    return _LOSES if saved.high < 0 else _OPEN


def _legend(chart: Chart, predictors: Sequence[Predictor]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [],
            [],
            marker=marker,
            linestyle="",
            color="#444444",
            label=drawn(each.name),
            **_LOOK.get(marker, {}),
        )
        for each, marker in zip(predictors, _MARKERS, strict=True)
    ]
    handles.append(Line2D([], [], color="black", label="break-even"))
    chart.figure.legend(handles=handles, loc="outside upper center", ncols=4, fontsize=6.5)
