"""The report of temporal locality: how often consecutive tokens of a request share experts, and
how many tokens lie between two uses of an expert."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from moesim.report.chart import Chart, grid, mark_undefined, save_charts, write_csv
from moesim.report.metrics import number
from moesim.report.panels import shared_legend
from moesim.report.style import BLUE, GREEN, ORANGE
from moesim.report.tabular import Table
from moesim.trace.locality import Distances, Locality, pooled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

__all__ = [
    "locality_records",
    "locality_remarks",
    "locality_table",
    "plots_for_locality",
    "temporal_distance",
    "write_locality",
]

COLORS: Final = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#332288")
MARKERS: Final = ("o", "s", "v", "^", "D", "P", "h")
MEASURES: Final = (
    "pairs", "uses", "same_top", "chance_top", "same_set", "chance_set", "overlap",
    "chance_overlap",
)  # fmt: skip
DASHED: Final[dict[str, Any]] = {"linestyle": (0, (4, 1.5)), "linewidth": 1}
UNNAMED: Final = "(unnamed)"


def locality_table(parts: Sequence[Locality], reuse: Sequence[Distances]) -> Table:
    """Return a table with one row per domain, its layers pooled, and a row for all domains.

    Shares are in %, with the value by chance in brackets; distances are in tokens.
    """
    table = Table(
        "experts shared with the token before (%; in brackets: by chance)",
        ["domain", "pairs x layers", "same top expert", "same set", "overlap",
         "median distance (tokens)", "first uses"],
    )  # fmt: skip
    for row, distance in _with_distances(parts, reuse):
        table.add(
            "all" if row.domain is None else row.domain or UNNAMED,
            str(row.pairs),
            _with_chance(row.same_top, row.chance_top),
            _with_chance(row.same_set, row.chance_set),
            _with_chance(row.overlap, row.chance_overlap),
            *_distances(distance),
        )
    return table


def locality_records(
    parts: Sequence[Locality], reuse: Sequence[Distances]
) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of the table (`by_domain`) and of the CSV file (`by_layer`) as plain data.

    Shares are 0 to 1, and undefined is NaN. `domain` is None for all domains together.
    """
    domains = []
    for row, distance in _with_distances(parts, reuse):
        record = {"domain": row.domain, **_measures(row)}
        if distance is not None:
            record |= {
                "median_distance_tokens": distance.median,
                "null_median_distance_tokens": distance.null_median,
                "first_uses": distance.first_uses,
            }
        domains.append(record)
    layers = [{"domain": part.domain, "layer": part.layer, **_measures(part)} for part in parts]
    return {"by_domain": domains, "by_layer": layers}


def locality_remarks() -> list[str]:
    """Return the notes that readers of the table need."""
    return [
        "top: the expert with the largest gate weight; set: all experts of a token; overlap: the "
        "share of a token's experts that the token before it used",
        "pairs: consecutive tokens of one request, at each layer; chance: two independent tokens "
        "of the domain, from the popularity of experts at each layer, pooled alike",
        "distance: tokens since the request last used the expert at that layer (in brackets: "
        "with the domain's tokens shuffled over its requests)",
    ]


def by_domain(parts: Sequence[Locality]) -> list[Locality]:
    """Return one entry per domain, its layers pooled, and one for all if there are several."""
    domains = dict.fromkeys(part.domain for part in parts)
    rows = [pooled([part for part in parts if part.domain == name], name) for name in domains]
    return rows if len(rows) == 1 else [*rows, pooled(parts)]


def _with_distances(
    parts: Sequence[Locality], reuse: Sequence[Distances]
) -> list[tuple[Locality, Distances | None]]:
    """Return each row of `by_domain` with the distances of its domain; all domains have none."""
    distances: dict[str | None, Distances] = {part.domain: part for part in reuse}
    return [(row, distances.get(row.domain)) for row in by_domain(parts)]


def _measures(part: Locality) -> dict[str, Any]:
    return {name: getattr(part, name) for name in MEASURES}


def write_locality(file: Path, parts: Sequence[Locality]) -> None:
    """Write every domain at every layer as CSV, undefined as an empty field.

    Raises:
        OutputError: the file cannot be written.
    """
    rows = [[part.domain, part.layer, *_measures(part).values()] for part in parts]
    write_csv(file, ("domain", "layer", *MEASURES), rows)


def plots_for_locality(
    folder: Path, parts: Sequence[Locality], reuse: Sequence[Distances], *, about: str
) -> None:
    """Draw the charts into `folder`, whose content they replace; `about` ends their captions.

    Raises:
        OutputError: the folder cannot be written.
    """
    save_charts(folder, [lambda: temporal_distance(parts, reuse, about=about)])


def temporal_distance(
    parts: Sequence[Locality], reuse: Sequence[Distances], *, about: str
) -> Chart:
    """Draw each domain's cumulative distances, recorded and shuffled, and its overlap by layer."""
    from matplotlib.ticker import MaxNLocator

    # More domains than colours could not be told apart.
    shown = reuse[: len(COLORS)]
    chart = grid(
        "temporal_distance",
        "Temporal distance between uses of an expert",
        "Left: share of a domain's uses of experts within a distance, in tokens, of the request's "
        "last use of the same expert at the same layer; first uses have no distance. Dashed: the "
        "domain's tokens shuffled over its requests. Right: share of a token's experts that the "
        "token before it used, by layer. Dashed: two independent tokens of the domain. "
        f"{'' if len(shown) == len(reuse) else f'{len(shown)} of {len(reuse)} domains drawn. '}"
        f"{about}",
        ("domain", "distance_tokens", "uses", "share", "null_uses", "null_share"),
        shape=(1, 2),
        height_in=2.7,
        note=about,
    )
    near, layers = chart.axes[0]
    for domain, color, marker in zip(shown, COLORS, MARKERS, strict=False):
        look = {"color": color, "marker": marker}
        _cumulative(near, domain, look)
        _over_layers(layers, [part for part in parts if part.domain == domain.domain], look)
    for domain in reuse:
        _record(chart, domain)
    near.set_xlabel("distance to the last use (tokens)")
    near.set_ylabel("uses at this distance or less (%)")
    layers.set_xlabel("layer")
    layers.set_ylabel("overlap with the token before (%)")
    layers.set_xlim(-0.5, max(part.layer or 0 for part in parts) + 0.5)
    layers.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    layers.set_ylim(0, 100)
    # Distances range from one token to a whole request, and most of them are short.
    if near.lines:
        near.set_ylim(top=100)
        near.set_xscale("log", base=2)
        near.xaxis.set_major_formatter("{x:g}")
    else:
        mark_undefined(near, "no expert is used twice in a request")
    shared_legend(chart, wide=True)
    return chart


def _cumulative(axes: Axes, domain: Distances, look: dict[str, Any]) -> None:
    distance = np.arange(1, len(domain.counts))
    if not domain.counts.any():
        return
    axes.plot(
        distance, 100 * _shares(domain, domain.counts), label=domain.domain or UNNAMED,
        markersize=3, markevery=_spread(len(distance)), **look,
    )  # fmt: skip
    axes.plot(distance, 100 * _shares(domain, domain.null_counts), color=look["color"], **DASHED)


def _over_layers(axes: Axes, parts: Sequence[Locality], look: dict[str, Any]) -> None:
    layers = [float(part.layer or 0) for part in parts]
    axes.plot(layers, [100 * part.overlap for part in parts], markersize=3, **look)
    axes.plot(layers, [100 * part.chance_overlap for part in parts], color=look["color"], **DASHED)


def _record(chart: Chart, domain: Distances) -> None:
    shares, null = _shares(domain, domain.counts), _shares(domain, domain.null_counts)
    for distance in range(1, len(domain.counts)):
        chart.record(
            domain.domain, distance, int(domain.counts[distance]), float(shares[distance - 1]),
            float(domain.null_counts[distance]), float(null[distance - 1]),
        )  # fmt: skip


def _shares(domain: Distances, counts: NDArray[Any]) -> NDArray[np.float64]:
    """Return the shares of all uses at a distance of at most 1, 2, … tokens."""
    # Of all uses, first uses too, so the curve ends below 100 % by their share.
    return np.asarray(np.cumsum(counts[1:]) / max(1, domain.uses))


def _spread(count: int) -> list[int]:
    """Return places for markers that lie evenly on a logarithmic axis."""
    # Distances start at 1, so the distance 2 ** step has place 2 ** step - 1.
    return sorted({round(2**step) - 1 for step in range(30) if 2**step <= count})


def _distances(domain: Distances | None) -> tuple[str, str]:
    if domain is None:
        return "", ""
    median = f"{number(domain.median)} ({number(domain.null_median)})"
    return median, f"{100 * domain.first_uses:.1f}"


def _with_chance(share: float, chance: float) -> str:
    if math.isnan(share):
        return number(share)
    return f"{100 * share:.1f} ({100 * chance:.1f})"
