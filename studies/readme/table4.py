"""Table 4 of Read-ME: hit ratio by capacity for Random, LRU and Belady.

    python studies/readme/table4.py [--seeds 10] [--references 40000]

The paper does not say what one reference is, how far its Belady looks ahead, or which process made
the table. One stated process with two chosen parameters is close to it. References are independent,
one a token, drawn uniformly from SIX experts (the model has seven). Belady sees the next TWO
references and falls back to LRU. This is a fit to the table, not a reproduction. The offline MIN of
the same references is shown too. A reference here is one token's expert. The simulator's hit rates
count distinct experts of layer events, so they cannot be compared.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from output import at_least_one, run_main

from moesim.simulate.curve import curve
from moesim.trace import Trace

PUBLISHED: Final = {
    "random": {2: 34.19, 3: 50.14, 4: 67.52, 5: 82.91},
    "lru": {2: 33.90, 3: 52.42, 4: 66.95, 5: 83.48},
    "belady": {2: 44.16, 3: 61.82, 4: 77.21, 5: 88.03},
}
EXPERTS: Final = 6
WINDOW: Final = 2
WITHIN: Final = {"random": 3.0, "lru": 3.0, "belady": 4.0}
"""Largest allowed difference of a cell from the paper's, in points."""
POLICIES: Final = {"random": "random", "lru": "lru", "belady": "min_window", "min": "min"}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=at_least_one, default=10)
    parser.add_argument("--references", type=at_least_one, default=40_000)
    options = parser.parse_args()
    rates = [measure(seed, options.references) for seed in range(options.seeds)]
    print(f"policy   capacity   paper   ours   gap   (± over {options.seeds} seeds)")
    for policy in POLICIES:
        for capacity in PUBLISHED["lru"]:
            print(row(policy, capacity, [rate[policy][capacity] for rate in rates]))


def measure(
    seed: int, references: int, *, experts: int = EXPERTS, window: int = WINDOW
) -> dict[str, dict[int, float]]:
    """Return the hit ratios in percent of one draw of references, by policy and capacity."""
    rng = np.random.default_rng(seed)
    # One request of one layer: each row is one reference.
    trace = Trace.from_arrays(
        expert_ids=rng.integers(experts, size=(references, 1, 1)),
        seq_len=[references],
        num_experts=experts,
        model="independent uniform references",
        synthetic=True,
    )
    wanted: list[str | tuple[str, dict[str, Any]]]
    wanted = ["random", "lru", ("min_window", {"window": window}), "min"]
    rates = curve(trace, wanted, capacities=PUBLISHED["lru"], admission="always", seed=seed)
    return {
        name: {capacity: 100 * rate for capacity, rate in rates[policy].items()}
        for name, policy in POLICIES.items()
    }


def row(policy: str, capacity: int, rates: Sequence[float]) -> str:
    """Return one line of the table: the mean, and twice its standard error."""
    mean = float(np.mean(rates))
    error = 2 * float(np.std(rates, ddof=1)) / len(rates) ** 0.5 if len(rates) > 1 else 0.0
    if policy not in PUBLISHED:
        return f"{policy:8} {capacity:8} {'-':>7} {mean:6.2f} {'':>5}   ± {error:.2f}"
    paper = PUBLISHED[policy][capacity]
    verdict = "" if abs(mean - paper) <= WITHIN[policy] else f"  over {WITHIN[policy]:g}"
    return (
        f"{policy:8} {capacity:8} {paper:7.2f} {mean:6.2f} {mean - paper:+5.2f}"
        f"   ± {error:.2f}{verdict}"
    )


if __name__ == "__main__":
    run_main(main)
