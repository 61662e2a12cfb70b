"""How accurate must a predictor of experts be before prefetching pays?

The prefetch `dial` knows the future and spoils it: it predicts a stated share of the true experts
(recall), and a stated share of what it predicts is right (precision). It is a bound, not a policy.
The link limits this machine, so copies of wrong experts delay those that are needed.
"""

import moesim

SCENARIO = {
    "trace": "traces/deep",
    "model": {"shape": "mixtral-8x7b", "expert_bits": 4},
    "hardware": "rtx-4090",
    "workload": {"requests": 2},
    "batching": {"max_sequences": 1},
    "cache": {"policy": "lru", "slots": "4/layer"},
    "bounds": False,
    "metrics": {"without_prefetch": True},  # each run is compared with itself without prefetch
}

PREDICTORS = [{"recall": r, "precision": p} for p in (1.0, 0.5) for r in (0.3, 0.6, 0.9)]

comparison = moesim.compare(
    SCENARIO, sweep={"prefetch": [{"policy": "dial", "options": each} for each in PREDICTORS]}
)
for row in comparison.rows:
    options = row.runs[0].scenario["prefetch"]["options"]
    saved = row.mean("prefetch_saved_share")
    print(
        f"recall {options['recall']}, precision {options['precision']}: "
        f"{'saves' if saved > 0 else 'costs'} {abs(saved):5.1%} of the time in steps"
    )
