"""The report of the redundancy of layer-wise routers: a table and the two plots of Figure 2 in
Read-ME (Cai et al., NeurIPS 2024).

The figure's left half is the transition matrix of two adjacent layers; here the matrix of shuffled
choices stands beside it. The right half is the mutual information of all adjacent layers; here
with its upper limit and its value by chance.
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
from moesim.report.style import BLACK, BLUE, GREEN, GREY
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
    "redundancy_records",
    "redundancy_table",
    "remarks",
    "transition_matrix",
    "write_redundancy",
]

MOST_STATES: Final = 28
"""States of one axis: all pairs of eight experts."""


LIMIT: Final[dict[str, Any]] = {"color": BLACK, "linestyle": (0, (5, 2)), "marker": "_"}
# Broad and pale, so that estimates that coincide with it stay visible.
PLUGIN: Final[dict[str, Any]] = {"color": "#E69F00", "linewidth": 5, "alpha": 0.45, "marker": "s"}
MILLER_MADOW: Final[dict[str, Any]] = {
    "color": GREEN,
    "linestyle": (0, (1, 1.2)),
    "marker": ".",
}
CORRECTED: Final[dict[str, Any]] = {"color": BLUE, "marker": "o", "markersize": 3}
ADJUSTED: Final[dict[str, Any]] = {"color": "#CC79A7", "marker": "^", "markersize": 3}
NULL: Final[dict[str, Any]] = {"color": GREY, "marker": "X", "markersize": 3, "linewidth": 1}

PAIR: Final = ("layer_before", "layer")
MEASURES: Final = (
    "tokens", "states_before", "states_after", "cells", "tokens_per_cell", "entropy_bits",
    "plugin_bits", "miller_madow_bits", "null_bits", "null_spread_bits", "corrected_bits",
    "normalised", "adjusted",
)  # fmt: skip
LIKELIEST: Final = (
    "likeliest_before", "likeliest_after", "likeliest_probability", "likeliest_tokens",
)  # fmt: skip
COLUMNS: Final = (*PAIR, *MEASURES, *LIKELIEST)


def redundancy_table(pairs: Sequence[Redundancy]) -> Table:
    """Return a table with one row per pair of adjacent layers; information in bits per token."""
    table = Table(
        "mutual information of adjacent layers' choices (bits)",
        ["layers", "H(S(l))", "plug-in", "Miller-Madow", "null", "plug-in - null", "I/H (%)",
         "adjusted (%)", "tokens/cell", "likeliest transition"],
    )  # fmt: skip
    for pair in pairs:
        table.add(
            f"{pair.layer - 1} -> {pair.layer}",
            f"{pair.entropy_bits:.3f}",
            f"{pair.plugin_bits:.3f}",
            f"{pair.miller_madow_bits:.3f}",
            f"{pair.null_bits:.3f} ± {pair.null_spread_bits:.3f}",
            f"{pair.corrected_bits:.3f}",
            _percent(pair.normalised),
            _percent(pair.adjusted),
            number(round(pair.tokens_per_cell, 1)),
            _transition(pair.likeliest),
        )
    return table


def remarks(pairs: Sequence[Redundancy], min_count: int) -> list[str]:
    """Return the notes that readers of the table need; `min_count` as given to the measurement."""
    notes = [
        "null: the plug-in with S(l-1) shuffled over the tokens (mean ± standard deviation); "
        "this is the plug-in's bias if the layers were independent",
        "adjusted: (plug-in - null) / (H - null); 0 by chance, and 100 if layer l-1 determines "
        "layer l",
        f"likeliest: the largest P(S(l) | S(l-1)) among states at layer l-1 with at least "
        f"{min_count} tokens",
    ]
    if sparse := sparse_pairs(pairs):
        notes.append(
            f"{sparse} of {len(pairs)} pairs have fewer than {DENSE:g} tokens in an occupied cell: "
            "there all estimates are unreliable, the corrected ones too; "
            "use the top experts (--state top), which have fewer states, or record more tokens"
        )
    return notes


def write_redundancy(file: Path, pairs: Sequence[Redundancy]) -> None:
    """Write the table as CSV, one row per pair of layers, undefined as an empty field.

    Raises:
        OutputError: the file cannot be written.
    """
    write_csv(file, COLUMNS, [_row(pair) for pair in pairs])


def redundancy_records(pairs: Sequence[Redundancy]) -> list[dict[str, Any]]:
    """Return the rows of the CSV file as plain data; undefined is NaN or None."""
    return [dict(zip(COLUMNS, _row(pair), strict=True)) for pair in pairs]


def plots_for_redundancy(
    folder: Path, pairs: Sequence[Redundancy], pair: Transitions, *, about: str, seed: int
) -> None:
    """Draw both charts into `folder`, whose content they replace; `about` ends their captions.

    Raises:
        OutputError: the folder cannot be written.
    """
    makers = (
        partial(transition_matrix, pair, about=about, seed=seed),
        partial(mutual_information, pairs, about=about),
    )
    save_charts(folder, makers)


def transition_matrix(pair: Transitions, *, about: str, seed: int) -> Chart:
    """Draw heat maps of P(S(l) | S(l-1)), recorded and with S(l-1) shuffled.

    The most frequent states come first; `seed` is that of the shuffle.
    """
    null = pair.shuffled(stream(seed, "redundancy.null", pair.layer, 0))
    rows, columns = _shown(pair.before), _shown(pair.after)
    chart = grid(
        "transition_matrix",
        "Transitions between two adjacent layers",
        f"Probability of each choice at layer {pair.layer}, given the choice at layer "
        f"{pair.layer - 1}. Left: as recorded. Right: with the choices at layer {pair.layer - 1} "
        "shuffled over the tokens. "
        f"{_coverage(pair.layer - 1, 'rows', pair.before)} "
        f"{_coverage(pair.layer, 'columns', pair.after)} White: never. {about}",
        ("which", "state_before", "state_after", "probability", "tokens_before"),
        shape=(1, 2),
        height_in=1.3 + 2.9 * max(8, rows) / MOST_STATES,
        note=about,
        sharey=True,
    )
    recorded, chance = pair.matrix(MOST_STATES), null.matrix(MOST_STATES)
    # One scale for both maps: each on its own would make chance look as strong as structure.
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


def mutual_information(pairs: Sequence[Redundancy], *, about: str) -> Chart:
    """Draw the information in bits over layers with null and limit, and its share of the limit."""
    from matplotlib.ticker import MaxNLocator

    chart = grid(
        "mutual_information",
        "Mutual information of adjacent layers",
        "Information about the choice at layer l in the choice at layer l-1. Left: in bits. The "
        "entropy H(S(l)) is the upper limit; null is the plug-in with S(l-1) shuffled (band: ± 2 "
        "standard deviations). Right: plug-in as a share of H, and adjusted for chance, "
        "(plug-in - null) / (H - null). "
        f"{about}",
        (*PAIR, *MEASURES),
        shape=(1, 2),
        height_in=2.6,
        note=about,
    )
    for pair in pairs:
        chart.record(*_measures(pair))
    bits, shares = chart.axes[0]
    _bits(bits, pairs)
    _shares(shares, pairs)
    for axes in (bits, shares):
        axes.set_xlabel("layer l (l-1 is the layer before it)")
        axes.set_xlim(pairs[0].layer - 0.5, pairs[-1].layer + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        # From zero, or from below it: corrected estimates can be negative.
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    shared_legend(chart, wide=True)
    return chart


def state_name(state: Sequence[int]) -> str:
    """Return a set of experts as text: {3,5}."""
    return "{" + ",".join(map(str, state)) + "}"


def _measures(pair: Redundancy) -> list[Any]:
    return [pair.layer - 1, pair.layer, *(getattr(pair, name) for name in MEASURES)]


def _row(pair: Redundancy) -> list[Any]:
    best = pair.likeliest
    if best is None:
        return [*_measures(pair), None, None, None, None]
    names = state_name(best.before), state_name(best.after)
    return [*_measures(pair), *names, best.probability, best.tokens]


def _percent(share: float) -> str:
    return number(share) if math.isnan(share) else f"{100 * share:.1f}"


def _transition(best: Transition | None) -> str:
    if best is None:
        return "too few tokens"
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
    # The map may show only the most frequent states; the caption says how many tokens have them.
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


def _bits(axes: Axes, pairs: Sequence[Redundancy]) -> None:
    layers = [pair.layer for pair in pairs]
    null = np.array([pair.null_bits for pair in pairs])
    spread = 2 * np.array([pair.null_spread_bits for pair in pairs])
    for label, values, look in (
        ("H(S(l)), the limit", [pair.entropy_bits for pair in pairs], LIMIT),
        ("plug-in", [pair.plugin_bits for pair in pairs], PLUGIN),
        ("Miller-Madow", [pair.miller_madow_bits for pair in pairs], MILLER_MADOW),
        ("plug-in - null", [pair.corrected_bits for pair in pairs], CORRECTED),
        ("null", null, NULL),
    ):
        axes.plot(layers, values, label=label, **look)
    axes.fill_between(layers, null - spread, null + spread, color=NULL["color"], alpha=0.25, lw=0)
    axes.set_ylabel("information (bits per token)")


def _shares(axes: Axes, pairs: Sequence[Redundancy]) -> None:
    layers = [pair.layer for pair in pairs]
    if all(math.isnan(pair.normalised) for pair in pairs):
        mark_undefined(axes, "every layer always makes the same choice")
        return
    # Without a label: the left panel gives the plug-in its legend entry.
    axes.plot(layers, [100 * pair.normalised for pair in pairs], **PLUGIN)
    axes.plot(layers, [100 * pair.adjusted for pair in pairs], label="adjusted", **ADJUSTED)
    axes.set_ylim(0, 105)
    axes.set_ylabel("share of H(S(l)) (%)")
