"""The union of a step: how many distinct experts of a layer a batch of tokens wants.

A cache with fewer slots than one step's union cannot hold the step, whatever its policy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from moesim.trace.findings.sample import Sample

__all__ = ["Union", "overflow", "unions"]

_STEPS: Final = 64
_MOST_LAYERS: Final = 16


@dataclass(frozen=True, slots=True)
class Union:
    """Distinct experts of a layer in a step of `batch` tokens, a mean over steps and layers.

    The tokens are of different requests. `independent` is what tokens drawn from the popularity
    would want, and `uniform` what tokens of uniform routing would.
    """

    batch: int
    experts: float
    independent: float
    uniform: float

    def pressure(self, slots: float) -> float:
        """Return r: the union over the slots of a layer."""
        return self.experts / slots


def unions(sample: Sample, rng: np.random.Generator) -> list[Union]:
    """Return the union at batches of 1, 2, 4, ... tokens, up to the number of requests."""
    starts, lengths = _decode_rows(sample)
    requests = len(starts)
    layers = np.unique(np.linspace(0, sample.layers - 1, _MOST_LAYERS).round().astype(int))
    used_LTE = np.stack([sample.uses(int(layer)) for layer in layers])
    popularity_LE = used_LTE.mean(axis=1)
    share = sample.top_k / sample.experts
    found = []
    batch = 1
    while batch <= requests:
        sizes = []
        for _ in range(_STEPS):
            chosen = rng.permutation(requests)[:batch]
            rows = starts[chosen] + rng.integers(lengths[chosen])
            sizes.append(used_LTE[:, rows].any(axis=1).sum(axis=1).mean())
        found.append(
            Union(
                batch,
                float(np.mean(sizes)),
                float((1 - (1 - popularity_LE) ** batch).sum(axis=1).mean()),
                sample.experts * (1 - (1 - share) ** batch),
            )
        )
        batch *= 2
    return found


def _decode_rows(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """Return first row and number of the decoded rows of each request; of all rows without any."""
    decoded = sample.lengths - sample.prompts
    if (decoded > 0).sum() >= 2:
        kept = decoded > 0
        return (sample.firsts + sample.prompts)[kept], decoded[kept]
    kept = sample.lengths > 0
    return sample.firsts[kept], sample.lengths[kept]


def overflow(found: list[Union], slots: float) -> int | None:
    """Return the smallest batch whose union exceeds the slots of a layer; None without any."""
    return next((one.batch for one in found if one.experts > slots), None)
