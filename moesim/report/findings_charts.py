"""What a trace's routing is like, in charts and as a table of its layers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final

from moesim.report.chart import Chart, grid, mark_undefined, save_charts, write_csv
from moesim.report.findings import SLOTS
from moesim.report.panels import shared_legend
from moesim.report.style import BLUE, GREEN, GREY, ORANGE
from moesim.trace.findings import Findings

__all__ = ["plots_for_findings", "write_layers"]

_DASHED: Final[dict[str, Any]] = {"linestyle": (0, (4, 1.5)), "linewidth": 1}
_COLUMNS: Final = (
    "layer", "uses", "entropy_bits", "effective", "skew", "idle", "variation", "overlap",
    "chance_overlap", "same_ids", "chance_same_ids",
)  # fmt: skip


def write_layers(file: Path, found: Findings) -> None:
    """Write the measures of each layer as CSV. Raise `OutputError` where that fails."""
    write_csv(file, _COLUMNS, [[getattr(one, name) for name in _COLUMNS] for one in found.layers])


def plots_for_findings(folder: Path, found: Findings, *, about: str) -> None:
    """Draw the charts into `folder`, whose content they replace; `about` ends their captions.

    Raises:
        OutputError: the folder cannot be written.
    """
    save_charts(
        folder,
        [
            lambda: _draw_layers(found, about),
            lambda: _draw_reuse(found, about),
            lambda: _draw_unions(found, about),
            lambda: _draw_recall(found, about),
        ],
    )


def _draw_layers(found: Findings, about: str) -> Chart:
    chart = grid(
        "layers",
        "Popularity and overlap by layer",
        "Left: entropy of the experts' shares, in bits; dashed: its maximum. Middle: uses of the "
        "most popular expert over the mean. Right: share of a token's experts that the token "
        f"before it used; dashed: two tokens of the same domain by chance. {about}",
        _COLUMNS,
        shape=(1, 3),
        height_in=2.4,
        note=about,
    )
    entropy, skew, overlap = chart.axes[0]
    layers = [one.layer for one in found.layers]
    entropy.plot(layers, [one.entropy_bits for one in found.layers], color=BLUE, marker=".")
    entropy.axhline(math.log2(max(found.experts, 2)), color=GREY, **_DASHED)
    entropy.set_ylabel("entropy (bits)")
    entropy.set_ylim(bottom=0)
    skew.plot(layers, [one.skew for one in found.layers], color=ORANGE, marker=".")
    skew.set_ylabel("most popular / mean")
    skew.set_ylim(bottom=0)
    own = [100 * one.overlap for one in found.layers]
    overlap.plot(layers, own, color=GREEN, marker=".")
    chance = [100 * one.chance_overlap for one in found.layers]
    overlap.plot(layers, chance, color=GREY, **_DASHED)
    overlap.set_ylabel("token overlap (%)")
    overlap.set_ylim(0, 100)
    for axes in chart.axes[0]:
        axes.set_xlabel("layer")
    for one in found.layers:
        chart.record(*(getattr(one, name) for name in _COLUMNS))
    return chart


def _draw_reuse(found: Findings, about: str) -> Chart:
    chart = grid(
        "reuse",
        "Reuse distances",
        "Share of uses whose expert the request last used at most this many tokens ago, all layers "
        f"pooled. Dashed: tokens shuffled over the requests of their domain. {about}",
        ("distance_tokens", "share", "shuffled_share"),
        height_in=2.4,
        note=about,
    )
    (axes,) = chart.axes[0]
    one = found.reuse
    steps = list(one.within)
    if steps:
        axes.plot(steps, [100 * one.within[n] for n in steps], color=BLUE, marker=".",
                  label="recorded order")  # fmt: skip
        axes.plot(steps, [100 * one.shuffled[n] for n in steps], color=GREY, label="shuffled",
                  **_DASHED)  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_ylim(0, 100)
        shared_legend(chart)
    else:
        mark_undefined(axes, "no request has two tokens")
    axes.set_xlabel("distance (tokens)")
    axes.set_ylabel("uses at most this far (%)")
    for n in steps:
        chart.record(n, one.within[n], one.shuffled[n])
    return chart


def _draw_unions(found: Findings, about: str) -> Chart:
    chart = grid(
        "unions",
        "Union of a step",
        "Distinct experts of a layer that a step of tokens of different requests wants, a mean "
        "over steps and layers. Dashed: tokens drawn independently from the popularity; dotted: "
        "uniform routing. Grey lines: slots for an eighth, a quarter and half of the experts; "
        f"above a line, r = union / slots exceeds 1. {about}",
        ("batch", "experts", "independent", "uniform", "r_eighth", "r_quarter", "r_half"),
        height_in=2.6,
        note=about,
    )
    (axes,) = chart.axes[0]
    batches = [one.batch for one in found.unions]
    if batches:
        axes.plot(batches, [one.experts for one in found.unions], color=BLUE, marker=".",
                  label="recorded")  # fmt: skip
        axes.plot(batches, [one.independent for one in found.unions], color=ORANGE,
                  label="independent", **_DASHED)  # fmt: skip
        axes.plot(batches, [one.uniform for one in found.unions], color=GREY, linestyle=":",
                  label="uniform")  # fmt: skip
        for share in SLOTS.values():
            axes.axhline(share * found.experts, color=GREY, linewidth=0.6)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_ylim(0, found.experts * 1.02)
        shared_legend(chart)
    else:
        mark_undefined(axes, "no request has a token")
    axes.set_xlabel("tokens in a step")
    axes.set_ylabel("distinct experts")
    for one in found.unions:
        ratios = [one.pressure(max(1.0, share * found.experts)) for share in SLOTS.values()]
        chart.record(one.batch, one.experts, one.independent, one.uniform, *ratios)
    return chart


def _draw_recall(found: Findings, about: str) -> Chart:
    chart = grid(
        "recall",
        "Predictions by depth",
        "Share of a layer's experts that are named ahead: by a table learned on half of the "
        "requests and tested on the others, by popularity alone, and by the predictions that the "
        f"trace holds. {about}",
        ("predictor", "depth", "recall"),
        height_in=2.4,
        note=about,
    )
    (axes,) = chart.axes[0]
    depths = [one.depth for one in found.foresight]
    series = {
        "learned table": (depths, [one.table for one in found.foresight], BLUE),
        "popularity": (depths, [one.popularity for one in found.foresight], GREY),
    }
    if found.recorded_recall is not None:
        own = found.recorded_recall
        series["recorded"] = (list(range(1, len(own) + 1)), own, ORANGE)
    for name, (at, recall, color) in series.items():
        axes.plot(at, [100 * one for one in recall], color=color, marker=".", label=name)
        for depth, one in zip(at, recall, strict=True):
            chart.record(name, depth, one)
    axes.set_xlabel("layers ahead")
    axes.set_ylabel("recall (%)")
    axes.set_ylim(0, 100)
    shared_legend(chart)
    return chart
