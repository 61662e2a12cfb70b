"""One tuning protocol for every gate: the same learning rates, and as many trials at each of them.

A study's range of learning rates is divided into `strata` parts of equal width on a log scale. One
rate in each part, drawn or its middle, is the same for all gates. At each rate every gate has
`draws` trials, so the number of trials is strata x draws for every gate.

Options that every gate has (`shared`, like the factor by which gates learn faster) are the same for
all gates, trial by trial. A gate's own options come from a random stream of its own. Within a rate
no option repeats before all were drawn. Fewer options than draws give equal settings: such a trial
counts, and a study may skip it, because its result is known.

Before this protocol each gate drew its rates at random. Gates with lucky rates then looked better.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise, product
from typing import Any

import numpy as np

from moesim.streams import stream

Setting = dict[str, Any]  # a learning rate `lr`, shared options, and the gate's own
Space = Mapping[str, Sequence[Any]]


def draw_settings(
    gate: str,
    space: Space,
    bounds: tuple[float, float],
    *,
    strata: int,
    draws: int,
    shared: Space | None = None,
    middles: bool = False,
) -> list[Setting]:
    """Return `strata * draws` settings of a gate; the first ones do not depend on `draws`.

    `bounds` are those of the learning rate, and `space` has the values of the gate's own options.
    `middles` takes the middle of each part of the range: a few drawn rates can lie close together.
    """
    edges = np.linspace(math.log(bounds[0]), math.log(bounds[1]), num=strata + 1)
    draw = stream(0, "learning rates of all gates")
    places = [0.5 if middles else draw.random() for _ in range(strata)]
    rates = [
        float(math.exp(low + place * (high - low)))
        for place, (low, high) in zip(places, pairwise(edges), strict=True)
    ]
    return [
        {
            "lr": rate,
            **_pick(shared or {}, "shared options", number, turn),
            **_pick(space, f"options of {gate}", number, turn),
        }
        for turn in range(draws)
        for number, rate in enumerate(rates)
    ]


def _pick(space: Space, name: str, rate: int, turn: int) -> Setting:
    """Return a combination of options: each turn at a rate another one, until all were drawn."""
    combinations = list(product(*space.values()))
    again, place = divmod(turn, len(combinations))
    order = stream(0, name, rate, again).permutation(len(combinations))
    return dict(zip(space, combinations[order[place]], strict=True))
