"""What a trace's routing is like, in plain words."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from moesim.report.tabular import Table
from moesim.trace.findings import FEW, Findings, overflow

__all__ = ["FILES", "SLOTS", "Verdict", "layer_table", "verdicts"]

FILES: Final = ("info.json",)
SLOTS: Final = {"an eighth": 0.125, "a quarter": 0.25, "half": 0.5}
"""Shares of the experts that have slots, by which unions are judged."""
_REPEATS: Final = 0.05


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
    for name, share in SLOTS.items():
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
