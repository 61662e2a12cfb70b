"""What a gate costs to serve when experts do not fit: its traces in the simulator, and the plots.

Every row serves the same 32 requests (one draw a seed), all there at once. Sizes and hardware are
assumed: four of Mixtral-8x7B's layers, all experts at 16 bits, on the profile rtx-3060-12gb, whose
link is slow beside its layers, as offloading mostly is. *Alike* serves all rows by the same
policies (decode first, LRU, nothing fetched ahead). *Its own* gives each what its router's
knowledge allows: of a layer's gate only what the next gate would say, applied early; of tokens
that are queued all layers; of tasks everything, for ever.

Intervals are 95 % over seeds, each of a model trained anew.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

from recovery import spread

from moesim.errors import UsageError
from moesim.report.chart import Chart, grid, save_charts
from moesim.report.panels import shared_legend
from moesim.report.statistics import Estimate, difference, estimate
from moesim.report.tabular import Table
from moesim.simulate import run
from moesim.trace import load_trace

SHAPES: Final = Path(__file__).resolve().parents[2] / "scenarios/shapes"
HARDWARE: Final = "rtx-3060-12gb"
CAPACITIES: Final = (1, 2, 3, 4, 5, 6, 7)  # experts a layer
SHOWN: Final = (2, 4, 6)
MIDDLE: Final = 4
Batch = tuple[int, int]  # most requests at a time, most tokens a step
STEADY: Final[Batch] = (8, 64)  # every running request takes part in every step
CHOOSY: Final[Batch] = (32, 16)  # batching has something to choose from
Policies = Mapping[str, Mapping[str, Any]]
Traces = Mapping[str, Sequence[Path]]  # of each row, one a seed
Losses = Mapping[str, Sequence[float]]
Summary = dict[str, Any]

AHEAD: Final = {"prefetch": {"policy": "layer_ahead"}}
LOOKAHEAD: Final = {"cache": {"policy": "lookahead", "admission": "always"}}
EXPERT_AWARE: Final = {"batching": {"policy": "expert_aware"}}
TASK_AWARE: Final = {"batching": {"policy": "task_aware"}}
ONE_CHOICE: Final = {"batching": {"policy": "task_aware", "options": {"mix": False}}}
PREDICTED: Final = {"prefetch": {"policy": "predicted"}}
OWN: Final[Mapping[str, Mapping[str, Policies]]] = {
    "layerwise": {"as all": {}, "+ prefetch of what is predicted": PREDICTED},
    "decoupled": {
        "as all": {},
        "+ expert-aware batching": EXPERT_AWARE,
        "+ look-ahead cache": LOOKAHEAD,
        "+ prefetch": AHEAD,
        "+ all": {**EXPERT_AWARE, **LOOKAHEAD, **AHEAD},
    },
    "static": {
        "as all": {},
        "+ task-aware batching": TASK_AWARE,
        "+ task-aware batching, unmixed": ONE_CHOICE,
        "+ look-ahead cache": LOOKAHEAD,
        "+ prefetch": AHEAD,
        "+ all": {**ONE_CHOICE, **LOOKAHEAD, **AHEAD},
    },
}
COLORS: Final = {
    "dselect_k": "#0072B2",
    "top_k": "#D55E00",
    "noisy_top_k": "#E69F00",
    "softmax": "#8C8C8C",
    "gumbel": "#CC79A7",
    "switch": "#009E73",
    "hash": "#000000",
}
MARKERS: Final = {"layerwise": "o", "decoupled": "s", "static": "^"}


def routing_of(trace: Path) -> str:
    """How far ahead a trace's routing is known."""
    return load_trace(trace).meta.router


def tables(traces: Traces, losses: Losses, plots: Path) -> list[Table]:
    """All tables; draws the plots into a folder, which they replace."""
    check_same_work(traces)
    made = [alike(traces, losses), *(own(traces, batch) for batch in (STEADY, CHOOSY))]
    save_charts(
        plots,
        [lambda: quality_against_cost(traces, losses), lambda: hits_by_capacity(traces)],
    )
    return made


def check_same_work(traces: Traces) -> None:
    """Raise `UsageError` unless all traces of all rows have the same prompts."""
    every = [(name, load_trace(path)) for name, paths in traces.items() for path in paths]
    first, reference = every[0]
    for name, trace in every:
        for column in ("domain", "prompt_tokens"):
            if trace.requests[column].tolist() != reference.requests[column].tolist():
                raise UsageError(f"{name} and {first} differ in {column}: record them again")


def sizes_of(trace: Path) -> Path:
    """The assumed sizes: by top-k, and by whether a router stands before the layers."""
    meta = load_trace(trace).meta
    ahead = (meta.model_config or {}).get("routed_by") == "prefix"
    return SHAPES / f"mixtral-4-layers-{'ahead' if ahead else f'top{meta.top_k}'}.json"


def scenario(trace: Path, slots: int, batch: Batch, seed: int, policies: Policies) -> Summary:
    """One run, as a scenario."""
    made: dict[str, Any] = {
        "trace": str(trace),
        "model": {"shape": str(sizes_of(trace))},
        "hardware": HARDWARE,
        "workload": {"requests": 32, "order": "resampled"},
        "batching": {
            "policy": "decode_first",
            "max_sequences": batch[0],
            "token_budget": batch[1],
        },
        "cache": {"policy": "lru", "slots": f"{slots}/layer"},
        "bounds": False,
        "timeline": {"steps": 0},
        "seed": seed,
    }
    for section, chosen in policies.items():
        made[section] = {**made.get(section, {}), **chosen}
    return made


def simulated(
    traces: Sequence[Path], slots: int, batch: Batch, policies: Policies
) -> list[Summary]:
    """The summaries of a row, one a seed."""
    chosen = json.dumps(policies, sort_keys=True)
    return [_simulated(path, slots, batch, seed, chosen) for seed, path in enumerate(traces)]


@cache
def _simulated(trace: Path, slots: int, batch: Batch, seed: int, policies: str) -> Summary:
    what = f"serving {trace.parent.name}, {slots} slots, {batch}"
    print(f"\r{what:<70}", end="", file=sys.stderr, flush=True)
    return dict(run(scenario(trace, slots, batch, seed, json.loads(policies))).summary)


def mb_per_token(summary: Summary) -> float:
    """Megabytes of experts copied to the GPU for each token computed, of prompts too."""
    return float(summary["h2d_bytes"] / (summary["tokens_per_s"] * summary["makespan_s"]) / 1e6)


def alike(traces: Traces, losses: Losses) -> Table:
    """All rows by the same policies."""
    table = Table(
        f"Served alike: decode first, LRU, {STEADY[0]} requests at a time, {STEADY[1]} tokens a "
        f"step; from unique experts on with {MIDDLE} of 8 experts a layer",
        ["row", "validation loss", *(f"hits (%), {slots} of 8" for slots in SHOWN),
         "unique experts", "MB a token", "latency a token (ms)", "95th percentile (s)",
         "GPU stalled (%)"],
    )  # fmt: skip
    for name, paths in traces.items():
        hits = [
            spread([100 * s["expert_hit_rate"] for s in simulated(paths, slots, STEADY, {})], 1)
            for slots in SHOWN
        ]
        seen = simulated(paths, MIDDLE, STEADY, {})
        table.add(
            name,
            spread(losses[name], 3),
            *hits,
            spread([s["unique_experts_per_event_mean"] for s in seen], 2),
            spread([mb_per_token(s) for s in seen], 1),
            spread([s["normalised_mean_ms"] for s in seen], 1),
            spread([s["e2e_p95_ms"] / 1e3 for s in seen], 2),
            spread([100 * s["stall_share"] for s in seen], 1),
        )
    return table


def own(traces: Traces, batch: Batch) -> Table:
    """What each router's knowledge buys: changes against the same row served as all are."""
    table = Table(
        f"What knowing ahead buys, {batch[0]} requests at a time, {batch[1]} tokens a step, "
        f"{MIDDLE} of 8 experts a layer; changes seed by seed",
        ["row", "policies", "hits (%)", "unique experts", "MB a token", "latency a token",
         "95th percentile", "GPU stalled (%)", "longest wait (steps)"],
    )  # fmt: skip
    for name, paths in traces.items():
        first: list[Summary] = []
        for how, policies in allowed(paths[0]).items():
            seen = simulated(paths, MIDDLE, batch, policies)
            first = first or seen
            table.add(
                name if how == "as all" else "",
                how,
                spread([100 * s["expert_hit_rate"] for s in seen], 1),
                spread([s["unique_experts_per_event_mean"] for s in seen], 2),
                spread([mb_per_token(s) for s in seen], 1),
                change(seen, first, "normalised_mean_ms", "ms", 1),
                change(seen, first, "e2e_p95_ms", "s", 1e-3),
                spread([100 * s["stall_share"] for s in seen], 1),
                spread([s["wait_max_steps"] for s in seen], 0),
            )
    return table


def allowed(trace: Path) -> Mapping[str, Policies]:
    """What a trace's router allows."""
    return OWN[routing_of(trace)]


def change(
    seen: Sequence[Summary], first: Sequence[Summary], key: str, unit: str, scale: float
) -> str:
    """The figure itself of what others are compared with; of those, the change in percent."""
    if seen is first:
        return f"{spread([scale * s[key] for s in seen], 2)} {unit}"
    less = difference([s[key] for s in seen], [s[key] for s in first])
    text = f"{100 * less.mean:+.1f}"
    return f"{text if less.half is None else f'{text} ± {100 * less.half:.1f}'} %"


def best_of_own(paths: Sequence[Path]) -> tuple[str, list[Summary]]:
    """Of what a router's knowledge allows, the policies with the least mean latency."""
    tried = {how: simulated(paths, MIDDLE, CHOOSY, p) for how, p in allowed(paths[0]).items()}
    how = min(tried, key=lambda each: _mean(s["normalised_mean_ms"] for s in tried[each]))
    return how, tried[how]


def quality_against_cost(traces: Traces, losses: Losses) -> Chart:
    """Validation loss against latency: all rows served alike, and each as it can be."""
    seeds = len(next(iter(traces.values())))
    chart = grid(
        "quality_cost",
        "What a gate reads and what it costs",
        "Each point a gate (the legend says what it reads, if not a layer's hidden state); lower "
        "left is better. Validation loss of the model as served (measured), time from arrival to "
        "last token by generated token (simulated; sizes of 4 layers of Mixtral-8x7B on "
        f"{HARDWARE}: assumed; {MIDDLE} of 8 experts a layer, {CHOOSY[0]} requests at a time, "
        f"{CHOOSY[1]} tokens a step). Left: decode first, LRU, no prefetch for all. Right: for "
        "each the fastest, on these runs, of those that its router's knowledge allows. Circles: "
        "routing known layer by layer; squares: of queued tokens; triangles: of tasks, for ever. "
        f"Bars: 95 % over n = {seeds} models trained anew.",
        ("row", "routing", "panel", "policies", "loss_nats", "loss_half", "ms_a_token", "ms_half"),
        shape=(1, 2),
        height_in=3.2,
        sharey=True,
    )
    for axes, panel in zip(chart.axes[0], ("alike", "its own"), strict=True):
        for name, paths in traces.items():
            how, seen = "as all", simulated(paths, MIDDLE, CHOOSY, {})
            if panel == "its own":
                how, seen = best_of_own(paths)
            loss = estimate(losses[name])
            cost = estimate(s["normalised_mean_ms"] for s in seen)
            kind = routing_of(paths[0])
            axes.errorbar(
                loss.mean, cost.mean, xerr=loss.half, yerr=cost.half, label=name,
                **_look(name, kind), linestyle="", elinewidth=0.6, capsize=1.5, markersize=5,
            )  # fmt: skip
            chart.record(name, kind, panel, how, *_parts(loss), *_parts(cost))
        axes.set_xlabel("validation loss (nats a token)")
        axes.set_title("served alike" if panel == "alike" else "each by its own knowledge")
    chart.axes[0][0].set_ylabel("latency by generated token (ms)")
    shared_legend(chart, wide=True)
    return chart


def hits_by_capacity(traces: Traces) -> Chart:
    """Hit rate against capacity, and against MIN of the same events for the first seed."""
    seeds = len(next(iter(traces.values())))
    chart = grid(
        "hits_capacity",
        "Hit rate by capacity",
        "Distinct experts of a layer event found in the cache (simulated on measured routing): "
        f"LRU, decode first, {STEADY[0]} requests at a time, {STEADY[1]} tokens a step. Left: all "
        f"gates that route by the hidden state; right: the others. Bars: 95 % over n = {seeds} "
        "models trained anew.",
        ("row", "routing", "experts_a_layer", "hit_rate", "half"),
        shape=(1, 2),
        height_in=3.0,
        sharey=True,
    )
    for name, paths in traces.items():
        kind = routing_of(paths[0])
        axes = chart.axes[0][0 if kind == "layerwise" else 1]
        rates = [
            estimate(s["expert_hit_rate"] for s in simulated(paths, slots, STEADY, {}))
            for slots in CAPACITIES
        ]
        axes.errorbar(
            CAPACITIES, [100 * r.mean for r in rates],
            yerr=[100 * (r.half or 0) for r in rates], label=name, **_look(name, kind),
            elinewidth=0.6, capsize=1.5, linewidth=1, markersize=3.5,
        )  # fmt: skip
        for slots, rate in zip(CAPACITIES, rates, strict=True):
            chart.record(name, kind, slots, *_parts(rate))
    for axes in chart.axes[0]:
        axes.set_xlabel("experts in memory, of 8 a layer")
        axes.set_ylim(0, 100)
    chart.axes[0][0].set_ylabel("expert hit rate (%)")
    shared_legend(chart, wide=True)
    return chart


def _look(name: str, kind: str) -> dict[str, Any]:
    gate = name.partition(",")[0]
    return {"color": COLORS[gate], "marker": MARKERS[kind]}


def _parts(value: Estimate) -> tuple[float, float | None]:
    return value.mean, value.half


def _mean(values: Iterable[float]) -> float:
    return estimate(values).mean
