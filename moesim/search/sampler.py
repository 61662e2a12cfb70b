"""The sampler of Optuna that chooses places of a grid, each at most once.

The first choices are spread over the grid: each is a place that is farthest from those before it.
Later ones alternate. One is that of TPE (Watanabe, arXiv 2304.11127). A grid has few points, so TPE
would often choose one again; the nearest free place replaces it. The other is a free place beside
one of the best, because the metrics of a simulation seldom jump between neighbours.

A choice depends on the stored trials, the search's seed and the trial's number alone: the sampler
draws from a stream of its own for each trial. This module needs the extra `search`.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Mapping, Sequence, Set
from typing import Any, Final

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from moesim.search.front import better_part, front_of
from moesim.search.grid import Grid, Place

__all__ = ["SPREAD", "GridSampler"]

SPREAD: Final = 8
"""The first places, which are spread evenly, because TPE has nothing to learn from yet."""


class GridSampler(BaseSampler):
    """Choose spread places first, then in turn a place of TPE and one beside the best."""

    def __init__(
        self, grid: Grid, free: Sequence[Place], space: Mapping[str, BaseDistribution], seed: int
    ) -> None:
        self._keys = tuple(space)
        searched = [at for at, key in enumerate(grid.keys) if key in space]
        self._free = [tuple(place[at] for at in searched) for place in free]
        self._space = dict(space)
        # How far a step of a key is; an unordered key has only equal and different.
        self._steps = [
            1 / (len(grid.values[key]) - 1) if key in grid.ordered else None for key in space
        ]
        self._counts = [len(grid.values[key]) for key in space]
        self._seed = seed

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self._space

    def sample_relative(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        search_space: dict[str, BaseDistribution],
    ) -> dict[str, Any]:
        """Return the values of all keys: the places are chosen as a whole."""
        taken = self._taken(study, trial)
        left = [place for place in self._free if place not in set(taken)]
        digest = hashlib.sha256(f"{self._seed} {trial.number}".encode()).digest()
        number = int.from_bytes(digest[:4], "big")
        rng = random.Random(number)
        if trial.number < SPREAD:
            place = self._farthest(left, taken, rng)
        elif trial.number % 2 and (beside := self._beside(_best(study), set(left))):
            place = rng.choice(beside)
        else:
            place = self._nearest(left, self._of_tpe(study, trial, number))
        return dict(zip(self._keys, place, strict=True))

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        raise AssertionError("all values are chosen together")

    def _taken(self, study: optuna.Study, trial: FrozenTrial) -> list[Place]:
        others = study.get_trials(deepcopy=False)[: trial.number]
        return [tuple(int(each.params[key]) for key in self._keys) for each in others]

    def _of_tpe(self, study: optuna.Study, trial: FrozenTrial, seed: int) -> Place:
        tpe = TPESampler(seed=seed, n_startup_trials=1, multivariate=True)
        values = tpe.sample_relative(study, trial, self._space)
        if not values:  # nothing was answered yet
            values = {
                key: tpe.sample_independent(study, trial, key, distribution)
                for key, distribution in self._space.items()
            }
        return tuple(int(values[key]) for key in self._keys)

    def _beside(self, best: Sequence[FrozenTrial], left: Set[Place]) -> list[Place]:
        """Return the free places beside the best ones: each differs in one key.

        Of an ordered key, it is the middle of the free values next to the best one, on each side.
        """
        places = []
        for trial in best:
            own = tuple(int(trial.params[key]) for key in self._keys)
            for axis, step in enumerate(self._steps):
                line = [(*own[:axis], at, *own[axis + 1 :]) for at in range(self._counts[axis])]
                below, above = line[: own[axis]][::-1], line[own[axis] + 1 :]
                if step is None:
                    places += [place for place in (*below, *above) if place in left]
                    continue
                for side in (below, above):
                    free = list(itertools.takewhile(left.__contains__, side))
                    places += free[len(free) // 2 : len(free) // 2 + 1]
        return sorted(set(places))

    def _farthest(self, left: Sequence[Place], taken: Sequence[Place], rng: random.Random) -> Place:
        if not taken:
            return rng.choice(left)
        distances = [min(self._distance(place, other) for other in taken) for place in left]
        most = max(distances)
        return rng.choice([p for p, d in zip(left, distances, strict=True) if d > most - 1e-9])

    def _nearest(self, left: Sequence[Place], wanted: Place) -> Place:
        return min(left, key=lambda place: self._distance(place, wanted))

    def _distance(self, one: Place, other: Place) -> float:
        """Return the sum over the keys of how far two values are apart, as a share of the range."""
        return sum(
            float(a != b) if step is None else abs(a - b) * step
            for a, b, step in zip(one, other, self._steps, strict=True)
        )


def _best(study: optuna.Study) -> list[FrozenTrial]:
    """Return the front of the answered trials that meet all conditions, or the nearest to it."""
    trials = [each for each in study.get_trials(deepcopy=False) if each.values is not None]
    excess = [
        sum(miss for key, miss in each.system_attrs.items() if key.startswith("constraints:"))
        for each in trials
    ]
    signs = [1 if way == StudyDirection.MAXIMIZE else -1 for way in study.directions]
    scores = [
        [sign * value for sign, value in zip(signs, each.values, strict=True)] for each in trials
    ]
    met = [at for at, miss in enumerate(excess) if miss <= 0]
    if not met:
        return [trials[at] for at in better_part(scores, excess, 1)]
    return [trials[met[at]] for at in front_of([scores[at] for at in met])]
