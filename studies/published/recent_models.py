"""Table `recent`: hit rates of caches by policy and capacity, on routing of recent models.

The routing itself is not published. So two knobs of synthetic routing are fitted to a few rows of
each trace, and the other rows are predicted. The fitted rows are LRU at a small and at a large
capacity, and LFU at one between them, as far as the source has them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cache_replay import Events, Locality, Scope, fit_locality, hit_pct, synthetic_events
from localities import Found
from published_rows import Row

__all__ = ["ROUTINGS", "recent_rows"]

_NO_POLICY: Final = {
    "lru2": "moesim has no LRU-2",
    "static_split": "whole layers in GPU memory; how many is not stated",
}
_NOTES: Final = {
    "static_profile": "popularity of the routing's own first half here; not stated there",
    "lru_warm": "the first half of the steps fills the cache here",
    "lru_engine_warm": "the first half of the steps fills the cache here",
    "lru_cold": "the cache is empty once, at the start",
    "lfu_decay": "counts fade by 0.99 an event here; not stated there",
}


@dataclass(frozen=True, slots=True)
class Routing:
    """One published trace: its model's sizes, and what is simulated of it.

    `layers` of the model's `of_layers` are simulated, with the same share of the slots. Steps have
    `rows` consecutive tokens. `fitted` are the (policy, capacity) pairs to which knobs are fitted,
    with `fit_steps` steps.
    """

    model: str
    trace: str
    of_layers: int
    experts: int
    top_k: int
    layers: int
    steps: int
    fit_steps: int
    fitted: tuple[tuple[str, int], ...]
    scope: Scope = "global"
    rows: int = 1

    @property
    def group(self) -> str:
        """Return the name of its rows: model and trace."""
        return f"{self.model}, {self.trace}"

    def events(self, knobs: Locality, steps: int, layers: int | None = None) -> Events:
        """Return synthetic events."""
        layers = layers or self.layers
        return synthetic_events(layers, self.experts, self.top_k, steps, knobs, self.rows)

    def hits(self, policy: str, capacity: int, knobs: Locality, steps: int) -> float:
        """Return the hit rate in per cent under a policy, as the source names it."""
        layers, scope = self.layers, self.scope
        slots: float = capacity
        if policy == "shared_lru":  # one cache for all layers, so all layers are simulated
            layers, scope, steps = self.of_layers, "global", steps // 3
            slots = capacity * layers
        elif scope == "global":
            slots = capacity * layers / self.of_layers
        ours, warm = _POLICIES[policy]
        return hit_pct(self.events(knobs, steps, layers), ours, slots, scope, warm=warm)


_POLICIES: Final = {
    "lru": ("lru", False),
    "lru_simulator": ("lru", False),
    "lru_engine_cold": ("lru", False),
    "lru_engine_warm": ("lru", True),
    "lru_warm": ("lru", True),
    "lru_cold": ("lru", False),
    "shared_lru": ("lru", False),
    "lfu": ("lfu", False),
    "lfu_decay": ("lfu_decay", False),
    "belady": ("belady", False),
    "oracle": ("belady", False),
    "static_profile": ("static", True),
}
"""Policies of the sources: moesim's, and whether a first half only fills the cache."""

ROUTINGS: Final = (
    Routing("gpt-oss-120b", "code 512 decode steps", 36, 128, 4, 12, 512, 512,
            (("lru", 288), ("lru", 1790), ("lfu", 600))),
    Routing("Qwen3.6-35B-A3B", "code 1024 decode steps", 40, 256, 8, 5, 1024, 1024,
            (("lru", 3976), ("lfu", 3976))),
    Routing("Qwen3-30B-A3B", "fibonacci greedy 192 steps", 48, 128, 8, 48, 192, 192,
            (("lru_simulator", 520), ("lru_simulator", 2952))),
    Routing("gpt-oss-120b", "wikitext 47.7K tokens", 36, 128, 4, 4, 6000, 6000,
            (("lru", 8), ("lru", 48), ("lfu_decay", 24)), "per_layer"),
    Routing("gpt-oss-120b", "chat 52.0K tokens", 36, 128, 4, 4, 6000, 6000,
            (("lru", 8), ("lru", 48), ("lfu_decay", 24)), "per_layer"),
    Routing("Qwen3.8-Flash-Next", "15 generations, 2329 steps", 48, 512, 10, 6, 1000, 400,
            (("lru_warm", 3255), ("lru_warm", 9765)), rows=5),
)  # fmt: skip


def recent_rows(
    shared: Path, tell: Callable[[str, int, int], None]
) -> tuple[list[Row], list[Found]]:
    """Return the rows of all traces and the knobs found for each trace."""
    text = (shared / "data/measured/cache_hits.json").read_text(encoding="utf-8")
    entries = json.loads(text)
    rows: list[Row] = []
    found: list[Found] = []
    for done, routing in enumerate(ROUTINGS):
        tell("recent models", done, len(ROUTINGS))
        own = [each for each in entries if _of(each, routing)]
        found.append(_fit(routing, own))
        rows += [_row(each, routing, found[-1].knobs) for each in own]
    tell("recent models", len(ROUTINGS), len(ROUTINGS))
    return rows, found


def _of(entry: Mapping[str, Any], routing: Routing) -> bool:
    # One source refers to its own trace above as `same`.
    traces = (routing.trace, "same, B=1")
    return entry["model"] == routing.model and entry["trace"] in traces


def _fit(routing: Routing, entries: Sequence[Mapping[str, Any]]) -> Found:
    values = {(e["policy"], e["capacity"]): e["hit_pct"] for e in entries}

    def misfit(knobs: Locality) -> list[float]:
        return [
            routing.hits(policy, capacity, knobs, routing.fit_steps) - values[policy, capacity]
            for policy, capacity in routing.fitted
        ]

    return Found(routing.group, fit_locality(misfit), _described(routing))


def _described(routing: Routing) -> str:
    """Return the fitted rows as text: `LRU at 8 and 48, LFU at 24 slots a layer`."""
    capacities: dict[str, list[str]] = {}
    for policy, capacity in routing.fitted:
        capacities.setdefault(policy.partition("_")[0].upper(), []).append(str(capacity))
    texts = [f"{policy} at {' and '.join(each)}" for policy, each in capacities.items()]
    layer = " a layer" if routing.scope == "per_layer" else ""
    return f"{', '.join(texts)} slots{layer}"


def _row(entry: Mapping[str, Any], routing: Routing, knobs: Locality) -> Row:
    policy, capacity = entry["policy"], entry["capacity"]
    fitted = (policy, capacity) in routing.fitted
    missing = _NO_POLICY.get(policy, "")
    ours = None if missing else routing.hits(policy, capacity, knobs, routing.steps)
    total = re.sub(r"\D+", "", entry["capacity_unit"])
    layer = " a layer" if routing.scope == "per_layer" else ""
    return Row(
        table="recent",
        source=entry["source"],
        what=f"{routing.group}, {policy}, {capacity} of {total} slots{layer}",
        unit="%",
        published=entry["hit_pct"],
        ours=ours,
        kind="missing" if missing else "fitted" if fitted else "predicted",
        note=missing or _NOTES.get(policy, ""),
        group=routing.group,
    )
