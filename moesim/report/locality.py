"""Locality, shown: a table a domain, and how far back a request used the same expert last."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from moesim.report.chart import Chart, grid, mark_undefined, save_charts, write_csv
from moesim.report.metrics import number
from moesim.report.panels import shared_legend
from moesim.report.tabular import Table
from moesim.trace.locality import Distances, Locality, pooled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

__all__ = [
    "locality_remarks",
    "locality_table",
    "plots_for_locality",
    "temporal_distance",
    "write_locality",
]

COLORS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#332288")
MARKERS: Final = ("o", "s", "v", "^", "D", "P", "h")
MEASURES: Final = (
    "pairs", "uses", "same_top", "chance_top", "same_set", "chance_set", "overlap",
    "chance_overlap",
)  # fmt: skip
DASHED: Final[dict[str, Any]] = {"linestyle": (0, (4, 1.5)), "linewidth": 1}
UNNAMED: Final = "(unnamed)"


def locality_table(found: Sequence[Locality], reuse: Sequence[Distances]) -> Table:
    """One row a domain, its layers pooled, and one for all domains."""
    table = Table(
        "tokens that follow the token before them in their request (%; in brackets: by chance)",
        ["domain", "pairs x layers", "same top expert", "same set", "overlap",
         "median distance (tokens)", "first uses"],
    )  # fmt: skip
    for one in by_domain(found):
        distance = next((part for part in reuse if part.domain == one.domain), None)
        table.add(
            "all" if one.domain is None else one.domain or UNNAMED,
            str(one.pairs),
            _beside(one.same_top, one.chance_top),
            _beside(one.same_set, one.chance_set),
            _beside(one.overlap, one.chance_overlap),
            *_distances(distance),
        )
    return table


def locality_remarks() -> list[str]:
    """What a reader of the table must know."""
    return [
        "top: the expert with the largest gate weight; set: all experts of a token; overlap: the "
        "share of a token's experts that the token before it used",
        "pairs are consecutive tokens of one request, at each layer; chance: two independent "
        "tokens of the domain, by its popularity at each layer, pooled alike",
        "distance: tokens since the request last used the expert at that layer (in brackets: "
        "with the domain's tokens shuffled over its requests)",
    ]


def by_domain(found: Sequence[Locality]) -> list[Locality]:
    """Layers pooled for each domain, then everything where there are several domains."""
    domains = dict.fromkeys(one.domain for one in found)
    rows = [pooled([one for one in found if one.domain == name], name) for name in domains]
    return rows if len(rows) == 1 else [*rows, pooled(found)]


def write_locality(file: Path, found: Sequence[Locality]) -> None:
    """Write every domain at every layer as CSV, undefined as an empty field."""
    rows = [[one.domain, one.layer, *(getattr(one, name) for name in MEASURES)] for one in found]
    write_csv(file, ("domain", "layer", *MEASURES), rows)


def plots_for_locality(
    folder: Path, found: Sequence[Locality], reuse: Sequence[Distances], *, about: str
) -> None:
    """Draw the charts into `folder`, which they replace; `about` ends their captions."""
    save_charts(folder, [lambda: temporal_distance(found, reuse, about=about)])


def temporal_distance(
    found: Sequence[Locality], reuse: Sequence[Distances], *, about: str
) -> Chart:
    """Cumulative distances of each domain beside the shuffled, and overlap over layers."""
    from matplotlib.ticker import MaxNLocator

    shown = reuse[: len(COLORS)]
    chart = grid(
        "temporal_distance",
        "Temporal distance between uses of an expert",
        "Left: share of a domain's uses of experts that come at most so many tokens after the "
        "same request last used the expert at the same layer; first uses never do. Dashed: "
        "the domain's tokens shuffled over its requests. Right: share of a token's experts that "
        "the token before it used, by layer; dashed: two independent tokens of the domain. "
        f"{'' if len(shown) == len(reuse) else f'{len(shown)} of {len(reuse)} domains drawn. '}"
        f"{about}",
        ("domain", "distance_tokens", "uses", "share", "null_uses", "null_share"),
        shape=(1, 2),
        height_in=2.7,
    )
    near, layers = chart.axes[0]
    for one, color, marker in zip(shown, COLORS, MARKERS, strict=False):
        look = {"color": color, "marker": marker}
        _cumulative(near, one, look)
        _over_layers(layers, [part for part in found if part.domain == one.domain], look)
    for one in reuse:
        _record(chart, one)
    near.set_xlabel("distance to the last use (tokens)")
    near.set_ylabel("uses at this distance or less (%)")
    layers.set_xlabel("layer")
    layers.set_ylabel("overlap with the token before (%)")
    layers.set_xlim(-0.5, max(one.layer or 0 for one in found) + 0.5)
    layers.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    layers.set_ylim(0, 100)
    if near.lines:
        near.set_ylim(top=100)
        near.set_xscale("log", base=2)
        near.xaxis.set_major_formatter("{x:g}")
    else:
        mark_undefined(near, "no expert is used twice in a request")
    shared_legend(chart, wide=True)
    return chart


def _cumulative(axes: Axes, one: Distances, look: dict[str, Any]) -> None:
    distance = np.arange(1, len(one.counts))
    if not one.counts.any():
        return
    axes.plot(
        distance, 100 * _shares(one, one.counts), label=one.domain or UNNAMED, markersize=3,
        markevery=_spread(len(distance)), **look,
    )  # fmt: skip
    axes.plot(distance, 100 * _shares(one, one.null_counts), color=look["color"], **DASHED)


def _over_layers(axes: Axes, parts: Sequence[Locality], look: dict[str, Any]) -> None:
    layers = [float(one.layer or 0) for one in parts]
    axes.plot(layers, [100 * one.overlap for one in parts], markersize=3, **look)
    axes.plot(layers, [100 * one.chance_overlap for one in parts], color=look["color"], **DASHED)


def _record(chart: Chart, one: Distances) -> None:
    shares, null = _shares(one, one.counts), _shares(one, one.null_counts)
    for distance in range(1, len(one.counts)):
        chart.record(
            one.domain, distance, int(one.counts[distance]), float(shares[distance - 1]),
            float(one.null_counts[distance]), float(null[distance - 1]),
        )  # fmt: skip


def _shares(one: Distances, counts: NDArray[Any]) -> NDArray[np.float64]:
    """Share of all uses at a distance of 1, 2, … or less."""
    return np.asarray(np.cumsum(counts[1:]) / max(1, one.uses))


def _spread(count: int) -> list[int]:
    """Places of markers that lie evenly on a logarithmic axis."""
    return sorted({round(2**step) - 1 for step in range(30) if 2**step <= count})


def _distances(one: Distances | None) -> tuple[str, str]:
    if one is None:
        return "", ""
    return f"{number(one.median)} ({number(one.null_median)})", f"{100 * one.first_uses:.1f}"


def _beside(share: float, chance: float) -> str:
    if math.isnan(share):
        return number(share)
    return f"{100 * share:.1f} ({100 * chance:.1f})"
