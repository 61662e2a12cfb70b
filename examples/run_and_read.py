"""How fast is a model whose experts do not fit into GPU memory, and what does it wait for?

Run from the root of the repository: `python examples/run_and_read.py`.
"""

import moesim

SCENARIO = {
    "trace": "traces/deep",  # routing that was recorded from a small model with 32 layers
    "model": {"shape": "mixtral-8x7b", "expert_bits": 4},  # costed with the sizes of Mixtral
    "hardware": "rtx-4090",
    "workload": {"requests": 4},
    "batching": {"max_sequences": 1},
    "cache": {"policy": "lru", "slots": "4/layer"},
}

result = moesim.run(SCENARIO)
print(result)

summary = result.summary
print(f"{summary['decode_mean_tokens_per_s']:.1f} tokens/s for the user, with assumed costs")
print(f"expert hits: {summary['expert_hit_rate']:.1%} of accesses", end="; ")
print(f"with the best evictions {summary['min_hit_rate']:.1%}")
print(f"limited by the {summary['verdict']}:")
for part in summary["verdict_reason"].split("; "):
    print(f"  {part}")

worst = result.layers.nlargest(1, "misses").iloc[0]
print(f"layer {worst.layer:.0f} misses most: {worst.misses:.0f} of {worst.accesses:.0f} accesses")
