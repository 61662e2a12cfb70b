"""How long do the requests of a log wait?

`requests.csv` has arrival times and lengths. The trace says which experts their tokens want. Logs
of Azure, BurstGPT, Vidur, Mooncake and ShareGPT are read as they are (docs/workloads.md).
"""

from pathlib import Path

import moesim

LOG = Path(__file__).with_name("requests.csv")
SCENARIO = {
    "trace": "traces/deep",
    "model": {"shape": "mixtral-8x7b", "expert_bits": 4},
    "hardware": "rtx-4090",
    "workload": {"requests": 6, "arrivals": {"kind": "file", "path": str(LOG)}},
    "batching": {"token_budget": 64, "max_sequences": 2},
    "cache": {"policy": "lru", "slots": "4/layer"},
    "bounds": False,
}

requests = moesim.run(SCENARIO).requests
print("arrival  waits for its first step  first token after  finished after")
for row in requests.to_dict("records"):
    arrival, first, last = (row[key] / 1e9 for key in ("arrival_ns", "first_token_ns", "finish_ns"))
    waits = row["queue_ns"] / 1e9
    print(f"{arrival:6.1f}s {waits:24.2f}s {first - arrival:17.2f}s {last - arrival:14.2f}s")
