"""Which requests are slowest, and did they queue, or were they served slowly?"""

import numpy as np

import moesim

SCENARIO = {
    "trace": "traces/deep",
    "model": {"shape": "mixtral-8x7b", "expert_bits": 4},
    "hardware": "rtx-4090",
    "workload": {"requests": 8, "arrivals": {"kind": "poisson", "rate_per_s": 0.6}},
    "batching": {"token_budget": 64, "max_sequences": 2},
    "cache": {"policy": "lru", "slots": "4/layer"},
    "bounds": False,
}

requests = moesim.run(SCENARIO).requests
times = requests.assign(
    latency_s=(requests.finish_ns - requests.arrival_ns) / 1e9,
    queued_s=requests.queue_ns / 1e9,
    largest_gap_ms=[np.diff(times).max(initial=0) / 1e6 for times in requests.token_ns],
)

for row in times.nlargest(3, "latency_s").itertuples():
    print(
        f"request {row.request} ({row.prompt_tokens} + {row.output_tokens} tokens): "
        f"{row.latency_s:.2f} s, of which {row.queued_s:.2f} s queued; "
        f"largest gap between tokens {row.largest_gap_ms:.0f} ms"
    )
print(f"median of all: {times.latency_s.median():.2f} s")
