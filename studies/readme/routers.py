"""The gain of a decoupled router, and of Read-ME's batching, caching and prefetching on top.

    python studies/readme/routers.py [--seeds 5]

Both traces come from the same dense model (SmolLM2-135M), cut into the same experts and tuned on
the same text. `layerwise` has a router in each layer, `decoupled` one for all layers. Each seed
draws 32 requests of the traces, the same for all rows; all arrive at once. There are two batches.
With 8 requests at a time and 64 tokens a step, every running request takes part in every step. With
32 at a time and 16 tokens a step, batching can choose between requests. Costs are assumed (the
profile rtx-3060-12gb, bfloat16, the model's own sizes). The link is slow compared with such small
layers, as is usual with offloading. Nothing is fitted.

Each of the three is switched on alone, then all together. `lookahead` runs with the default bypass,
which drops an expert at once if others are known to be wanted earlier, and with `always`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from output import at_least_one, command, counted, run_main, spread

from moesim.errors import UsageError
from moesim.report.statistics import difference, estimate
from moesim.report.tabular import Table, markdown
from moesim.simulate import run
from moesim.trace import load_trace
from moesim.trace.locality import locality, pooled

TRACES: Final = Path(__file__).resolve().parents[2] / "traces"
LAYERWISE, DECOUPLED = "readme-layerwise", "readme-decoupled"
Summary = dict[str, Any]
Batch = tuple[int, int]  # most requests at a time, most tokens a step
BATCHES: Final[Sequence[Batch]] = ((8, 64), (32, 16))
EXPERT_AWARE: Final = {"policy": "expert_aware"}
ROWS: Final[Mapping[str, tuple[str, dict[str, Any]]]] = {
    "layerwise": (LAYERWISE, {}),
    "layerwise, random cache": (LAYERWISE, {"cache": {"policy": "random"}}),
    "layerwise, prefill first": (LAYERWISE, {"batching": {"policy": "prefill_first"}}),
    "decoupled": (DECOUPLED, {}),
    "+ batching": (DECOUPLED, {"batching": EXPERT_AWARE}),
    "+ look-ahead cache": (DECOUPLED, {"cache": {"policy": "lookahead"}}),
    "+ look-ahead cache, no bypass": (
        DECOUPLED,
        {"cache": {"policy": "lookahead", "admission": "always"}},
    ),
    "+ prefetch": (DECOUPLED, {"prefetch": {"policy": "layer_ahead"}}),
    "+ all": (
        DECOUPLED,
        {
            "batching": EXPERT_AWARE,
            "cache": {"policy": "lookahead"},
            "prefetch": {"policy": "layer_ahead"},
        },
    ),
    "+ all, no bypass": (
        DECOUPLED,
        {
            "batching": EXPERT_AWARE,
            "cache": {"policy": "lookahead", "admission": "always"},
            "prefetch": {"policy": "layer_ahead"},
        },
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=at_least_one, default=5)
    parser.add_argument("--traces", type=Path, default=TRACES)
    options = parser.parse_args()
    print(command("routers"))
    for batch in BATCHES:
        for slots in (1, 2, 3):
            print(markdown(by_part(options.traces, slots, batch, range(options.seeds))), end="\n\n")
    print(markdown(by_domain(options.traces)))


def check_pair(traces: Path) -> None:
    """Raise `UsageError` unless both traces have the same requests and differ only in routing."""
    pair = [load_trace(traces / name) for name in (LAYERWISE, DECOUPLED)]
    for column in ("domain", "prompt_tokens", "output_tokens"):
        ours, theirs = (trace.requests[column].tolist() for trace in pair)
        if ours != theirs:
            raise UsageError(
                f"{LAYERWISE} and {DECOUPLED} differ in {column}: record both from the same "
                "prompts, so that all rows serve the same work"
            )


def by_part(traces: Path, slots: int, batch: Batch, seeds: Sequence[int]) -> Table:
    """Return one row a combination, latencies as changes against the layer-wise router.

    Changes are computed seed by seed.
    """
    experts = load_trace(traces / DECOUPLED).num_experts
    table = Table(
        f"{slots} of {experts} experts a layer, {batch[0]} requests at a time, {batch[1]} tokens a "
        f"step ({len(seeds)} seeds, 95 % intervals)",
        [
            "router and policies",
            "hits and late hits (%)",
            "unique experts",
            "GPU stalled (%)",
            "mean latency (%)",
            "95th percentile (%)",
            "longest wait (steps)",
        ],
    )
    first: list[Summary] = []
    for name, (trace, policies) in counted(list(ROWS.items()), f"{slots} slots"):
        seen = [simulated(traces / trace, slots, batch, seed, policies) for seed in seeds]
        # The first row is the layer-wise router, against which the others are compared.
        first = first or seen
        table.add(
            name,
            _mean(seen, "expert_hit_rate", digits=1, scale=100),
            _mean(seen, "unique_experts_per_event_mean"),
            _mean(seen, "stall_share", digits=1, scale=100),
            _latency(seen, first, "normalised_mean_ms"),
            _latency(seen, first, "e2e_p95_ms"),
            _mean(seen, "wait_max_steps", digits=0),
        )
    return table


def simulated(
    trace: Path, slots: int, batch: Batch, seed: int, policies: Mapping[str, Mapping[str, Any]]
) -> Summary:
    """Return the summary of one run."""
    scenario: dict[str, Any] = {
        "trace": str(trace),
        "hardware": "rtx-3060-12gb",
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
        scenario[section] = {**scenario.get(section, {}), **chosen}
    return dict(run(scenario).summary)


def _mean(seen: Sequence[Summary], key: str, *, digits: int = 2, scale: float = 1) -> str:
    return spread(estimate(summary[key] for summary in seen), digits=digits, scale=scale)


def _latency(seen: Sequence[Summary], first: Sequence[Summary], key: str) -> str:
    """Return the latency of the first row; for the others return the change in percent."""
    if seen is first:
        return f"{_mean(seen, key)} ms"
    change = difference([s[key] for s in seen], [s[key] for s in first])
    return spread(change, digits=1, scale=100, sign=True)


def by_domain(traces: Path) -> Table:
    """Return locality: the share of tokens with the expert of the token before them."""
    table = Table(
        "Share of tokens that take the previous token's expert, % (chance in brackets); "
        "published for Arxiv: 71.3 (Read-ME), 20.8 (Mixtral)",
        ["domain", "decoupled", "layerwise, layers pooled"],
    )
    both = [locality(load_trace(traces / name)) for name in (DECOUPLED, LAYERWISE)]
    for domain in (*dict.fromkeys(row.domain for row in both[0]), None):
        ours = [pooled([row for row in rows if domain in (None, row.domain)]) for rows in both]
        cells = [f"{100 * each.same_top:.1f} ({100 * each.chance_top:.1f})" for each in ours]
        table.add(domain or "all", *cells)
    return table


if __name__ == "__main__":
    run_main(main)
