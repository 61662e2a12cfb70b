"""Plots from Python: one panel of a chart, drawn into the caller's Axes.

The panels are those that `moesim run` and `moesim compare` save, drawn by the same functions. So
a plot from Python equals the command's. Without `ax`, a figure of pyplot is made, which a notebook
shows by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal

from moesim.config.suggest import suggest
from moesim.errors import UsageError, shown
from moesim.report.capacity import hit_rate_against_capacity
from moesim.report.chart import Chart, onto
from moesim.report.distribution import LATENCIES
from moesim.report.lanes import lane_timeline
from moesim.report.marks import routing_mark
from moesim.report.metrics import costs
from moesim.report.runs import Run
from moesim.report.single import hits_by_layer, latency_cdf, stall_breakdown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from moesim.report.comparison import Comparison

__all__ = ["ComparisonPlots", "RunPlots"]

_SIZE_IN: Final = (5.2, 3.4)
_SMALL: Final = 8.0
_LEGEND_COLUMNS: Final = 4
Latency = Literal["ttft", "tpot", "itl", "e2e"]


@dataclass(frozen=True, slots=True)
class RunPlots:
    """The plots of one run. Each method returns the Axes: `ax`, or those of a new figure."""

    _run: Run

    def latency(self, of: Latency = "ttft", ax: Axes | None = None) -> Axes:
        """Draw the share of requests (of gaps for `itl`) whose latency is at most x.

        Raises:
            UsageError: there is no latency `of`.
        """
        place = _place(of, list(LATENCIES), "latency")
        return self._drawn(latency_cdf, ax, *divmod(place, 2))

    def hits(self, ax: Axes | None = None) -> Axes:
        """Draw each layer's accesses as shares of hits, late hits and misses."""
        return self._drawn(hits_by_layer, ax)

    def stalls(self, by: Literal["cause", "layer"] = "cause", ax: Axes | None = None) -> Axes:
        """Draw the seconds of the GPU lane by cause, or its stalls by layer.

        Raises:
            UsageError: `by` is neither `cause` nor `layer`.
        """
        place = _place(by, ("cause", "layer"), "division of stalls")
        return self._drawn(stall_breakdown, ax, column=place)

    def lanes(self, ax: Axes | None = None) -> Axes:
        """Draw what each lane of the machine did in some steps from the middle of the run."""
        return self._drawn(lane_timeline, ax)

    def _drawn(
        self, chart: Callable[[Run], Chart], ax: Axes | None, row: int = 0, column: int = 0
    ) -> Axes:
        run = self._run
        source = "; ".join(filter(None, (routing_mark(run), costs(run))))
        return _drawn(partial(chart, run), source, ax, row, column)


@dataclass(frozen=True, slots=True)
class ComparisonPlots:
    """The plots of a comparison. Each method returns the Axes: `ax`, or those of a new figure.

    `setting` and `facet` are texts of the comparison's `settings` and `facets`; None is the first.
    """

    _comparison: Comparison

    def metric(
        self,
        key: str = "decode_mean_tokens_per_s",
        setting: str | None = None,
        ax: Axes | None = None,
    ) -> Axes:
        """Draw a headline metric of each variant, with intervals if there are several seeds.

        `key` is that of a metric in the chart `side_by_side`: by default the decode speed of one
        user; `output_tokens_per_s`, `hits`, …

        Raises:
            UsageError: the chart has no such metric or setting.
        """
        from moesim.report.several import side_by_side, side_by_side_metrics

        keys = [metric.key for metric in side_by_side_metrics(self._comparison)]
        column = _place(key, keys, "metric of this comparison")
        return self._of_setting(side_by_side, setting, ax, lambda row: (row, column), names=True)

    def throughput(self, setting: str | None = None, ax: Axes | None = None) -> Axes:
        """Draw the output tokens per second of each variant."""
        return self.metric("output_tokens_per_s", setting, ax)

    def latency(
        self,
        of: Literal["ttft", "tpot", "e2e"] = "ttft",
        setting: str | None = None,
        ax: Axes | None = None,
    ) -> Axes:
        """Draw the latency distributions of all variants, with the requests of all seeds.

        Raises:
            UsageError: there is no such latency or setting.
        """
        from moesim.report.several import latency_cdfs

        column = _place(of, ("ttft", "tpot", "e2e"), "latency")
        return self._of_setting(latency_cdfs, setting, ax, lambda row: (row, column))

    def stalls(self, setting: str | None = None, ax: Axes | None = None) -> Axes:
        """Draw one bar per variant: seconds of the GPU lane by what it did or waited for."""
        from moesim.report.several import stalls_side_by_side

        return self._of_setting(stalls_side_by_side, setting, ax, lambda row: (0, row), names=True)

    def hits(self, facet: str | None = None, ax: Axes | None = None) -> Axes:
        """Draw hits against slots per layer, with the bounds of MIN and of an infinite cache.

        Raises:
            UsageError: no variant was simulated with two sizes of the cache; or no such facet.
        """
        facets = self._comparison.facets
        place = 0 if facet is None else _place(facet, facets, "facet")
        columns = min(2, len(facets))
        chart = partial(hit_rate_against_capacity, self._comparison)
        return _drawn(chart, _source(self._comparison), ax, *divmod(place, columns))

    def _of_setting(
        self,
        chart: Callable[[Comparison], Chart],
        setting: str | None,
        ax: Axes | None,
        panel: Callable[[int], tuple[int, int]],
        *,
        names: bool = False,
    ) -> Axes:
        """Draw the panel of one setting; `names` labels the variants, as the first panel does."""
        from moesim.report.comparison import only_setting
        from moesim.report.panels import named

        settings = self._comparison.settings
        wanted = settings[0 if setting is None else _place(setting, settings, "setting")]
        chosen = only_setting(self._comparison, wanted)
        row, column = panel(0)
        axes = _drawn(partial(chart, chosen), _source(chosen), ax, row, column)
        if names:
            rows = chosen.within(wanted)
            axes.set_yticks(range(len(rows)), [named(row.label) for row in rows])
            axes.set_ylim(len(rows) - 0.5, -0.5)
        return axes


def _source(comparison: Comparison) -> str:
    """Return what the numbers of a comparison are: their marks, and where times come from."""
    return "; ".join(filter(None, (comparison.mark(), *dict.fromkeys(map(costs, comparison.runs)))))


def _drawn(
    chart: Callable[[], Chart | None],
    source: str,
    ax: Axes | None,
    row: int = 0,
    column: int = 0,
) -> Axes:
    """Draw one panel of a chart onto `ax`, or onto the Axes of a new figure, and return it.

    `source` says below the axis what the numbers are: a panel has no caption.
    """
    from moesim.report.style import house_style

    if ax is not None:
        _check_axes(ax)
    with house_style():
        axes = _new_axes() if ax is None else ax
        with onto(axes, row, column):
            made = chart()
        if made is None:
            if ax is None:
                _close(axes)
            raise UsageError(
                "no variant was simulated with two sizes of the cache: nothing to draw"
            )
        entries = len(axes.get_legend_handles_labels()[1]) if made.figure.legends else 0
        axes.set_xlabel(f"{axes.get_xlabel()}\n{source}", fontsize=_SMALL)
        if entries:  # the chart's own legend is in the chart's figure
            columns = min(entries, _LEGEND_COLUMNS)
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.25), ncols=columns, fontsize=7)
    return axes


def _new_axes() -> Axes:
    from matplotlib import pyplot

    _, axes = pyplot.subplots(figsize=_SIZE_IN, layout="constrained")
    return axes


def _check_axes(ax: object) -> None:
    """Raise UsageError unless `ax` is one rectangular Axes."""
    from matplotlib.axes import Axes

    if isinstance(ax, Axes) and ax.name == "rectilinear":
        return
    raise UsageError(
        f"ax must be one Axes of x and y, as pyplot.subplots() makes, not {shown(ax)}; of an array "
        "of Axes, give one element"
    )


def _close(axes: Axes) -> None:
    from matplotlib import pyplot

    pyplot.close(axes.figure)  # type: ignore[arg-type]


def _place(name: Any, names: Sequence[str], what: str) -> int:
    """Return the number of a name among those there are. Raise `UsageError` otherwise."""
    if name not in names:
        near = suggest(str(name), names)
        raise UsageError(f"there is no {what} {name!r}; there are {', '.join(names)}{near}")
    return list(names).index(name)
