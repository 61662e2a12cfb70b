"""The grid of a search: the points of a scenario's sweep, by the place of each value.

A *place* is a tuple with one number for each searched key: the position of its value. Values that
are numbers of one kind are in ascending order, others in the order of the scenario. The key `seed`
is not searched: its values repeat each point.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from moesim.config.spelling import spelled
from moesim.errors import ScenarioError, UsageError
from moesim.search.ranges import numbers_of, parse_over
from moesim.sweep import Point, points_of
from moesim.sweep.points import slug

if TYPE_CHECKING:
    from moesim.scenario import Scenario

__all__ = ["Grid", "Place", "load_grid"]

Place = tuple[int, ...]
SEED: Final = "seed"
_SET: Final = re.compile(r"--set sweep\.")


@dataclass(frozen=True, slots=True)
class Grid:
    """The points of a scenario's sweep, one for each place and seed."""

    scenario: Scenario
    values: Mapping[str, tuple[Any, ...]]
    """The values of each searched key, in the order of their places."""
    ordered: frozenset[str]
    """The keys whose values are numbers, and ascend."""
    seeds: tuple[Any, ...]
    """The swept seeds; empty if the seed is not swept."""
    folder: Path
    points: Mapping[Place, tuple[Point, ...]] = field(repr=False)

    @property
    def keys(self) -> tuple[str, ...]:
        """The searched keys."""
        return tuple(self.values)

    @property
    def places(self) -> list[Place]:
        """Every place, the last key fastest."""
        return list(self.points)

    @property
    def runs(self) -> int:
        """The number of runs of the whole grid."""
        return sum(map(len, self.points.values()))

    def chosen(self, place: Place) -> dict[str, Any]:
        """Return the values at a place, by key."""
        return {key: self.values[key][at] for key, at in zip(self.values, place, strict=True)}

    def label(self, place: Place) -> str:
        """Return the values at a place for a message: `cache.policy=lru, cache.slots=4/layer`."""
        return ", ".join(f"{key}={spelled(value)}" for key, value in self.chosen(place).items())

    def shortened(self, place: Place, requests: int) -> tuple[Point, ...]:
        """Return the points of a place with the first `requests` requests of their workload.

        Raise ScenarioError.
        """
        from moesim.scenario.sweep import with_values

        folder = self.folder / "prefix" / f"requests={requests}"
        return tuple(
            Point(
                point.values,
                with_values(point.scenario, {"workload.requests": requests}),
                folder / slug(point.values),
                point.copied,
            )
            for point in self.points[place]
        )

    def one_by_one(self) -> list[Place]:
        """Return few places that hold every value: each differs from the first in one key."""
        first = (0,) * len(self.values)
        places = [
            (*first[:at], number, *first[at + 1 :])
            for at, key in enumerate(self.values)
            for number in range(len(self.values[key]))
        ]
        return list(dict.fromkeys([first, *places]))


def load_grid(
    file: Path,
    overrides: Sequence[str],
    over: Sequence[str],
    folder: Path | None,
    ending: str,
    *,
    copied: bool = False,
) -> tuple[Grid, list[str]]:
    """Return the grid of a scenario file, and the keys that `--over` names.

    `over` are the texts of `--over`; values in them replace those of the sweep. The default of
    `folder`, which gets the runs, is `runs/NAME-ending`. `copied` says that the folder is a copy of
    one elsewhere.

    Raises:
        ScenarioError: the scenario or a value is wrong.
        UsageError: an `--over` is wrong, or there is nothing to search.
    """
    from moesim.scenario import load_scenario

    named = [parse_over(text) for text in over]
    keys = [key for key, _ in named]
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise UsageError(f"--over {twice[0]}: is given twice; list all its values in one")
    sweeps = [f"sweep.{key}={_as_yaml(values)}" for key, values in named if values is not None]
    try:
        loaded = load_scenario(file, [*overrides, *sweeps])
    except ScenarioError as error:
        raise ScenarioError([_SET.sub("--over ", line) for line in error.problems]) from None
    if absent := [key for key in keys if key not in loaded.sweep]:
        raise UsageError(
            f"--over {absent[0]}: the scenario does not sweep this key; write its values, like "
            f"--over {absent[0]}=A,B,C"
        )
    values = {key: tuple(each) for key, each in loaded.sweep.items() if key != SEED}
    if not values:
        swept = "sweeps only the seed" if loaded.sweep else "has no `sweep:`"
        raise UsageError(
            f"{file}: {swept}, so there is nothing to search; name a key and its values, like "
            "--over cache.slots=1/layer..8/layer"
        )
    folder = folder or Path("runs") / f"{loaded.name}-{ending}"
    return _grid(loaded, values, folder, copied=copied), keys


def _grid(
    loaded: Scenario, values: Mapping[str, tuple[Any, ...]], folder: Path, *, copied: bool
) -> Grid:
    """Return the grid of a scenario whose sweep has these values beside its seeds."""
    numbers = {key: numbers_of(each) for key, each in values.items()}
    ascending = {
        key: tuple(values[key][at] for at in sorted(range(len(found)), key=found.__getitem__))
        for key, found in numbers.items()
        if found is not None and len(set(found)) == len(found)
    }
    ranked = {**values, **ascending}
    # Values may be lists or mappings, so they are told apart by their spelling.
    rank = {
        key: {_spelling(value): at for at, value in enumerate(each)} for key, each in ranked.items()
    }
    places = itertools.product(*(range(len(each)) for each in ranked.values()))
    points: dict[Place, tuple[Point, ...]] = dict.fromkeys(places, ())
    for point in points_of(loaded, folder / "runs", copied=copied):
        place = tuple(rank[key][_spelling(point.values[key])] for key in ranked)
        points[place] += (point,)
    seeds = tuple(loaded.sweep.get(SEED, ()))
    return Grid(loaded, ranked, frozenset(ascending), seeds, folder, points)


def _spelling(value: Any) -> str:
    return f"{type(value).__name__} {spelled(value)}"


def _as_yaml(values: Sequence[Any]) -> str:
    """Return values as the text of a YAML list."""
    return json.dumps(list(values), ensure_ascii=False)
