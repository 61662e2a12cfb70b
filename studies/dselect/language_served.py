"""What a gate costs to serve when experts do not fit: its traces in the simulator, and the plots.

Every row serves 32 requests of the same prompts and lengths (one draw a seed), all there at once;
what is generated is each model's own. So a latency is mostly waiting for others. Sizes and hardware
are assumed: four of Mixtral-8x7B's layers, all experts at 16 bits, on the profile rtx-3060-12gb,
whose link is slow beside its layers, as offloading mostly is. *Alike* serves all rows by the same
policies (decode first, LRU, nothing fetched ahead). *Its own* gives each what its router's
knowledge allows: of a layer's gate only what the next gate would say, applied early; of tokens that
are queued all layers; of tasks everything, for ever.
A router before the layers is costed at the paper's size; its one choice for all layers is part of
what its rows cost. Of tables that choose among policies, more can be tried where more is known.

Intervals are 95 % over seeds, each of a model trained anew.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
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
OTHER_SEEDS: Final = 1000  # of the requests that policies are chosen by
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
    """Raise `UsageError` unless all traces of all rows have the same prompts and lengths."""
    every = [(name, load_trace(path)) for name, paths in traces.items() for path in paths]
    first, reference = every[0]
    for name, trace in every:
        for column in ("domain", "prompt_tokens", "output_tokens"):
            if trace.requests[column].tolist() != reference.requests[column].tolist():
                raise UsageError(f"{name} and {first} differ in {column}: record them again")
        asked, wanted = (t.meta.provenance.get("prompts", {}) for t in (trace, reference))
        if asked.get("sha256") != wanted.get("sha256"):
            raise UsageError(f"{name} and {first} have other prompts: record them again")


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
    traces: Sequence[Path], slots: int, batch: Batch, policies: Policies, *, first_seed: int = 0
) -> list[Summary]:
    """The summaries of a row, one a seed; seeds draw the requests."""
    chosen = json.dumps(policies, sort_keys=True)
    return [
        _simulated(path, slots, batch, seed, chosen) for seed, path in enumerate(traces, first_seed)
    ]


@cache
def _simulated(trace: Path, slots: int, batch: Batch, seed: int, policies: str) -> Summary:
    what = f"serving {trace.name}, {slots} slots, {batch}"
    print(f"\r{what:<70}", end="", file=sys.stderr, flush=True)
    return dict(run(scenario(trace, slots, batch, seed, json.loads(policies))).summary)


def mb_per_token(summary: Summary) -> float:
    """Megabytes of experts copied to the GPU for each token of prompts and outputs."""
    return float(summary["h2d_bytes"] / (summary["tokens_per_s"] * summary["makespan_s"]) / 1e6)


def ms_per_token(summary: Summary) -> float:
    """Milliseconds from the first arrival to the last token, for each token generated by all."""
    return float(1e3 * summary["makespan_s"] / summary["output_tokens"])


def alike(traces: Traces, losses: Losses) -> Table:
    """All rows by the same policies."""
    table = Table(
        f"Served alike: decode first, LRU, {STEADY[0]} requests at a time, {STEADY[1]} tokens a "
        f"step; from unique experts on with {MIDDLE} of 8 experts a layer",
        ["row", "validation loss", *(f"hits (%), {slots} of 8" for slots in SHOWN),
         "unique experts", "MB a token", "ms a generated token", "latency, mean (s)",
         "95th percentile (s)", "GPU stalled (%)"],
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
            spread([ms_per_token(s) for s in seen], 1),
            spread([s["e2e_mean_ms"] / 1e3 for s in seen], 2),
            spread([s["e2e_p95_ms"] / 1e3 for s in seen], 2),
            spread([100 * s["stall_share"] for s in seen], 1),
        )
    return table


def own(traces: Traces, batch: Batch) -> Table:
    """What each router's knowledge buys: changes against the same row served as all are."""
    table = Table(
        f"What knowing ahead buys, {batch[0]} requests at a time, {batch[1]} tokens a step, "
        f"{MIDDLE} of 8 experts a layer; changes seed by seed",
        ["row", "policies", "hits and late hits (%)", "unique experts", "MB a token",
         "ms a generated token", "latency, mean", "95th percentile", "GPU stalled (%)",
         "longest wait (steps)"],
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
                change(seen, first, ms_per_token, "ms"),
                change(seen, first, lambda s: s["e2e_mean_ms"] / 1e3, "s"),
                change(seen, first, lambda s: s["e2e_p95_ms"] / 1e3, "s"),
                spread([100 * s["stall_share"] for s in seen], 1),
                spread([s["wait_max_steps"] for s in seen], 0),
            )
    return table


def allowed(trace: Path) -> Mapping[str, Policies]:
    """What a trace's router allows."""
    return OWN[routing_of(trace)]


def change(
    seen: Sequence[Summary], first: Sequence[Summary], of: Callable[[Summary], float], unit: str
) -> str:
    """The figure itself of what others are compared with; of those, the change in percent."""
    if seen is first:
        return f"{spread([of(s) for s in seen], 2)} {unit}"
    less = difference([of(s) for s in seen], [of(s) for s in first])
    text = f"{100 * less.mean:+.1f}"
    return f"{text if less.half is None else f'{text} ± {100 * less.half:.1f}'} %"


def best_of_own(paths: Sequence[Path]) -> tuple[str, list[Summary]]:
    """What a router's knowledge allows at its fastest, chosen by other requests than shown."""

    def on_others(how: str) -> float:
        seen = simulated(paths, MIDDLE, CHOOSY, allowed(paths[0])[how], first_seed=OTHER_SEEDS)
        return estimate(ms_per_token(summary) for summary in seen).mean

    how = min(allowed(paths[0]), key=on_others)
    return how, simulated(paths, MIDDLE, CHOOSY, allowed(paths[0])[how])


def quality_against_cost(traces: Traces, losses: Losses) -> Chart:
    """Validation loss against time: all rows served alike, and each as it can be."""
    seeds = len(next(iter(traces.values())))
    chart = grid(
        "quality_cost",
        "What a gate reads and what it costs",
        "Each point a gate (the legend says what it reads, if not a layer's hidden state); lower "
        "left is better. Validation loss of the model as served (measured); time until the last "
        "token over tokens generated, by all requests (simulated; sizes of 4 layers of "
        f"Mixtral-8x7B on {HARDWARE}: assumed; {MIDDLE} of 8 experts a layer, {CHOOSY[0]} requests "
        f"at a time, {CHOOSY[1]} tokens a step). Left: decode first, LRU, no prefetch for all. "
        "Right: for each the fastest of what its router's knowledge allows (of 2, 5 and 6 sets of "
        "policies; chosen by other requests). Circles: routing known layer by layer; squares: of "
        f"queued tokens; triangles: of tasks, for ever. Bars: 95 % over n = {seeds} models.",
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
            cost = estimate(ms_per_token(s) for s in seen)
            kind = routing_of(paths[0])
            axes.errorbar(
                loss.mean, cost.mean, xerr=loss.half, yerr=cost.half, label=name,
                **_look(name, kind), linestyle="", elinewidth=0.6, capsize=1.5, markersize=5,
            )  # fmt: skip
            chart.record(name, kind, panel, how, *_parts(loss), *_parts(cost))
        axes.set_xlabel("validation loss (nats a token)")
        axes.set_title("served alike" if panel == "alike" else "each by its own knowledge")
    chart.axes[0][0].set_ylim(bottom=0)
    chart.axes[0][0].set_ylabel("ms a generated token")
    shared_legend(chart, wide=True)
    return chart


def hits_by_capacity(traces: Traces) -> Chart:
    """Hit rate against capacity, all rows served alike."""
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
