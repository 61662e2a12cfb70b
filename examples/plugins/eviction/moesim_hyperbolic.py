"""Hyperbolic caching, in a package of its own: the key with fewest uses for its age leaves.

The age of a key is the number of layer events since it was admitted. So a key that was popular
long ago loses its slot in time, which plain LFU does not achieve. Blankstein, Sen & Freedman
(USENIX ATC 2017) weigh a sample of the keys by this rule; here all are weighed.

After `pip install ./examples/plugins/eviction`, scenarios can say `cache: {policy: hyperbolic}`.
The entry point in pyproject.toml makes moesim import this module, and `register` adds the class.
"""

from __future__ import annotations

from typing import Any

from moesim.policies import Key, View, register
from moesim.policies.eviction import CacheContext, Ranked


@register("eviction", "hyperbolic")
class Hyperbolic(Ranked):
    """The key with the fewest uses per layer event of age leaves first; ties: the lower key."""

    def __init__(self, context: CacheContext, options: Any = None) -> None:
        super().__init__(context, options)
        self.events = 0
        self.uses: dict[Key, int] = {}  # since the key was admitted
        self.since: dict[Key, int] = {}  # number of events at its admission

    def observe(self, view: View) -> None:
        self.events += 1
        for key in view.union:
            if key not in self.book:
                self.insert(key)
            self.uses[key] += 1
        # Every resident has grown older, so all ranks change, not just those of the union.
        for key in self.book:
            age = self.events - self.since[key] + 1
            self.rank[key] = (-self.uses[key] / age, -key)  # the highest rank leaves first

    def insert(self, key: Key) -> None:
        super().insert(key)
        self.uses[key], self.since[key] = 0, self.events
        # A prefetched key needs a rank at once: the next prefetch may look for a victim.
        self.rank[key] = (0.0, -key)
