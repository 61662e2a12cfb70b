"""What the trace predicts, as the keys of each call of a prefetch policy."""

from __future__ import annotations

import numpy as np

from moesim.serving.compiled.keep import kept

__all__ = ["guesses_of_steps"]


@kept
def guesses_of_steps(guesses, ends, unused, experts, most, keys, sizes):  # type: ignore[no-untyped-def]
    """Write the predicted keys of each call, in order; return their number.

    `guesses` [B, L, D, K] are experts of the next layers, nearest first; of each layer at most
    `most` distinct ones count. Step s has the rows `ends[s]` to before `ends[s + 1]`. At the start
    of a step nothing is predicted. Where an expert is out of range, return -1 - its row.
    """
    layers, depth, top_k = guesses.shape[1], guesses.shape[2], guesses.shape[3]
    seen = np.full(experts, -1, np.int64)
    number = stamp = 0
    for step in range(len(ends) - 1):
        for layer in range(layers):
            first = number
            for ahead in range(1, min(depth, layers - 1 - layer) + 1):
                base, found = (layer + ahead) * experts, 0
                for row in range(ends[step], ends[step + 1]):
                    for place in range(top_k):
                        expert = guesses[row, layer, ahead - 1, place]
                        if expert == unused:
                            continue
                        if expert >= experts:
                            return -1 - row
                        if seen[expert] != stamp and found < most:
                            seen[expert] = stamp
                            keys[number] = base + expert
                            number += 1
                            found += 1
                stamp += 1
            sizes[step * (layers + 1) + layer + 1] = number - first
    return number
