"""Eviction policies as compiled functions, which give every key a score.

A policy is three functions of plain arrays. They know one cache, whose number is `cache`:

- `observe(keys, number, layer, cache, state)` learns from a layer event that wants `keys[:number]`,
  before the caches change;
- `score(key, cache, state)` returns a pair (float, int). The key with the lowest pair leaves first.
  No two keys may have equal pairs;
- `left(key, state)` is told of a key that has no slot after an event.

`state` is a `State`. Its arrays are zero at the start, and what they hold is the policy's own
business. numba compiles the functions, so they use numbers and arrays alone. A policy of another
package has the class attribute `kernel`, a `Kernel` of such functions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from numba import njit

__all__ = ["KERNELS", "Kernel", "State"]


class State(NamedTuple):
    """What policies remember, as arrays. Shapes: K keys of all layers, N caches.

    - `resident` [K]: whether a key has a slot; policies only read it;
    - `ints` [K, 3], `floats` [K]: what is remembered of a key;
    - `own` [N, 4], `weight` [N]: what is remembered of a cache; `weight` is 1 at the start;
    - `first`, `last` [N]: the keys of a cache are from `first` to before `last`;
    - `option`: the number that the policy's options set.
    """

    resident: Any
    ints: Any
    floats: Any
    own: Any
    weight: Any
    first: Any
    last: Any
    option: float


class Kernel(NamedTuple):
    """The functions of a policy, and the number that its options set for them."""

    observe: Callable[..., Any]
    score: Callable[..., Any]
    left: Callable[..., Any]
    option: Callable[[Any], float] = lambda _: 0.0


@njit(cache=True)
def _forget_nothing(key, state):  # type: ignore[no-untyped-def]
    pass


@njit(cache=True)
def _used(keys, number, layer, cache, state):  # type: ignore[no-untyped-def]
    for place in range(number):
        state.own[cache, 0] += 1
        state.ints[keys[place], 0] = state.own[cache, 0]


@njit(cache=True)
def _oldest(key, cache, state):  # type: ignore[no-untyped-def]
    return 0.0, state.ints[key, 0]


@njit(cache=True)
def _admitted(keys, number, layer, cache, state):  # type: ignore[no-untyped-def]
    for place in range(number):
        if not state.resident[keys[place]]:
            state.own[cache, 0] += 1
            state.ints[keys[place], 0] = state.own[cache, 0]


@njit(cache=True)
def _counted(keys, number, layer, cache, state):  # type: ignore[no-untyped-def]
    for place in range(number):
        state.own[cache, 0] += 1
        state.ints[keys[place], 0] = state.own[cache, 0]
        state.ints[keys[place], 1] += 1


@njit(cache=True)
def _fewest(key, cache, state):  # type: ignore[no-untyped-def]
    return float(state.ints[key, 1]), state.ints[key, 0]


@njit(cache=True)
def _forget_count(key, state):  # type: ignore[no-untyped-def]
    state.ints[key, 1] = 0


@njit(cache=True)
def _faded(keys, number, layer, cache, state):  # type: ignore[no-untyped-def]
    for place in range(number):
        state.own[cache, 0] += 1
        state.ints[keys[place], 0] = state.own[cache, 0]
        state.floats[keys[place]] += state.weight[cache]
    state.weight[cache] /= state.option
    if state.weight[cache] > 1e200:  # as in LFUDecay
        for key in range(state.first[cache], state.last[cache]):
            state.floats[key] /= state.weight[cache]
        state.weight[cache] = 1.0


@njit(cache=True)
def _lightest(key, cache, state):  # type: ignore[no-untyped-def]
    return state.floats[key], state.ints[key, 0]


@njit(cache=True)
def _aged(keys, number, layer, cache, state):  # type: ignore[no-untyped-def]
    state.own[cache, 1] += int(state.option)
    for place in range(number):
        key = keys[place]
        state.own[cache, 0] += 1
        state.ints[key, 0] = state.own[cache, 0]
        state.ints[key, 1] += 1
        state.ints[key, 2] = state.own[cache, 1]


@njit(cache=True)
def _rarest(key, cache, state):  # type: ignore[no-untyped-def]
    age = state.own[cache, 1] - state.ints[key, 2] + 1
    return state.ints[key, 1] / age, state.ints[key, 0]


@njit(cache=True)
def _touched(keys, number, layer, cache, state):  # type: ignore[no-untyped-def]
    own = state.own
    if layer < own[cache, 1]:  # stored as the next layer, because arrays start at zero
        own[cache, 2] += 1
    own[cache, 1] = layer + 1
    for place in range(number):
        key = keys[place]
        own[cache, 0] += 1
        state.ints[key, 1] = own[cache, 2]
        if state.option or not state.resident[key]:
            state.ints[key, 0] = own[cache, 0]


@njit(cache=True)
def _stalest(key, cache, state):  # type: ignore[no-untyped-def]
    fresh = 1.0 if state.ints[key, 1] == state.own[cache, 2] else 0.0
    return fresh, state.ints[key, 0]


KERNELS: Final[dict[str, Kernel]] = {
    "lru": Kernel(_used, _oldest, _forget_nothing),
    "fifo": Kernel(_admitted, _oldest, _forget_nothing),
    "lfu": Kernel(_counted, _fewest, _forget_nothing),
    "lfu_in_cache": Kernel(_counted, _fewest, _forget_count),
    "lfu_decay": Kernel(_faded, _lightest, _forget_nothing, lambda options: options.decay),
    "lfru": Kernel(_aged, _rarest, _forget_nothing, lambda options: options.ticks),
    "least_stale": Kernel(
        _touched, _stalest, _forget_nothing, lambda options: options.age == "use"
    ),
}
"""The kernels of moesim's own policies, by name. A fixed set of residents needs none."""
