"""Table `systems`: hit rates that HybriMoE and Fiddler published.

HybriMoE gives LRU and its own policy, MRS, at a quarter or three quarters of the experts. Two of
its figures fit the synthetic routing of Mixtral. DeepSeek-V2-Lite is predicted with real routing of
that model (deepseek-ai/ESFT).

MRS needs the router's scores of all experts. The real routing has those of the chosen experts only,
and synthetic routing has none.

Fiddler places experts by popularity, without any cache. Its rows are predicted with frequencies of
Mixtral's experts that a third source measured.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any, Final

import numpy as np
from cache_replay import Locality, fit_locality, hit_pct, synthetic_events
from localities import Found
from published_rows import Kind, Row

from moesim.simulate.curve import curve
from moesim.trace import load_trace
from moesim.trace.importers import from_esft

__all__ = ["lru_by_slots", "mixtral_locality", "popular_hit_pct", "system_rows"]

_TASKS: Final = ("intent", "law", "summary", "translation")
_LAYERS: Final = 32
_STEPS: Final = 1000
_DEEP: Final = Path(__file__).resolve().parents[2] / "traces/deep"
_DATA: Final = "data/routing"


def _entries(published: Sequence[Mapping[str, Any]], system: str) -> list[Mapping[str, Any]]:
    return [e for e in published if e["system"] == system and e["metric"] == "hit_ratio"]


def mixtral_locality(published: Sequence[Mapping[str, Any]]) -> Found:
    """Return the knobs with which LRU hits as HybriMoE measured on Mixtral."""
    points = {
        round(8 * entry["config"]["cache_fraction"]): entry["value"]
        for entry in _entries(published, "HybriMoE")
        if entry["model"] == "Mixtral-8x7B" and entry["config"]["policy"] == "LRU"
    }

    def misfit(knobs: Locality) -> list[float]:
        events = synthetic_events(_LAYERS, 8, 2, _STEPS, knobs)
        return [hit_pct(events, "lru", at, "per_layer") - value for at, value in points.items()]

    return Found(
        group="Mixtral-8x7B, HybriMoE",
        knobs=fit_locality(misfit),
        fitted_to=f"LRU at {' and '.join(map(str, points))} of 8 slots a layer",
    )


def lru_by_slots(mixtral: Found) -> dict[str, list[float]]:
    """Return LRU's hit rates in per cent at 1 to 7 slots a layer, of this routing and of `deep`."""
    events = synthetic_events(_LAYERS, 8, 2, _STEPS, mixtral.knobs)
    deep = curve(load_trace(_DEEP), ["lru"], capacities=range(1, 8))["lru"]
    return {
        "synthetic, as HybriMoE measured Mixtral": [
            hit_pct(events, "lru", slots, "per_layer") for slots in range(1, 8)
        ],
        "`traces/deep`": [100 * deep[slots] for slots in range(1, 8)],
    }


def system_rows(published: Sequence[Mapping[str, Any]], mixtral: Found, shared: Path) -> list[Row]:
    """Return the rows of both systems."""
    entries = _entries(published, "HybriMoE")
    hybrid = [_hybrid(each, mixtral, shared) for each in entries]
    hybrid += _gains(entries, hybrid)
    fiddler = _entries(published, "Fiddler")
    kept = {each["hardware"]: _resident(each) for each in fiddler if _resident(each)}
    return [*hybrid, *(_fiddler(each, kept, shared) for each in fiddler)]


def _hybrid(entry: Mapping[str, Any], mixtral: Found, shared: Path) -> Row:
    model, policy = entry["model"], entry["config"]["policy"]
    fraction = entry["config"]["cache_fraction"]
    ours: float | None = None
    kind: Kind = "missing"
    if model == "DeepSeek-V2-Lite":
        each = [_real(shared, task, policy.lower(), 64 * fraction) for task in _TASKS]
        ours, kind = mean(each), "predicted"
        note = f"real routing, mean of four tasks: {min(each):.1f} to {max(each):.1f} %"
        if policy == "MRS":
            note += "; it has the scores of chosen experts only"
    elif model != "Mixtral-8x7B":
        note = "no routing of this model; one figure does not give two knobs"
    elif policy == "MRS":
        note = "no routing with the router's scores of all experts; synthetic routing has none"
    else:
        events = synthetic_events(_LAYERS, 8, 2, _STEPS, mixtral.knobs)
        ours, kind = hit_pct(events, "lru", 8 * fraction, "per_layer"), "fitted"
        note = "synthetic routing"
    return Row(
        table="systems",
        source=entry["source"],
        what=f"{model}, {policy}, {fraction:.0%} of the experts",
        unit="%",
        published=entry["value"],
        ours=ours,
        kind=kind,
        note=note,
        group=mixtral.group if model == "Mixtral-8x7B" else f"{model}, HybriMoE",
    )


def _gains(entries: Sequence[Mapping[str, Any]], rows: Sequence[Row]) -> list[Row]:
    """Return how many points MRS hits more often than LRU; `rows` are those of `entries`."""
    by_setting = {
        (e["model"], e["config"]["cache_fraction"], e["config"]["policy"]): row
        for e, row in zip(entries, rows, strict=True)
    }
    gains = []
    for (model, fraction, policy), mrs in by_setting.items():
        if policy != "MRS":
            continue
        lru = by_setting[model, fraction, "LRU"]
        known = mrs.ours is not None and lru.ours is not None
        gains.append(
            replace(
                mrs,
                what=f"{model}, MRS over LRU, {fraction:.0%} of the experts",
                unit="points",
                published=mrs.published - lru.published,
                ours=(mrs.ours or 0) - (lru.ours or 0) if known else None,
                note="the scores of other experts are missing" if known else mrs.note,
            )
        )
    return gains


def _real(shared: Path, task: str, policy: str, slots: float) -> float:
    trace = from_esft(shared / _DATA / f"esft_deepseek_v2_lite/{task}.npz")
    at = round(slots)
    return 100 * curve(trace, [policy], capacities=[at], admission="always")[policy][at]


def _resident(entry: Mapping[str, Any]) -> int:
    """Return how many of Mixtral's 256 experts have a slot: as stated, or of a random row."""
    config = entry["config"]
    if stated := config.get("resident"):
        return int(stated.partition("/")[0])
    # Experts that are chosen at random hit in proportion to their number.
    return round(256 * entry["value"] / 100) if config["placement"] == "random" else 0


def _fiddler(entry: Mapping[str, Any], kept: Mapping[str, int], shared: Path) -> Row:
    number = kept[entry["hardware"]]
    random = entry["config"]["placement"] == "random"
    stated = "resident" in entry["config"]
    note = "the share of the experts" if random else "real frequencies of Mixtral, other prompts"
    if not stated:
        note += "; the number resident is that of the random row"
    return Row(
        table="systems",
        source=entry["source"],
        what=f"Mixtral-8x7B, {number} of 256 experts, {entry['config']['placement']}",
        unit="%",
        published=entry["value"],
        ours=100 * number / 256 if random else _popular(shared, number),
        kind="fitted" if random and not stated else "predicted",
        note=note,
        group="Mixtral-8x7B, Fiddler",
    )


def _popular(shared: Path, number: int) -> float:
    frequencies_LE = np.load(shared / _DATA / "mixtral_moe_eras/expert_frequencies.npy")
    text = (shared / _DATA / "mixtral_fiddler/popularity_order.json").read_text(encoding="utf-8")
    return popular_hit_pct(frequencies_LE, json.loads(text)["popular_experts"][:number])


def popular_hit_pct(frequencies_LE: np.ndarray[Any, Any], kept: Sequence[tuple[int, int]]) -> float:
    """Return the share of uses, in per cent, that the kept (layer, expert) pairs serve."""
    rows, columns = zip(*kept, strict=True)
    return float(100 * frequencies_LE[rows, columns].sum() / frequencies_LE.sum())
