"""What would a link twice as fast give, and what would more slots give?"""

import moesim

SCENARIO = {
    "trace": "traces/deep",
    "model": {"shape": "mixtral-8x7b", "expert_bits": 4},
    "hardware": "rtx-4090",
    "workload": {"requests": 3},
    "batching": {"max_sequences": 1},
    "cache": {"policy": "lru", "slots": "2/layer"},
    "bounds": False,
}
CHANGES = {
    "as it is": {},
    "link x 2": {"hardware.h2d.pinned_bandwidth": "50GB/s"},
    "slots x 2": {"cache.slots": "4/layer"},
    "both": {"hardware.h2d.pinned_bandwidth": "50GB/s", "cache.slots": "4/layer"},
}

base = None
for name, overrides in CHANGES.items():
    summary = moesim.run(SCENARIO, overrides=overrides).summary
    tokens_per_s = summary["output_tokens_per_s"]
    base = base or tokens_per_s
    print(
        f"{name:9} {tokens_per_s:6.2f} output tokens/s ({tokens_per_s / base:.2f} x), "
        f"{summary['stall_share']:.0%} of the time in steps stalled"
    )
