"""Fit the knobs of synthetic routing to published hit rates; write `localities_fitted.yaml`.

    python studies/published/fit_localities.py

For each trace of `moesim/trace/localities.yaml` with fitted capacities, three knobs are fitted to
three capacities. With two, the cut-off is 0. With one, stickiness and cut-off are the medians of
the traces with three of the most similar models. The fit is by formula (`moesim.trace.lru_hits`).
Then synthetic routing is drawn and LRU is replayed on it, and the formula's error there corrects
the targets. The hit rates of that replay are stored, also at capacities that were held out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from statistics import median
from typing import Any, Final

import yaml
from cache_replay import Events, events_of, hit_pct

from moesim.trace.localities import FITTED, KnownModel, KnownTrace, distance, known_models
from moesim.trace.lru_hits import LocalityKnobs, fit_knobs
from moesim.trace.statistics import adjacent_overlap
from moesim.trace.synthetic import SyntheticKnobs, synthesize
from moesim.trace.trace import Trace

_COMMAND: Final = "python studies/published/fit_localities.py"
_HEAD: Final = f"""\
# Knobs of synthetic routing whose hit rates under LRU are those of localities.yaml.
# Written by `{_COMMAND}`; do not edit.
# hits_pct: by slots as in the source, [published, synthetic]. Capacities that are not in `fitted`
# are held out. `assumed` knobs are medians of the most similar models, or 0.

"""
_ROUNDS: Final = 3
_CHOICES: Final = 1_500_000  # of experts that are drawn to measure a hit rate
_SEED: Final = 0

Entries = Mapping[tuple[str, int], Mapping[str, Any]]


def drawn(model: KnownModel, trace: KnownTrace, knobs: LocalityKnobs) -> Trace:
    """Return one synthetic request of as many layers and steps as a replay needs."""
    layers, experts, top_k = model.sizes
    steps = min(trace.steps, 4000)
    if trace.slots == "per_layer":
        layers = max(2, min(layers, _CHOICES // (steps * top_k)))
    return synthesize(
        SyntheticKnobs(
            requests=1, prompt_tokens=1, output_tokens=steps, num_layers=layers,
            num_experts=experts, top_k=top_k, layer_correlation=0, seed=_SEED, **asdict(knobs),
        )
    )  # fmt: skip


def replayed(model: KnownModel, trace: KnownTrace, knobs: LocalityKnobs) -> dict[float, float]:
    """Return the hit rates of LRU on synthetic routing, from 0 to 1, by slots a layer."""
    events: Events = events_of(drawn(model, trace, knobs))
    number = len(events.unions) if trace.slots == "global" else 1
    return {
        slots: hit_pct(events, "lru", slots * number, trace.slots) / 100 for slots in trace.hits
    }


def fitted(model: KnownModel, trace: KnownTrace, fixed: Mapping[str, float]) -> dict[str, Any]:
    """Return the entry of one trace."""
    published = {slots: trace.hits[slots] for slots in trace.fitted}
    targets = dict(published)
    for _ in range(_ROUNDS):
        found = fit_knobs(targets, model.sizes.experts, model.sizes.top_k, trace.steps, fixed=fixed)
        knobs = LocalityKnobs(**{key: round(value, 4) for key, value in asdict(found).items()})
        ours = replayed(model, trace, knobs)
        targets = {at: targets[at] + published[at] - ours[at] for at in published}
    return _entry(model, trace, knobs, ours, sorted(fixed))


def _entry(
    model: KnownModel,
    trace: KnownTrace,
    knobs: LocalityKnobs,
    ours: Mapping[float, float],
    assumed: list[str],
) -> dict[str, Any]:
    per = model.sizes.layers if trace.slots == "global" else 1
    entry: dict[str, Any] = {
        "trace": trace.trace,
        "source": trace.source,
        "knobs": asdict(knobs),
        "assumed": assumed,
        "fitted": [round(slots * per) for slots in trace.fitted],
        "hits_pct": {
            round(slots * per): [round(100 * hit, 2), round(100 * ours[slots], 2)]
            for slots, hit in trace.hits.items()
        },
    }
    if trace.adjacent_overlap is not None:
        synthetic = adjacent_overlap(drawn(model, trace, knobs))
        entry["adjacent_overlap"] = [trace.adjacent_overlap, round(synthetic, 3)]
    return entry


def held(model: KnownModel, trace: KnownTrace, entries: Entries) -> dict[str, float]:
    """Return the knobs that a trace's figures cannot give, by what stands for them."""
    if len(trace.fitted) != 1:
        return {"cutoff": 0.0} if len(trace.fitted) == 2 else {}
    full = {name for (name, _), each in entries.items() if not each["assumed"]}
    sizes = {name: known_models()[name].sizes for name in full}
    nearest = min(distance(each, model.sizes) for each in sizes.values())
    near = {name for name, each in sizes.items() if distance(each, model.sizes) == nearest}
    knobs = [each["knobs"] for (name, _), each in entries.items() if name in near]
    return {key: round(median(each[key] for each in knobs), 4) for key in ("stickiness", "cutoff")}


def fit_all() -> dict[str, list[dict[str, Any]]]:
    """Return the entries of all models, by name."""
    entries: dict[tuple[str, int], dict[str, Any]] = {}
    work = [
        (model, number, trace)
        for model in known_models().values()
        for number, trace in enumerate(model.traces)
        if trace.fitted
    ]
    # Traces with most capacities come first: others take knobs from them.
    for model, number, trace in sorted(work, key=lambda each: -len(each[2].fitted)):
        entry = fitted(model, trace, held(model, trace, entries))
        entries[model.name, number] = entry
        print(model.name, entry["trace"], entry["hits_pct"], flush=True)
    by_model: dict[str, list[dict[str, Any]]] = {}
    for model, number, _ in work:
        by_model.setdefault(model.name, []).append(entries[model.name, number])
    return by_model


if __name__ == "__main__":
    text = yaml.safe_dump(fit_all(), sort_keys=False, default_flow_style=None, width=98)
    FITTED.write_text(_HEAD + text, encoding="utf-8")
