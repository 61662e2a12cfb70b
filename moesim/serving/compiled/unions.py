"""The unions of the layer events of many steps: which experts each wants, and by how many rows.

Shapes: S steps, L layers, K experts per row, N rows.
"""

from __future__ import annotations

import numpy as np

from moesim.serving.compiled.keep import kept

__all__ = ["unions_of_steps"]


@kept
def unions_of_steps(ids, ends, unused, experts, keys, counts, sizes):  # type: ignore[no-untyped-def]
    """Write the unions of steps, in order of first appearance; return the number of their keys.

    Where a row has an expert twice, return -1 - its place among the rows and layers. Costs have
    entries for as many rows of an expert as a step has.

    `ids` [N, L, K]; step s has the rows `ends[s]` to before `ends[s + 1]`. `unused` marks a place
    without an expert. `keys`, `counts` and `sizes` are as in `Steps`.
    """
    layers, top_k = ids.shape[1], ids.shape[2]
    order = np.empty(experts + 1, np.int64)  # the last place takes what is no news
    rows_of = np.zeros(experts, np.int64)
    last = np.full(experts, -1, np.int64)  # the last row and layer that wanted an expert
    number = event = 0
    for step in range(len(ends) - 1):
        first, end = ends[step], ends[step + 1]
        for layer in range(layers):
            size, row, twice = 0, first, False
            if end - first == 1:  # the most frequent case, and no expert has appeared before
                for place in range(top_k):
                    expert = ids[first, layer, place]
                    if expert == unused:
                        continue
                    twice |= last[expert] == first * layers + layer
                    last[expert] = first * layers + layer
                    keys[number + size], counts[number + size] = layer * experts + expert, 1
                    size += 1
                row = end
            # Until all experts are found, without branches, which a processor could not predict.
            while row < end and size < experts:
                for place in range(top_k):
                    expert = ids[row, layer, place]
                    if expert == unused:
                        continue
                    order[size] = expert
                    size += rows_of[expert] == 0
                    rows_of[expert] += 1
                    twice |= last[expert] == row * layers + layer
                    last[expert] = row * layers + layer
                row += 1
            for later in range(row, end):
                for place in range(top_k):
                    expert = ids[later, layer, place]
                    if expert == unused:
                        continue
                    rows_of[expert] += 1
                    twice |= last[expert] == later * layers + layer
                    last[expert] = later * layers + layer
            if twice:
                return -1 - (_repeating(ids, first, layer, unused) * layers + layer)
            for place in range(size if end - first > 1 else 0):
                expert = order[place]
                keys[number + place] = layer * experts + expert
                counts[number + place] = rows_of[expert]
                rows_of[expert] = 0
            number += size
            sizes[event] = size
            event += 1
    return number


@kept
def _repeating(ids, first, layer, unused):  # type: ignore[no-untyped-def]
    """Return the first row from `first` on that has an expert of a layer twice."""
    row = first
    while True:
        for place in range(ids.shape[2]):
            for other in range(place):
                if ids[row, layer, place] == ids[row, layer, other] != unused:
                    return row
        row += 1
