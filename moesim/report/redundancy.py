"""Redundancy of layer-wise routers, shown: a table, and the two plots of Read-ME's Figure 2.

The figure's left half is the transition matrix of two adjacent layers, here beside that of the
shuffled null; its right half is the mutual information of every two, here beside its limits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from moesim.report.chart import Chart, grid, mark_undefined, save_charts, write_csv
from moesim.report.metrics import number
from moesim.report.panels import shared_legend
from moesim.report.tabular import Table
from moesim.streams import stream
from moesim.trace.redundancy import DENSE, Redundancy, Transition, Transitions, sparse_pairs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from moesim.trace.choices import Choices

__all__ = [
    "mutual_information",
    "plots_for_redundancy",
    "redundancy_table",
    "remarks",
    "transition_matrix",
    "write_redundancy",
]

MOST_STATES: Final = 28
"""States of one axis: all pairs of eight experts."""

LIMIT: Final[dict[str, Any]] = {"color": "#000000", "linestyle": (0, (5, 2)), "marker": "_"}
PLUGIN: Final[dict[str, Any]] = {"color": "#E69F00", "linewidth": 5, "alpha": 0.45, "marker": "s"}
MILLER_MADOW: Final[dict[str, Any]] = {
    "color": "#009E73",
    "linestyle": (0, (1, 1.2)),
    "marker": ".",
}
CORRECTED: Final[dict[str, Any]] = {"color": "#0072B2", "marker": "o", "markersize": 3}
ADJUSTED: Final[dict[str, Any]] = {"color": "#CC79A7", "marker": "^", "markersize": 3}
NULL: Final[dict[str, Any]] = {"color": "#8C8C8C", "marker": "X", "markersize": 3, "linewidth": 1}

PAIR: Final = ("layer_before", "layer")
MEASURES: Final = (
    "tokens", "states_before", "states_after", "cells", "tokens_per_cell", "entropy_bits",
    "plugin_bits", "miller_madow_bits", "null_bits", "null_spread_bits", "corrected_bits",
    "normalised", "adjusted",
)  # fmt: skip
LIKELIEST: Final = (
    "likeliest_before", "likeliest_after", "likeliest_probability", "likeliest_tokens",
)  # fmt: skip


def redundancy_table(found: Sequence[Redundancy]) -> Table:
    """One row a pair of adjacent layers; information in bits a token."""
    table = Table(
        "mutual information of adjacent layers' choices (bits)",
        ["layers", "H(S(l))", "plug-in", "Miller-Madow", "null", "plug-in - null", "I/H (%)",
         "adjusted (%)", "tokens/cell", "likeliest transition"],
    )  # fmt: skip
    for one in found:
        table.add(
            f"{one.layer - 1} -> {one.layer}",
            f"{one.entropy_bits:.3f}",
            f"{one.plugin_bits:.3f}",
            f"{one.miller_madow_bits:.3f}",
            f"{one.null_bits:.3f} ± {one.null_spread_bits:.3f}",
            f"{one.corrected_bits:.3f}",
            _percent(one.normalised),
            _percent(one.adjusted),
            number(round(one.tokens_per_cell, 1)),
            _told(one.likeliest),
        )
    return table


def remarks(found: Sequence[Redundancy], min_count: int) -> list[str]:
    """What a reader of the table must know."""
    notes = [
        "null: the plug-in with S(l-1) shuffled over the tokens (mean ± standard deviation); "
        "the plug-in's bias, were the layers independent",
        "adjusted: (plug-in - null) / (H - null), 0 by chance and 100 where the next layer is "
        "determined",
        f"likeliest: the largest P(S(l) | S(l-1)) among states before with {min_count} tokens "
        "or more",
    ]
    if sparse := sparse_pairs(found):
        notes.append(
            f"{sparse} of {len(found)} pairs have fewer than {DENSE:g} tokens in an occupied cell: "
            "no estimate there can be trusted, not the corrected ones either; "
            "look at top experts (--state top), whose states are fewer, or record more tokens"
        )
    return notes


def write_redundancy(file: Path, found: Sequence[Redundancy]) -> None:
    """Write the table as CSV, a row a pair of layers, undefined as an empty field."""
    write_csv(file, (*PAIR, *MEASURES, *LIKELIEST), [_row(one) for one in found])


def plots_for_redundancy(
    folder: Path, found: Sequence[Redundancy], pair: Transitions, *, about: str, seed: int
) -> None:
    """Draw both charts into `folder`, which they replace; `about` ends their captions."""
    makers = (
        partial(transition_matrix, pair, about=about, seed=seed),
        partial(mutual_information, found, about=about),
    )
    save_charts(folder, makers)


def transition_matrix(pair: Transitions, *, about: str, seed: int) -> Chart:
    """Heat maps of P(S(l) | S(l-1)), measured and with S(l-1) shuffled, the most frequent first."""
    null = pair.shuffled(stream(seed, "redundancy.null", pair.layer, 0))
    rows, columns = _shown(pair.before), _shown(pair.after)
    chart = grid(
        "transition_matrix",
        "Transitions between two adjacent layers",
        f"How the choice at layer {pair.layer} follows that at layer {pair.layer - 1}: as recorded "
        f"(left), and with the choices at layer {pair.layer - 1} shuffled over the tokens (right). "
        f"{_coverage(pair.layer - 1, 'rows', pair.before)} "
        f"{_coverage(pair.layer, 'columns', pair.after)} White: never. {about}",
        ("which", "state_before", "state_after", "probability", "tokens_before"),
        shape=(1, 2),
        height_in=1.3 + 2.9 * max(8, rows) / MOST_STATES,
        sharey=True,
    )
    recorded, chance = pair.matrix(MOST_STATES), null.matrix(MOST_STATES)
    top = 100 * max(recorded.max(), chance.max())
    image: Any = None
    for axes, name, matrix in zip(
        chart.axes[0], ("recorded", "shuffled"), (recorded, chance), strict=True
    ):
        image = _heat_map(axes, 100 * matrix, top)
        axes.set_title(name)
        axes.set_xticks(range(columns), _names(pair.after)[:columns], rotation=90, fontsize=5.5)
        axes.set_yticks(range(rows), _names(pair.before)[:rows], fontsize=5.5)
        axes.set_xlabel(f"experts at layer {pair.layer}")
        _record(chart, name, matrix, pair)
    chart.axes[0][0].set_ylabel(f"experts at layer {pair.layer - 1}")
    bar = chart.figure.colorbar(image, ax=chart.axes[0], fraction=0.035, pad=0.015)
    bar.set_label(f"P(layer {pair.layer} | layer {pair.layer - 1}) (%)")
    return chart


def mutual_information(found: Sequence[Redundancy], *, about: str) -> Chart:
    """Bits over layers with null and limit, and beside it the share of the limit."""
    from matplotlib.ticker import MaxNLocator

    chart = grid(
        "mutual_information",
        "Mutual information of adjacent layers",
        "What the choice at layer l-1 tells of that at layer l. Left: the entropy H(S(l)) is the "
        "upper limit; null is the plug-in with S(l-1) shuffled (band: ± 2 standard deviations). "
        "Right: plug-in as a share of H, and adjusted for chance, (plug-in - null) / (H - null). "
        f"{about}",
        (*PAIR, *MEASURES),
        shape=(1, 2),
        height_in=2.6,
    )
    for one in found:
        chart.record(*_measures(one))
    bits, shares = chart.axes[0]
    _bits(bits, found)
    _shares(shares, found)
    for axes in (bits, shares):
        axes.set_xlabel("layer l (l-1 is the layer before it)")
        axes.set_xlim(found[0].layer - 0.5, found[-1].layer + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    shared_legend(chart, wide=True)
    return chart


def state_name(state: Sequence[int]) -> str:
    """A set of experts as people write it: {3,5}."""
    return "{" + ",".join(map(str, state)) + "}"


def _measures(one: Redundancy) -> list[Any]:
    return [one.layer - 1, one.layer, *(getattr(one, name) for name in MEASURES)]


def _row(one: Redundancy) -> list[Any]:
    best = one.likeliest
    if best is None:
        return [*_measures(one), None, None, None, None]
    names = state_name(best.before), state_name(best.after)
    return [*_measures(one), *names, best.probability, best.tokens]


def _percent(share: float) -> str:
    return number(share) if math.isnan(share) else f"{100 * share:.1f}"


def _told(best: Transition | None) -> str:
    if best is None:
        return "none seen so often"
    return (
        f"{state_name(best.before)} -> {state_name(best.after)} "
        f"{best.probability:.0%} of {best.tokens}"
    )


def _shown(states: Choices) -> int:
    return min(MOST_STATES, len(states.states))


def _names(states: Choices) -> list[str]:
    return [state_name(state) for state in states.states[:MOST_STATES]]


def _coverage(layer: int, where: str, states: Choices) -> str:
    shown = _shown(states)
    share = states.counts[:shown].sum() / len(states.codes)
    which = "all" if shown == len(states.states) else f"the {shown} most frequent of"
    return (
        f"The {where} are {which} {len(states.states)} states of layer {layer} "
        f"({share:.0%} of tokens)."
    )


def _heat_map(axes: Axes, percent: NDArray[np.float64], top: float) -> Any:
    from matplotlib.colors import Normalize

    image = axes.imshow(
        np.ma.masked_equal(percent, 0), cmap="YlGnBu", norm=Normalize(0, top), aspect="auto"
    )
    axes.grid(False)
    return image


def _record(chart: Chart, name: str, matrix: NDArray[np.float64], pair: Transitions) -> None:
    columns = _names(pair.after)
    for row, (before, tokens) in enumerate(
        zip(_names(pair.before), pair.before.counts, strict=False)
    ):
        for column, after in enumerate(columns):
            chart.record(name, before, after, float(matrix[row, column]), int(tokens))


def _bits(axes: Axes, found: Sequence[Redundancy]) -> None:
    layers = [one.layer for one in found]
    null = np.array([one.null_bits for one in found])
    spread = 2 * np.array([one.null_spread_bits for one in found])
    for label, values, look in (
        ("H(S(l)), the limit", [one.entropy_bits for one in found], LIMIT),
        ("plug-in", [one.plugin_bits for one in found], PLUGIN),
        ("Miller-Madow", [one.miller_madow_bits for one in found], MILLER_MADOW),
        ("plug-in - null", [one.corrected_bits for one in found], CORRECTED),
        ("null", null, NULL),
    ):
        axes.plot(layers, values, label=label, **look)
    axes.fill_between(layers, null - spread, null + spread, color=NULL["color"], alpha=0.25, lw=0)
    axes.set_ylabel("information (bits a token)")


def _shares(axes: Axes, found: Sequence[Redundancy]) -> None:
    layers = [one.layer for one in found]
    if all(math.isnan(one.normalised) for one in found):
        mark_undefined(axes, "every layer always chooses the same")
        return
    axes.plot(layers, [100 * one.normalised for one in found], **PLUGIN)
    axes.plot(layers, [100 * one.adjusted for one in found], label="adjusted", **ADJUSTED)
    axes.set_ylim(0, 105)
    axes.set_ylabel("share of H(S(l)) (%)")
