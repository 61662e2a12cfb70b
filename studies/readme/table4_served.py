"""Table 4 of Read-ME again, unfitted: hit ratios of the server on decoupled routing.

    python studies/readme/table4_served.py [--seeds 5]

There are two traces. One is the shipped trace of a refactored SmolLM2 (4 experts). The other is
synthetic, with as many experts as the paper's model: 7, uniform, and a token takes its
predecessor's expert in 71.3 %, as published. Every seed serves 32 requests that arrive at once, one
at a time and 8 at a time, expert-aware, without prefetch. A loaded expert takes a slot. Belady is
`lookahead`, which knows the queued tokens; MIN knows all. Hits are counted over distinct experts of
layer events, and also weighted by tokens. The paper does not define its count.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from output import counted, spread

from moesim.report.statistics import estimate
from moesim.report.tabular import Table, markdown
from moesim.scenario import Scenario
from moesim.simulate import prepare, result_of
from moesim.trace import DecoupledKnobs, Trace, load_trace, synthesize_decoupled

SHIPPED: Final = Path(__file__).resolve().parents[2] / "traces/readme-decoupled"
POLICIES: Final = ("random", "lru", "lookahead", "min")
SEQUENCES: Final = (1, 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trace", type=Path, default=SHIPPED)
    options = parser.parse_args()
    seeds = range(options.seeds)
    shipped = load_trace(options.trace)
    print(markdown(hits("shipped trace, 4 experts", lambda _: shipped, (1, 2, 3), seeds)))
    print()
    print(markdown(hits("synthetic, 7 experts", synthetic, (2, 3, 4, 5), seeds)))


def hits(name: str, trace: Any, capacities: Sequence[int], seeds: Sequence[int]) -> Table:
    """Return hit ratios in percent, by policy and capacity."""
    table = Table(
        f"Hits, % of experts of layer events (% of tokens): {name}, {len(seeds)} seeds, 95 %",
        ["policy, slots", *(f"{count} at once" for count in SEQUENCES)],
    )
    cells = [(policy, capacity) for policy in POLICIES for capacity in capacities]
    for policy, capacity in counted(cells, name):
        shown = []
        for sequences in SEQUENCES:
            seen = [served(trace(seed), policy, capacity, sequences, seed) for seed in seeds]
            events, tokens = (
                spread(estimate(summary[key] for summary in seen), digits=1, scale=100)
                for key in ("expert_hit_rate", "token_hit_rate")
            )
            shown.append(f"{events} ({tokens})")
        table.add(f"{policy}, {capacity}", *shown)
    return table


@functools.cache
def synthetic(seed: int) -> Trace:
    """Return a trace of the shape `readme-llama-2-7b`."""
    return synthesize_decoupled(DecoupledKnobs(requests=32, num_layers=32, seed=seed))


def served(trace: Trace, policy: str, capacity: int, sequences: int, seed: int) -> dict[str, Any]:
    """Return the summary of one run."""
    scenario: dict[str, Any] = {
        "trace": "in memory",
        "model": "trace" if trace.meta.model_config else "readme-llama-2-7b",
        "hardware": "a100-80gb",
        "workload": {"requests": 32, "order": "resampled"},
        "batching": {"policy": "expert_aware", "token_budget": 64, "max_sequences": sequences},
        "cache": {"policy": policy, "slots": f"{capacity}/layer", "admission": "always"},
        # Bounds and timeline would only cost time: the tables do not show them.
        "bounds": False,
        "timeline": {"steps": 0},
        "seed": seed,
    }
    return dict(result_of(prepare(Scenario.model_validate(scenario), trace)).summary)


if __name__ == "__main__":
    main()
