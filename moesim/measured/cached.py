"""An expert cache on the GPU without a trace: routing that LRU hits at a stated rate.

The hit rate is an input, and all times are simulated. The routing is made for one cache: in each
layer, as many experts of a step are drawn from its slots as the rate says, and the others from
outside. What is owed of a hit is carried to the next layer.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from moesim.errors import UsageError
from moesim.measured.intervals import joined
from moesim.measured.predict import Prediction
from moesim.trace import Trace
from moesim.trace.localities import Sizes

__all__ = ["ExpertCache", "over_hit_rates"]

_STEPS: Final = 16
_SEED: Final = 0


class ExpertCache(NamedTuple):
    """LRU with `slots` slots in each layer, which hits `hit_rate` of its accesses.

    Missing experts are copied from host memory, and run on the GPU.
    """

    slots: int
    hit_rate: float

    def sections(self) -> dict[str, Any]:
        """Return the sections of a scenario with this cache."""
        slots = f"{self.slots}/layer"
        return {
            "cache": {"policy": "lru", "slots": slots, "admission": "always"},
            "placement": {"policy": "copy"},
        }

    def steps(self, sizes: Sizes) -> int:
        """Return the steps of each of the two requests of `routing`."""
        return max(_STEPS, -(-self.slots // sizes.top_k))

    def routing(self, sizes: Sizes) -> Trace:
        """Return a request that fills the slots, and behind it the one that is timed.

        The first row of each is its prompt, which is not run.

        Raises:
            UsageError: a layer has fewer slots than a token wants experts, or a slot for each.
        """
        import numpy as np

        layers, experts, top_k = sizes
        outside = experts - self.slots
        if not top_k <= self.slots < experts:
            raise UsageError(
                f"an expert cache has {top_k} to {experts - 1} slots a layer, not {self.slots}"
            )
        steps = self.steps(sizes)
        ids = np.zeros((2, 1 + steps, layers, top_k), dtype=np.int64)
        ids[:, 0] = np.arange(top_k)
        rng = np.random.default_rng(_SEED)
        # The experts of each layer, the least recently used first; the last ones are in its slots.
        recency = [list(range(experts)) for _ in range(layers)]
        owed = 0.0
        for request, step in np.ndindex(2, steps):
            for layer, order in enumerate(recency):
                if not request and step * top_k < self.slots:
                    used = order[:top_k]  # fills the slots
                else:
                    owed += top_k * self.hit_rate
                    hits = min(max(round(owed), top_k - outside), top_k)
                    owed -= hits
                    used = rng.choice(order[outside:], hits, replace=False).tolist()
                    used += rng.choice(order[:outside], top_k - hits, replace=False).tolist()
                order[:] = [expert for expert in order if expert not in used] + used
                ids[request, 1 + step, layer] = used
        return Trace.from_arrays(
            expert_ids=ids.reshape(-1, layers, top_k), seq_len=[1 + steps] * 2,
            num_experts=experts, prompt_tokens=[1, 1],
            model=f"routing that LRU hits at {self.hit_rate:.3f}",
        )  # fmt: skip


def over_hit_rates(low: Prediction, middle: Prediction, high: Prediction) -> Prediction:
    """Return a prediction whose interval holds the errors of the model and of the hit rate.

    The three are predictions at the lowest, the middle and the highest hit rate. Both causes are
    taken to be independent.
    """
    value = middle.value
    least = value / joined(middle.low / value, low.value / value)
    most = value * joined(middle.high / value, high.value / value)
    return Prediction(value, least, most, middle.notes)
