"""How good is my own eviction policy?

A scenario names a class by its file, so a policy needs no package and no registration. This one is
LRU, but a key that several tokens wanted at once counts as used some events later.
"""

from pathlib import Path
from typing import Any

import moesim
from moesim.policies import Key, View
from moesim.policies.eviction import CacheContext, Ranked


class Shared(Ranked):
    """LRU in which a key that several tokens wanted counts as used `BONUS` events later."""

    name = "shared"
    BONUS = 8

    def __init__(self, context: CacheContext, options: Any = None) -> None:
        super().__init__(context, options)
        self.events = 0

    def observe(self, view: View) -> None:
        self.events += 1
        for key, tokens in zip(view.union, view.tokens, strict=True):
            if key not in self.book:
                self.insert(key)
            late = self.BONUS if tokens > 1 else 0
            self.rank[key] = (-self.events - late, -key)  # the highest rank leaves first

    def insert(self, key: Key) -> None:
        super().insert(key)
        self.rank[key] = (-self.events, -key)


if __name__ == "__main__":
    scenario = {
        "trace": "traces/deep",
        "model": {"shape": "mixtral-8x7b", "expert_bits": 4},
        "hardware": "rtx-4090",
        "workload": {"requests": 4},
        "batching": {"max_sequences": 4},
        "bounds": False,
    }
    for policy in ("lru", f"{Path(__file__)}:Shared", "min"):
        changes = {"cache.policy": policy, "cache.slots": "4/layer"}
        summary = moesim.run(scenario, overrides=changes).summary
        name = policy.rpartition(":")[2]
        print(f"{name:8} {summary['expert_hit_rate']:.2%} hits, {summary['misses']} misses")
