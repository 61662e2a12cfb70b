"""What a trace's routing is like, in plain words and in charts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from moesim.report.chart import Chart, grid, mark_undefined, save_charts, write_csv
from moesim.report.panels import shared_legend
from moesim.report.tabular import Table
from moesim.trace.findings import FEW, Findings, overflow

__all__ = ["FILES", "Verdict", "layer_table", "plots_for_findings", "verdicts", "write_layers"]

FILES: Final = ("info.json",)
_SLOTS: Final = {"an eighth": 0.125, "a quarter": 0.25, "half": 0.5}
_REPEATS: Final = 0.05
_BLUE, _ORANGE, _GREEN, _GREY = "#0072B2", "#D55E00", "#009E73", "#8C8C8C"
_DASHED: Final[dict[str, Any]] = {"linestyle": (0, (4, 1.5)), "linewidth": 1}


@dataclass(frozen=True, slots=True)
class Verdict:
    """One sentence about a trace. `alarm`: results of the trace may mislead."""

    topic: str
    text: str
    alarm: bool = False


def verdicts(found: Findings) -> list[Verdict]:
    """Return what the measures mean, one sentence a topic."""
    return [
        _policies(found),
        _length(found),
        _popularity(found),
        _collapse(found),
        _tokens(found),
        _reuse(found),
        _layers(found),
        _predictions(found),
        *_unions(found),
        _domains(found),
        _prompts(found),
    ]


def _percent(share: float, digits: int = 0) -> str:
    return "undefined" if math.isnan(share) else f"{100 * share:.{digits}f} %"


def _policies(found: Findings) -> Verdict:
    topic = "policies"
    quarter = "with slots for a quarter of the experts: 25 %"
    if found.uniform and found.independent:
        return Verdict(
            topic,
            "UNIFORM AND INDEPENDENT: every policy that does not know the future then hits slots / "
            f"experts ({quarter}), so this trace cannot tell policies apart",
            alarm=True,
        )
    if found.uniform is None or found.independent is None:
        return Verdict(
            topic, "too few tokens to tell whether routing is uniform and independent", alarm=True
        )
    kind = "experts are equally popular" if found.uniform else "experts differ in popularity"
    link = "independent" if found.independent else "not independent"
    return Verdict(topic, f"{kind}, and tokens are {link}: policies can differ on this trace")


def _length(found: Findings) -> Verdict:
    one = found.hits
    if one is None or math.isnan(one.value):
        return Verdict("length", "no hit rate was measured")
    hits = f"LRU with {found.slots} slots a layer hits {_percent(one.value, 1)}"
    if one.verdict == "unknown":
        return Verdict("length", f"{hits}; one request has no interval: record more", alarm=True)
    ends = f"{100 * one.low:.1f} to {100 * one.high:.1f}"
    spread = f"{hits} (95 %: {ends}; {one.requests} requests)"
    if one.verdict == "enough":
        return Verdict("length", f"{spread}: long enough to tell differences of one point")
    more = f"about {one.needed:,.0f} requests like these would give one point on either side"
    if one.requests < FEW:
        more = f"an interval needs at least {FEW} requests"
    if one.verdict == "coarse":
        return Verdict("length", f"{spread}: enough for differences of several points; {more}")
    return Verdict("length", f"TOO SHORT: {spread}; {more}", alarm=True)


def _popularity(found: Findings) -> Verdict:
    most = math.log2(found.experts) if found.experts > 1 else 0.0
    known = [one for one in found.layers if one.uses]
    if not known:
        return Verdict("popularity", "no layer uses any expert", alarm=True)
    low = min(known, key=lambda one: one.entropy_bits)
    high = max(known, key=lambda one: one.entropy_bits)
    mean = sum(one.entropy_bits for one in known) / len(known)
    skew = max(known, key=lambda one: one.skew)
    idle = sum(one.idle for one in known) / (len(known) * found.experts)
    return Verdict(
        "popularity",
        f"entropy {mean:.2f} of {most:.2f} bits (layer {low.layer}: {low.entropy_bits:.2f}, layer "
        f"{high.layer}: {high.entropy_bits:.2f}); the most popular expert has {skew.skew:.1f} "
        f"times the mean (layer {skew.layer}); {_percent(idle, 1)} of the experts are never used",
    )


def _collapse(found: Findings) -> Verdict:
    if not found.enough_uses:
        return Verdict("collapse", "too few tokens to tell")
    text = "no layer has collapsed"
    if layers := found.collapsed:
        named = ", ".join(map(str, layers[:12])) + (" ..." if len(layers) > 12 else "")
        whose = f"layer {named} uses" if len(layers) == 1 else f"layers {named} use"
        text = f"COLLAPSED: {whose} little more than {found.top_k} experts for all tokens"
    if found.repeated_rows > _REPEATS:
        text += (
            f"; REPEATS: {_percent(found.repeated_rows)} of the tokens choose as the token before "
            "at all layers (a loop of text, or a router that looks at little of a token)"
        )
    return Verdict("collapse", text, alarm=bool(layers) or found.repeated_rows > _REPEATS)


def _tokens(found: Findings) -> Verdict:
    if math.isnan(found.overlap):
        return Verdict("tokens", "no request has two tokens, so none can be compared")
    one = found.overlap_interval
    ends = "" if math.isnan(one.low) else f"; 95 %: {100 * one.low:.1f} to {100 * one.high:.1f}"
    return Verdict(
        "tokens",
        f"a token shares {_percent(found.overlap, 1)} of its experts with the token before, and "
        f"{_percent(found.chance_overlap, 1)} by chance{ends}",
    )


def _reuse(found: Findings) -> Verdict:
    one = found.reuse
    shown = [n for n in (1, 8, 64) if n in one.within]
    within = ", ".join(
        f"{n}: {_percent(one.within[n])} ({_percent(one.shuffled[n])})" for n in shown
    )
    if not within or math.isnan(one.median):
        return Verdict("reuse", "no request uses an expert twice")
    return Verdict(
        "reuse",
        f"experts return after {one.median:.0f} tokens (median); share within tokens (shuffled): "
        f"{within}; first uses {_percent(one.first, 1)}",
    )


def _layers(found: Findings) -> Verdict:
    if not found.foresight:
        return Verdict("layers", "too few layers or tokens to learn one layer from another")
    first, *others = found.foresight
    deeper = "".join(f", {one.depth} ahead {_percent(one.table)}" for one in others)
    return Verdict(
        "layers",
        f"a table learned on half of the requests names {_percent(first.table)} of the next "
        f"layer's experts{deeper}; popularity alone names {_percent(first.popularity)}",
    )


def _predictions(found: Findings) -> Verdict:
    if found.recorded_recall is None:
        return Verdict("predictions", "none are recorded")
    each = ", ".join(
        f"{depth} ahead {_percent(recall)}" for depth, recall in enumerate(found.recorded_recall, 1)
    )
    return Verdict("predictions", f"recorded predictions name of the experts: {each}")


def _unions(found: Findings) -> list[Verdict]:
    if not found.unions:
        return []
    shown = [one for one in found.unions if one.batch in (1, 4, 16, 64, 256)]
    sizes = ", ".join(f"{one.batch}: {one.experts:.1f} ({one.uniform:.1f})" for one in shown)
    largest = found.unions[-1].batch
    parts = []
    for name, share in _SLOTS.items():
        batch = overflow(found.unions, max(1.0, share * found.experts))
        parts.append(
            f"{name} from N = {batch}" if batch is not None else f"{name} not up to N = {largest}"
        )
    quarter = max(1.0, 0.25 * found.experts)
    ratios = ", ".join(f"{one.batch}: {one.pressure(quarter):.2f}" for one in shown)
    return [
        Verdict(
            "union",
            f"distinct experts of {found.experts} in a step of N tokens, by N (uniform): {sizes}",
        ),
        Verdict(
            "r",
            f"union / slots with slots for a quarter, by N: {ratios}; above 1 no policy can hold a "
            f"step: with slots for {', '.join(parts)}",
        ),
    ]


def _domains(found: Findings) -> Verdict:
    one = found.domains
    if one is None:
        return Verdict("domains", "fewer than two domains with two requests each: no test")
    first, second = one.pair
    text = (
        f"popularity of {first} and {second} differs by {_percent(one.distance)} "
        f"({_percent(one.by_chance)} by chance)"
    )
    if one.differ:
        return Verdict("domains", f"{len(one.names)} domains differ (p = {one.p:.3f}): {text}")
    return Verdict("domains", f"no difference is shown (p = {one.p:.2f}): {text}")


def _prompts(found: Findings) -> Verdict:
    one = found.duplicates
    if one is None:
        return Verdict("prompts", "fewer than two recorded prompts of four tokens: none compared")
    if not one.telling or found.repeated_rows > _REPEATS:
        return Verdict(
            "prompts", "routing cannot tell unlike prompts apart here, so none are compared"
        )
    prefix = f"; two prompts share {one.shared_prefix:.0f} leading tokens (median)"
    if not one.pairs:
        return Verdict("prompts", f"no near-duplicates among {one.requests}{prefix}")
    assert one.example is not None
    return Verdict(
        "prompts",
        f"NEAR-DUPLICATES: {one.members} of {one.requests} prompts ({one.pairs} pairs, like "
        f"requests {one.example[0]} and {one.example[1]}){prefix}",
        alarm=True,
    )


def layer_table(found: Findings) -> Table:
    """Return a table with one row a layer; shares are in %, chance in brackets."""
    table = Table(
        "layers (%; in brackets: by chance)",
        ["layer", "entropy (bits)", "effective experts", "skew", "unused", "token overlap",
         "same ids in next layer"],
    )  # fmt: skip
    for one in found.layers:
        table.add(
            str(one.layer),
            f"{one.entropy_bits:.2f}",
            f"{one.effective:.1f}",
            f"{one.skew:.2f}",
            str(one.idle),
            f"{100 * one.overlap:.1f} ({100 * one.chance_overlap:.1f})",
            "-" if math.isnan(one.same_ids)
            else f"{100 * one.same_ids:.1f} ({100 * one.chance_same_ids:.1f})",
        )  # fmt: skip
    return table


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
    )
    entropy, skew, overlap = chart.axes[0]
    layers = [one.layer for one in found.layers]
    entropy.plot(layers, [one.entropy_bits for one in found.layers], color=_BLUE, marker=".")
    entropy.axhline(math.log2(max(found.experts, 2)), color=_GREY, **_DASHED)
    entropy.set_ylabel("entropy (bits)")
    entropy.set_ylim(bottom=0)
    skew.plot(layers, [one.skew for one in found.layers], color=_ORANGE, marker=".")
    skew.set_ylabel("most popular / mean")
    skew.set_ylim(bottom=0)
    own = [100 * one.overlap for one in found.layers]
    overlap.plot(layers, own, color=_GREEN, marker=".")
    chance = [100 * one.chance_overlap for one in found.layers]
    overlap.plot(layers, chance, color=_GREY, **_DASHED)
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
    )
    (axes,) = chart.axes[0]
    one = found.reuse
    steps = list(one.within)
    if steps:
        axes.plot(steps, [100 * one.within[n] for n in steps], color=_BLUE, marker=".",
                  label="recorded order")  # fmt: skip
        axes.plot(steps, [100 * one.shuffled[n] for n in steps], color=_GREY, label="shuffled",
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
    )
    (axes,) = chart.axes[0]
    batches = [one.batch for one in found.unions]
    if batches:
        axes.plot(batches, [one.experts for one in found.unions], color=_BLUE, marker=".",
                  label="recorded")  # fmt: skip
        axes.plot(batches, [one.independent for one in found.unions], color=_ORANGE,
                  label="independent", **_DASHED)  # fmt: skip
        axes.plot(batches, [one.uniform for one in found.unions], color=_GREY, linestyle=":",
                  label="uniform")  # fmt: skip
        for share in _SLOTS.values():
            axes.axhline(share * found.experts, color=_GREY, linewidth=0.6)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_ylim(0, found.experts * 1.02)
        shared_legend(chart)
    else:
        mark_undefined(axes, "no request has a token")
    axes.set_xlabel("tokens in a step")
    axes.set_ylabel("distinct experts")
    for one in found.unions:
        ratios = [one.pressure(max(1.0, share * found.experts)) for share in _SLOTS.values()]
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
    )
    (axes,) = chart.axes[0]
    depths = [one.depth for one in found.foresight]
    series = {
        "learned table": (depths, [one.table for one in found.foresight], _BLUE),
        "popularity": (depths, [one.popularity for one in found.foresight], _GREY),
    }
    if found.recorded_recall is not None:
        own = found.recorded_recall
        series["recorded"] = (list(range(1, len(own) + 1)), own, _ORANGE)
    for name, (at, recall, color) in series.items():
        axes.plot(at, [100 * one for one in recall], color=color, marker=".", label=name)
        for depth, one in zip(at, recall, strict=True):
            chart.record(name, depth, one)
    axes.set_xlabel("layers ahead")
    axes.set_ylabel("recall (%)")
    axes.set_ylim(0, 100)
    shared_legend(chart)
    return chart
