"""The split: how many expert slots the cache of each MoE layer gets (`cache.split`).

`uniform` gives all layers as many. A list says the number of each layer. Two splits minimise a
cost over all splits of the same total, by dynamic programming over the layers:

- `demand`: the misses of the layers. A layer's hits with n slots are counted in a profile trace:
  those of LRU, one token a step (Mattson et al., IBM Systems Journal 1970), or with `need:
  popularity` the uses of its n most popular experts.
- `adapmoe`: the expected copies on demand for one token, as in AdapMoE (Zhong et al., arXiv
  2408.10284). All experts of a layer are taken as equally likely. One missing expert is prefetched,
  and is the right one with the layer's accuracy of predictions.

The program of AdapMoE gives each layer one slot at least; both do so here, where the slots suffice.
A split that learns from the replayed trace knows the future. It does not with `train`, because the
run then may not serve the requests that it learns from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from moesim.errors import ScenarioError
from moesim.policies.base import Input
from moesim.policies.placement import fixes_residents
from moesim.policies.prefetch.dial import PRESETS
from moesim.policies.registry import find
from moesim.serving.budget import split_slots
from moesim.simulate.lessons import profile_at, refuse_served
from moesim.workload.workload import requests_of

if TYPE_CHECKING:
    from moesim.scenario import Scenario
    from moesim.serving.request import Request
    from moesim.trace import Trace

__all__ = [
    "SPLIT",
    "adapmoe_loads",
    "cheapest_split",
    "check_split",
    "check_split_apart",
    "learnt_from",
    "lru_hits",
    "popular_uses",
    "recorded_accuracy",
    "slots_by_layer",
    "split_note",
]

Costs = npt.NDArray[np.int64] | npt.NDArray[np.float64]
Hits = npt.NDArray[np.int64]
SPLIT: Final = "split"
"""What a run names among the families that learnt from the replayed trace."""
_OPTIONS: Final = "cache.split_options"
_KEY: Final = f"{_OPTIONS}.profile"
_MOST_ROWS: Final = 10_000  # of the profile under LRU: more change the split little, and take long
_FRACTIONS: Final = 1 << 40  # costs are compared in integers, so that equal ones are equal
_FAR: Final = 1 << 61  # the cost of a sum of slots that layers cannot have


@dataclass(frozen=True, slots=True)
class LayerSlots:
    """The slots of each layer. `hindsight`: they were learnt from the replayed trace itself."""

    slots: tuple[int, ...]
    hindsight: bool = False


def slots_by_layer(scenario: Scenario, trace: Trace, total: int) -> LayerSlots:
    """Return the slots of each MoE layer after the initial ones; `total` is their sum.

    Raises:
        ScenarioError: the split learns from a trace that it cannot learn from.
    """
    first, split = scenario.cache.initial_layers, scenario.cache.split
    layers, experts = trace.num_layers - first, trace.num_experts
    if split == "uniform" or total >= layers * experts:
        return LayerSlots(tuple(split_slots(total, layers, experts)))
    if isinstance(split, list):
        return LayerSlots(tuple(split[first:]))
    split_layers = range(first, trace.num_layers)
    given = learnt_from(scenario)
    profile = trace if given is None else profile_at(scenario, trace, _KEY, given)
    part = (0.0, 1.0) if given is None or given.part is None else given.part
    if split == "demand":
        ids_BLK = _ids(profile, part)
        count = lru_hits if scenario.cache.split_options.need == "lru" else popular_uses
        costs: Costs = -np.stack([count(ids_BLK[:, layer], experts) for layer in split_layers])
    else:
        accuracy, single = _accuracies(scenario, profile, part), _singles(scenario, trace)
        loads = [
            adapmoe_loads(experts, trace.top_k, accuracy[layer], single[layer])
            for layer in split_layers
        ]
        costs = np.stack(loads)
    slots = cheapest_split(costs, total, least=1 if total >= layers else 0)
    return LayerSlots(tuple(slots), _in_hindsight(given, profile, trace))


def cheapest_split(costs_LN: Costs, total: int, *, least: int = 0) -> list[int]:
    """Return the slots of each layer that cost least together: `least` to E each, `total` in all.

    `costs_LN[l, n]` is the cost of layer l with n slots, of shape [layers, E + 1]. Of splits with
    the same cost, the most even one is chosen (the least sum of squares), and of these the one that
    gives more to the first layers.

    Raises:
        ValueError: no split has this total.
    """
    layers, most = costs_LN.shape[0], costs_LN.shape[1] - 1
    if not layers * least <= total <= layers * most:
        raise ValueError(f"{total} slots cannot be split over {layers} layers of {least} to {most}")
    if not np.issubdtype(costs_LN.dtype, np.integer):
        costs_LN = np.round(costs_LN * _FRACTIONS).astype(np.int64)
    # For each sum of slots of the later layers: the least cost, and its sum of squares.
    cost, squares = np.full(total + 1, _FAR), np.zeros(total + 1, np.int64)
    cost[0] = 0
    choices = []
    for costs_N in costs_LN[::-1].tolist():
        cost, squares, chosen = _with_layer(costs_N, least, cost, squares)
        choices.append(chosen)
    slots, left = [], total
    for chosen in reversed(choices):
        slots.append(int(chosen[left]))
        left -= slots[-1]
    return slots


def _with_layer(
    costs_N: Sequence[int], least: int, cost: Hits, squares: Hits
) -> tuple[Hits, Hits, Hits]:
    """Return cost, squares and the layer's slots by sum of slots, with one more layer in front."""
    size = len(cost)
    best, best_squares, chosen = np.full(size, _FAR), np.zeros(size, np.int64), np.zeros(size, int)
    # From the most slots, so that the first layers get more where all else is equal.
    for slots in range(min(len(costs_N), size) - 1, least - 1, -1):
        new, square = cost[: size - slots] + costs_N[slots], squares[: size - slots] + slots**2
        old, old_squares = best[slots:], best_squares[slots:]
        better = (new < old) | ((new == old) & (square < old_squares))
        old[better], old_squares[better] = new[better], square[better]
        chosen[slots:][better] = slots
    return best, best_squares, chosen


def lru_hits(ids_BK: Hits, num_experts: int) -> Hits:
    """Return the hits of LRU with 0 to E slots over the rows of one layer, of shape [E + 1].

    A row is one layer event; ids below 0 are unused. Hits are of distinct experts that were
    resident when the event began.
    """
    from moesim.policies.eviction import LRU
    from moesim.simulate.curve import Stream, stack_hits

    unions = [[expert for expert in row if expert >= 0] for row in ids_BK[:_MOST_ROWS].tolist()]
    stream = Stream(unions, range(num_experts), 0)
    return np.array(stack_hits(LRU, None, stream, num_experts))


def popular_uses(ids_BK: Hits, num_experts: int) -> Hits:
    """Return the uses of the 0 to E most used experts of one layer, of shape [E + 1]."""
    uses = np.bincount(ids_BK[ids_BK >= 0], minlength=num_experts)
    return np.concatenate([[0], np.cumsum(np.sort(uses)[::-1])])


def adapmoe_loads(
    num_experts: int, top_k: int, accuracy: float, single: float
) -> npt.NDArray[np.float64]:
    """Return a token's expected copies on demand in a layer with 0 to E slots, of shape [E + 1].

    A share `single` of the tokens uses one expert, the others use `top_k`. The experts that a token
    misses are those of a random draw that have no slot. With probability `accuracy`, one of them
    was prefetched.
    """

    def loads(experts: int, slots: int) -> float:
        missing = experts * (1 - slots / num_experts)
        all_there = comb(slots, experts) / comb(num_experts, experts)
        return missing - accuracy * (1 - all_there)

    return np.array(
        [
            single * loads(1, slots) + (1 - single) * loads(top_k, slots)
            for slots in range(num_experts + 1)
        ]
    )


def learnt_from(scenario: Scenario) -> Input | None:
    """Return the trace from which the scenario's split learns; None if it learns from none."""
    cache = scenario.cache
    options = cache.split_options
    if cache.split != "demand" and (cache.split != "adapmoe" or options.accuracy is not None):
        return None
    path = None if options.profile is None else scenario.path(options.profile)
    part = None if options.train is None else (0.0, options.train)
    return Input(path, "profile", trace=True, part=part)


def check_split(scenario: Scenario, trace: Trace) -> None:
    """Raise ScenarioError where the slots of a trace's layers cannot be split as a scenario says.

    A placement that fixes the experts in GPU memory leaves no slots to split.
    """
    split = scenario.cache.split
    if split == "uniform" or fixes_residents(find("placement", scenario.placement.policy)):
        return
    if scenario.cache.scope == "global":
        raise ScenarioError.at(
            scenario,
            "cache.split",
            "gives each layer slots of its own, and with scope: global all layers share them; "
            "leave it out, or write scope: per_layer",
        )
    if isinstance(split, list):
        _check_list(scenario, trace, split)
    elif (given := learnt_from(scenario)) is not None:
        profile = profile_at(scenario, trace, _KEY, given)
        if split == "adapmoe" and not profile.meta.prediction_depth:
            _refuse_without_predictions(scenario, trace)
    if split == "adapmoe":
        _accuracy_of_options(scenario, trace.num_layers)
        _singles(scenario, trace)


def _check_list(scenario: Scenario, trace: Trace, split: Sequence[int]) -> None:
    layers, experts = trace.num_layers, trace.num_experts
    first = scenario.cache.initial_layers
    if len(split) != layers:
        message = f"gives the slots of {len(split)} layers; the trace has {layers} MoE layers"
    elif max(split) > experts:
        layer = split.index(max(split))
        message = f"gives layer {layer} {max(split)} slots; it has {experts} experts, so give at "
        message += f"most {experts}"
    elif any(slots != experts for slots in split[:first]):
        message = f"gives an initial layer less than a slot for each of its {experts} experts; "
        message += f"write {experts} for each of the first {first}, or fewer cache.initial_layers"
    else:
        return
    raise ScenarioError.at(scenario, "cache.split", message)


def check_split_apart(scenario: Scenario, trace: Trace, requests: Sequence[Request]) -> None:
    """Raise ScenarioError where a run serves requests from which its split learns."""
    given = learnt_from(scenario)
    if given is not None and given.part is not None and scenario.cache.scope == "per_layer":
        name = f"split {scenario.cache.split}"
        refuse_served(scenario, trace, requests, name, given, f"{_OPTIONS}.train")


def split_note(scenario: Scenario, slots: Sequence[int]) -> str | None:
    """Return the slots of all layers and what they were learnt from; None where split evenly."""
    split, given = scenario.cache.split, learnt_from(scenario)
    if split == "uniform" or fixes_residents(find("placement", scenario.placement.policy)):
        return None
    how = "as listed" if isinstance(split, list) else f"split by {split}"
    text = f"slots of the {len(slots)} MoE layers, {how}: {', '.join(map(str, slots))}"
    if given is None:
        return text
    options = scenario.cache.split_options
    part = "" if options.train is None else f"the first {options.train:.0%} of the requests of "
    where = "the replayed trace" if options.profile is None else f"the trace {options.profile}"
    return f"{text}; learnt on {part}{where}"


def _in_hindsight(given: Input | None, profile: Trace, trace: Trace) -> bool:
    """Return whether a split learnt from the replayed trace, or from a copy of it."""
    from moesim.simulate.curve import trace_popularity

    if given is None or given.part is not None:
        return False  # a run with a training part serves none of its requests
    return profile is trace or trace_popularity(profile) == trace_popularity(trace)


def _rows(trace: Trace, part: Sequence[float]) -> slice:
    """Return the rows of a part of a trace's requests."""
    slices = [trace.slice(number) for number in requests_of(trace, part)]
    return slice(slices[0].start, slices[-1].stop) if slices else slice(0, 0)


def _ids(trace: Trace, part: Sequence[float]) -> Hits:
    """Return the ids of a part of a trace, of shape [rows, layers, places]; -1 for unused ones."""
    ids_BLK = np.asarray(trace.expert_ids[_rows(trace, part)]).astype(np.int64)
    return np.where(ids_BLK == trace.meta.unused, -1, ids_BLK)


def _accuracies(scenario: Scenario, profile: Trace, part: Sequence[float]) -> Sequence[float]:
    """Return the accuracy of predictions for each layer: that of the options, or the profile's."""
    given = _accuracy_of_options(scenario, profile.num_layers)
    return recorded_accuracy(profile, _rows(profile, part)) if given is None else given


def recorded_accuracy(trace: Trace, rows: slice) -> list[float]:
    """Return for each layer the share of its used experts that the layer before predicts.

    No layer predicts the first one, so its share is 0.
    """
    assert trace.predictions is not None
    ids_BLK, guesses = np.asarray(trace.expert_ids[rows]), np.asarray(trace.predictions[rows])
    shares = [0.0]
    for layer in range(1, trace.num_layers):
        truth_BK, guess_BK = ids_BLK[:, layer], guesses[:, layer - 1, 0]
        used_BK = truth_BK != trace.meta.unused
        right_BK = (truth_BK[:, :, None] == guess_BK[:, None, :]).any(axis=-1) & used_BK
        shares.append(float(right_BK.sum() / max(1, used_BK.sum())))
    return shares


def _accuracy_of_options(scenario: Scenario, layers: int) -> Sequence[float] | None:
    """Return the accuracy for each layer; None where it is to be counted."""
    accuracy = scenario.cache.split_options.accuracy
    if accuracy is None:
        return None
    if accuracy != "published":
        # The first layer has no layer before it that could predict it.
        listed = accuracy if isinstance(accuracy, list) else [0.0, *[accuracy] * (layers - 1)]
        return _of_layers(scenario, "accuracy", listed, layers)
    published = PRESETS["adapmoe"]
    if len(published) != layers:
        raise ScenarioError.at(
            scenario,
            f"{_OPTIONS}.accuracy",
            f"published are those of {len(published)} layers; the trace has {layers} MoE layers; "
            "give a number, or one for each layer",
        )
    return published


def _singles(scenario: Scenario, trace: Trace) -> Sequence[float]:
    single, layers = scenario.cache.split_options.single, trace.num_layers
    listed = single if isinstance(single, list) else [single] * layers
    return _of_layers(scenario, "single", listed, layers)


def _of_layers(
    scenario: Scenario, option: str, listed: Sequence[float], layers: int
) -> Sequence[float]:
    """Return a list with a number for each layer. Raise ScenarioError for another length."""
    if len(listed) != layers:
        raise ScenarioError.at(
            scenario,
            f"{_OPTIONS}.{option}",
            f"has {len(listed)} numbers; the trace has {layers} MoE layers",
        )
    return listed


def _refuse_without_predictions(scenario: Scenario, trace: Trace) -> None:
    published = ", or published" if trace.num_layers == len(PRESETS["adapmoe"]) else ""
    which = "trace" if scenario.cache.split_options.profile is None else "profile"
    raise ScenarioError.at(
        scenario,
        "cache.split",
        f"adapmoe needs the accuracy of predictions, and the {which} holds none; record it with "
        f"`moesim record --depth 1`, or write cache.split_options.accuracy: a number{published}",
    )
