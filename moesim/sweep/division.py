"""The division of GPU memory between KV blocks and expert slots, searched with few runs.

Weights, activations and buffers take their part of the memory first. The rest is divided: with n
slots, KV blocks get what n slots leave, at most as many blocks as the requests can use. So a number
of slots stands for a division, and no other division with these slots is better.

The search runs an even grid of divisions first, because the goal need not have one optimum only. It
then halves the wider gap beside the best division, until gaps are narrow or all runs are used. This
finds the optimum beside the best point of the grid; a higher one elsewhere may lie between its
points.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from moesim.config.units import format_bytes
from moesim.errors import BudgetError, ScenarioError
from moesim.scenario.sweep import with_values
from moesim.serving.budget import useful_blocks
from moesim.simulate import prepare
from moesim.workload.workload import build_workload

if TYPE_CHECKING:
    from moesim.scenario import Scenario
    from moesim.trace import Trace

__all__ = [
    "GOALS",
    "Goal",
    "Room",
    "Search",
    "best_of",
    "count_peaks",
    "flat_around",
    "remarks",
    "room_of",
    "search",
]

Goal = Literal["throughput", "ttft", "e2e"]
GOALS: Final[Mapping[Goal, tuple[str, int]]] = {
    "throughput": ("output_tokens_per_s", 1),
    "ttft": ("ttft_p95_ms", -1),
    "e2e": ("e2e_p95_ms", -1),
}
"""The number of `summary.json` of each goal, and 1 where more is better, else -1."""
COARSE: Final = 7
"""The most divisions of the even grid."""
FLAT: Final = 0.01
"""The relative difference from the best below which divisions count as equal."""
_FINEST: Final = 64  # no gap is halved that is narrower than this part of all divisions


@dataclass(frozen=True, slots=True)
class Room:
    """The memory that KV blocks and expert slots share, and the divisions that make sense.

    `slot_bytes` is the size of an expert, or the mean size where sizes are unequal. `experts` is
    the number of all experts. `least` and `most` are numbers of slots: with fewer than `least`, KV
    blocks would have no use for the rest. With more than `most`, the longest request would not fit,
    or there are no more experts.
    """

    free_bytes: int
    block_bytes: int
    block_tokens: int
    useful_blocks: int
    slot_bytes: int
    equal_sizes: bool
    experts: int
    least: int
    most: int

    def blocks(self, slots: int) -> int:
        """Return the KV blocks beside this many slots."""
        return min(
            self.useful_blocks, (self.free_bytes - slots * self.slot_bytes) // self.block_bytes
        )

    def share(self, slots: int) -> float:
        """Return the share of the free memory that KV blocks get."""
        return self.blocks(slots) * self.block_bytes / self.free_bytes

    def values(self, slots: int) -> dict[str, Any]:
        """Return the keys of a scenario that divide the memory so."""
        size = slots if self.equal_sizes else _exact(slots * self.slot_bytes)
        return {"memory.kv": _exact(self.blocks(slots) * self.block_bytes), "cache.slots": size}


def room_of(scenario: Scenario, trace: Trace | None = None) -> Room:
    """Return the memory that a scenario leaves to KV blocks and slots, whatever it gives them.

    `trace` saves reading the scenario's trace again.

    Raises:
        ScenarioError: the scenario is wrong, or its division cannot change.
        BudgetError: the memory does not hold the rest, or the KV entries of the longest request.
    """
    if isinstance(scenario.cache.split, list):
        raise ScenarioError.at(
            scenario,
            "cache.split",
            "lists the slots of each layer, so their sum cannot be searched; write uniform, demand "
            "or adapmoe",
        )
    # As if the split were free: what the scenario gives either part must not limit the search.
    plan = prepare(
        with_values(
            scenario,
            {
                "memory.kv": "auto",
                "cache.slots": "rest",
                "cache.initial_layers": 0,
                "bounds": False,
            },
        ),
        trace,
    )
    budget, shape = plan.budget, plan.cost.shape
    if not budget.kv_bytes:
        raise ScenarioError.at(
            scenario,
            "model",
            f"{shape.name} keeps no KV entries in GPU memory, so nothing is divided",
        )
    block = budget.kv_bytes // budget.kv_blocks
    free = budget.kv_bytes + budget.slots_bytes + budget.free_bytes
    requests = build_workload(scenario, plan.trace)
    kv_tokens = [request.max_kv_tokens for request in requests]
    tokens = scenario.memory.kv_block_tokens
    useful, longest = useful_blocks(scenario, kv_tokens), -(-max(kv_tokens) // tokens)
    every = plan.trace.num_layers * plan.trace.num_experts
    sizes = plan.sizes
    slot = plan.cost.expert_bytes if sizes is None else sum(sizes) // len(sizes)
    most = min(every, (free - longest * block) // slot)
    least = min(most, max(0, (free - useful * block) // slot))
    first = scenario.cache.initial_layers * plan.trace.num_experts
    if plan.places.residents is None and first > most:
        raise BudgetError(
            f"{scenario.mark('cache.initial_layers')}: {first} slots of initial layers and the KV "
            f"entries of the longest request exceed {format_bytes(free)}; there is room for {most} "
            "slots; set cache.initial_layers to fewer"
        )
    least = max(least, first if plan.places.residents is None else 0)
    return Room(free, block, tokens, useful, slot, sizes is None, every, least, most)


@dataclass(frozen=True, slots=True)
class Search:
    """The divisions that were tried, with the score of each; more is better.

    `coarse` are those of the grid, ascending. `tried` is in the order of the runs.
    """

    tried: Mapping[int, float]
    coarse: Sequence[int]
    narrow: bool
    """Whether the gaps beside the best are narrow, so that the search needed no more runs."""

    @property
    def best(self) -> int:
        """The division with the best score; of equal ones, that with the fewest slots."""
        return best_of(self.tried)

    @property
    def peaks(self) -> int:
        """The optima of the grid that are more than 1 % apart from their valleys."""
        return count_peaks([self.tried[slots] for slots in self.coarse])

    @property
    def flat(self) -> tuple[int, int]:
        """The first and the last of the divisions around the best that are within 1 % of it."""
        return flat_around(self.tried)


def search(least: int, most: int, score: Callable[[int], float], runs: int) -> Search:
    """Return a search for the number from `least` to `most` with the highest score.

    `score` is called at most `runs` times, once for a number. NaN is the worst score.
    """
    points = max(1, min(COARSE, runs, most - least + 1))
    last = max(1, points - 1)
    coarse = sorted({least + round((most - least) * place / last) for place in range(points)})
    tried: dict[int, float] = {}
    for slots in coarse:
        tried[slots] = score(slots)
    narrowest = max(1, (most - least) // _FINEST)
    while True:
        best, places = best_of(tried), sorted(tried)
        at = places.index(best)
        gaps = [(places[at - 1], best)] if at else []
        gaps += [(best, places[at + 1])] if at + 1 < len(places) else []
        first, second = max(gaps, key=lambda gap: gap[1] - gap[0], default=(best, best))
        if second - first <= narrowest:
            return Search(tried, coarse, narrow=True)
        if len(tried) >= runs:
            return Search(tried, coarse, narrow=False)
        middle = (first + second) // 2
        tried[middle] = score(middle)


def best_of(tried: Mapping[int, float]) -> int:
    """Return the number with the highest score; of equal ones, the lowest number."""
    return max(sorted(tried), key=lambda slots: _worth(tried[slots]))


def flat_around(tried: Mapping[int, float]) -> tuple[int, int]:
    """Return the range of tried numbers around the best whose scores are all within 1 % of it."""
    best, places = best_of(tried), sorted(tried)
    least_worth = _worth(tried[best]) - FLAT * abs(tried[best])
    first = last = places.index(best)
    while first and _worth(tried[places[first - 1]]) >= least_worth:
        first -= 1
    while last + 1 < len(places) and _worth(tried[places[last + 1]]) >= least_worth:
        last += 1
    return places[first], places[last]


def count_peaks(scores: Sequence[float]) -> int:
    """Return the peaks of a sequence of scores, where falls and rises below 1 % do not count."""
    worths = [_worth(score) for score in scores]
    step = FLAT * abs(max(worths))
    peaks, rises, turn = 0, True, -math.inf
    for worth in worths:
        if rises and worth < turn - step:
            peaks, rises, turn = peaks + 1, False, worth
        elif not rises and worth > turn + step:
            rises, turn = True, worth
        else:
            turn = max(turn, worth) if rises else min(turn, worth)
    return peaks + rises


def _worth(score: float) -> float:
    return -math.inf if math.isnan(score) else score


def _exact(nbytes: int) -> str:
    """Return a size in the largest unit of which it is a multiple."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if nbytes and not nbytes % size:
            return f"{nbytes // size}{unit}"
    return f"{nbytes}B"


def remarks(room: Room, found: Search) -> list[str]:
    """Return what a reader must know of a search: its runs, its optima, and how flat they are."""
    more = len(found.tried) - len(found.coarse)
    notes = [f"tried: {len(found.coarse)} divisions at even steps, then {more} beside the best"]
    if room.least == room.most:
        return [
            f"nothing to divide: beside {room.least} slots, KV blocks hold all that the requests "
            "can use"
            if room.blocks(room.least) == room.useful_blocks
            else f"nothing to divide: the longest request leaves room for {room.least} slots"
        ]
    first, last = found.flat
    if first < last:
        shares = f"{room.share(last):.0%} to {room.share(first):.0%} of the free memory"
        notes.append(f"flat: KV blocks of {shares} ({first} to {last} slots) are within 1 %")
    if found.peaks > 1:
        notes.append(
            f"the even steps show {found.peaks} optima, so a better division may lie between them; "
            "raise --runs, or read the figure"
        )
    if not found.narrow:
        notes.append("the search ended for lack of runs; --runs allows more")
    if found.best == room.least:
        notes.append("the best is at an end: KV blocks hold all that the requests can use")
    if found.best == room.most:
        end = "every expert has a slot"
        if room.most < room.experts:
            end = "KV blocks hold little more than the longest request"
        notes.append(f"the best is at an end: {end}")
    return notes
