"""Which eviction policy is fastest here, and is the difference larger than chance?

A sweep over seeds draws other requests for each seed. All policies get the same requests, so the
differences are paired.
"""

import moesim

SCENARIO = {
    "trace": "traces/deep",
    "model": {"shape": "mixtral-8x7b", "expert_bits": 4},
    "hardware": "rtx-4090",
    "workload": {"requests": 2, "order": "resampled"},
    "batching": {"max_sequences": 1},
    "cache": {"slots": "4/layer"},
    "bounds": False,
}

comparison = moesim.compare(
    SCENARIO, sweep={"cache.policy": ["lru", "lfu", "min"], "seed": [0, 1, 2]}
)
print(comparison)

key = "output_tokens_per_s"
for row in comparison.frame.to_dict("records"):
    bound = "  (knows the future: a bound)" if row["knows_the_future"] == "yes" else ""
    half = row[f"{key}_half_interval"]
    print(f"{row['variant']:14} {row[key]:6.2f} ± {half:.2f} output tokens/s{bound}")

lru, lfu, _ = comparison.rows
gains = [b.value(key) / a.value(key) - 1 for a, b in zip(lru.runs, lfu.runs, strict=True)]
print("LFU against LRU, by seed:", ", ".join(f"{gain:+.1%}" for gain in gains))
