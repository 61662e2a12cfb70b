"""How fast would my own machine be?

A machine is named by the texts of its parts, or by a profile with changes. What the texts leave
open is assumed, and the notes of the result say so.
"""

import moesim

SCENARIO = {
    "trace": "traces/deep",
    "model": {"shape": "mixtral-8x7b", "expert_bits": 4},
    "workload": {"requests": 2},
    "batching": {"max_sequences": 1},
    "cache": {"policy": "lru", "slots": "2/layer"},
    "bounds": False,
}
MACHINES = {
    "parts": {"gpu": "RTX 3060 12GB", "cpu": "Ryzen 7 5800X", "memory": "DDR4-3200 x2"},
    "profile": "rtx-3060-12gb",
    "profile, PCIe 3.0": {"profile": "rtx-3060-12gb", "h2d": {"pinned_bandwidth": "12.5GB/s"}},
}

for name, hardware in MACHINES.items():
    result = moesim.run({**SCENARIO, "hardware": hardware})
    summary = result.summary
    print(
        f"{name:17} {summary['output_tokens_per_s']:.2f} output tokens/s, "
        f"link busy for {summary['h2d_busy_share']:.0%} of the time"
    )
    for note in summary["notes"]:
        if "suppose" in note or "no text" in note:
            print(f"{'':17} {note}")
