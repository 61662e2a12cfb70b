"""Eviction policies as compiled functions.

A policy is some functions of two arrays, which remember `WORDS` integers and two floats of every
key and of every cache. `ints[key]` are those of a key, and `ints[cache]` those of a cache: caches
have the rows behind all keys. The kernel sets some of them:

- `ints[key, RESIDENT]`: 1 while the key has a slot;
- `ints[cache, FIRST]`, `ints[cache, LAST]`: the keys of a cache are from one to before the other;
- `floats[cache, OPTION]`: the number that the policy's options set.

All others are zero at the start, and belong to the policy. Its functions are:

- `observe(keys, number, layer, cache, ints, floats, given)` learns from a layer event that wants
  `keys[:number]`, before the cache changes. `given` is the array of its `lessons`;
- `left(key, cache, ints)` is told of a key that has no slot after an event;
- `score(key, cache, ints, floats)` returns a pair (float, int). The key with the lowest pair leaves
  first. No two keys may have equal pairs;
- `insert(key, cache, ints, floats)` is told of a key that a copy ahead gives a slot. Only runs with
  prefetch need it. The key may never have been wanted. `left` is told of the key that makes room.

A policy with a list of its keys in the order in which they leave is faster. Instead of scores it
has `head(cache, ints)`, the first key of the list or -1, and `following(key, ints)`. After
`observe`, the list must have all residents and all keys of the event.

numba compiles the functions, so they use numbers and arrays alone. A policy of another package has
the class attribute `kernel`, a `Kernel` of such functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from moesim.serving.compiled.keep import kept

__all__ = [
    "FIRST",
    "KERNELS",
    "LAST",
    "OPTION",
    "RESIDENT",
    "WORDS",
    "Kernel",
    "Lessons",
    "compiled_with",
]

WORDS: Final = 4
RESIDENT, FIRST, LAST, OPTION = 3, 2, 3, 1


class Lessons(NamedTuple):
    """What a policy knows before the run: `floats[key, 0]` of some keys, and an array of its own.

    With several caches, the arrays follow one another, and `ints[cache, 0]` is where a cache's own
    begins.
    """

    first: Mapping[int, float]
    given: npt.NDArray[np.float64]


class Kernel(NamedTuple):
    """The functions of a policy.

    `option` returns the number that its options set for them. `lessons` returns what a policy knows
    before the run; most know nothing.
    """

    observe: Callable[..., Any]
    score: Callable[..., Any]
    left: Callable[..., Any]
    option: Callable[[Any], float] = lambda _: 0.0
    head: Callable[..., Any] | None = None
    following: Callable[..., Any] | None = None
    lessons: Callable[[Any], Lessons] | None = None
    insert: Callable[..., Any] | None = None


@kept
def _keep_all(key, cache, ints):  # type: ignore[no-untyped-def]
    pass


@kept
def _no_score(key, cache, ints, floats):  # type: ignore[no-untyped-def]
    return 0.0, 0


@kept
def _admit(key, cache, ints, floats):  # type: ignore[no-untyped-def]
    pass


# A list in the order of leaving. A key has the key before it and the key after it, each plus 1 (0
# for none), and whether it is in the list. A cache has the first and the last key.


@kept
def _append(key, cache, ints):  # type: ignore[no-untyped-def]
    last = ints[cache, 1]
    ints[key, 0], ints[key, 1], ints[key, 2] = last, 0, 1
    if last:
        ints[last - 1, 1] = key + 1
    else:
        ints[cache, 0] = key + 1
    ints[cache, 1] = key + 1


@kept
def _unlink(key, cache, ints):  # type: ignore[no-untyped-def]
    before, after = ints[key, 0], ints[key, 1]
    if before:
        ints[before - 1, 1] = after
    else:
        ints[cache, 0] = after
    if after:
        ints[after - 1, 0] = before
    else:
        ints[cache, 1] = before
    ints[key, 2] = 0


@kept
def _used(keys, number, layer, cache, ints, floats, given):  # type: ignore[no-untyped-def]
    for place in range(number):
        if ints[keys[place], 2]:
            _unlink(keys[place], cache, ints)
        _append(keys[place], cache, ints)


@kept
def _admitted(keys, number, layer, cache, ints, floats, given):  # type: ignore[no-untyped-def]
    for place in range(number):
        if not ints[keys[place], 2]:
            _append(keys[place], cache, ints)


@kept
def _enlist(key, cache, ints, floats):  # type: ignore[no-untyped-def]
    _append(key, cache, ints)


@kept
def _head(cache, ints):  # type: ignore[no-untyped-def]
    return ints[cache, 0] - 1


@kept
def _following(key, ints):  # type: ignore[no-untyped-def]
    return ints[key, 1] - 1


# Scores. A key has the clock of its last use, and its uses; a cache has the clock. A key that was
# copied ahead may have no use: then the one that was admitted first leaves first.
_BEFORE_ALL = -(1 << 40)


@kept
def _age(key, ints):  # type: ignore[no-untyped-def]
    return ints[key, 0] if ints[key, 0] else _BEFORE_ALL + ints[key, 2]


@kept
def _number(key, cache, ints, floats):  # type: ignore[no-untyped-def]
    ints[cache, 1] += 2  # its lowest bit belongs to `_faded`
    ints[key, 2] = ints[cache, 1]


@kept
def _counted(keys, number, layer, cache, ints, floats, given):  # type: ignore[no-untyped-def]
    for place in range(number):
        ints[cache, 0] += 1
        ints[keys[place], 0] = ints[cache, 0]
        ints[keys[place], 1] += 1


@kept
def _fewest(key, cache, ints, floats):  # type: ignore[no-untyped-def]
    return float(ints[key, 1]), _age(key, ints)


@kept
def _forget_count(key, cache, ints):  # type: ignore[no-untyped-def]
    ints[key, 1] = 0


@kept
def _faded(keys, number, layer, cache, ints, floats, given):  # type: ignore[no-untyped-def]
    weight = floats[cache, 0] if ints[cache, 1] & 1 else 1.0  # of a use; before the first event 1
    ints[cache, 1] |= 1
    for place in range(number):
        ints[cache, 0] += 1
        ints[keys[place], 0] = ints[cache, 0]
        floats[keys[place], 0] += weight
    weight /= floats[cache, OPTION]
    if weight > 1e200:  # as in LFUDecay
        for key in range(ints[cache, FIRST], ints[cache, LAST]):
            floats[key, 0] /= weight
        weight = 1.0
    floats[cache, 0] = weight


@kept
def _lightest(key, cache, ints, floats):  # type: ignore[no-untyped-def]
    return floats[key, 0], _age(key, ints)


@kept
def _aged(keys, number, layer, cache, ints, floats, given):  # type: ignore[no-untyped-def]
    ints[cache, 1] += int(floats[cache, OPTION])
    for place in range(number):
        ints[cache, 0] += 1
        ints[keys[place], 0] = ints[cache, 0]
        ints[keys[place], 1] += 1
        ints[keys[place], 2] = ints[cache, 1]


@kept
def _rarest(key, cache, ints, floats):  # type: ignore[no-untyped-def]
    age = ints[cache, 1] - ints[key, 2] + 1
    return ints[key, 1] / age, ints[key, 0] if ints[key, 0] else -key


@kept
def _touched(keys, number, layer, cache, ints, floats, given):  # type: ignore[no-untyped-def]
    # `floats[cache, 0]` is the number of the pass; the layer is stored plus 1.
    if layer < ints[cache, 1]:
        floats[cache, 0] += 1.0
    ints[cache, 1] = layer + 1
    for place in range(number):
        ints[cache, 0] += 1
        floats[keys[place], 0] = floats[cache, 0]
        if floats[cache, OPTION] or not ints[keys[place], RESIDENT]:
            ints[keys[place], 0] = ints[cache, 0]


@kept
def _loaded(key, cache, ints, floats):  # type: ignore[no-untyped-def]
    ints[cache, 0] += 1
    floats[key, 0] = floats[cache, 0]
    ints[key, 0] = ints[cache, 0]


@kept
def _stalest(key, cache, ints, floats):  # type: ignore[no-untyped-def]
    fresh = 1.0 if floats[key, 0] == floats[cache, 0] else 0.0
    return fresh, ints[key, 0]


@kept
def _promised(keys, number, layer, cache, ints, floats, given):  # type: ignore[no-untyped-def]
    for place in range(number):
        if ints[cache, 0] < len(given):  # else the future is another, which is refused at the end
            floats[keys[place], 0] = -given[ints[cache, 0]]
        ints[cache, 0] += 1


@kept
def _furthest(key, cache, ints, floats):  # type: ignore[no-untyped-def]
    return floats[key, 0], -key


def _next_uses(policy: Any) -> Lessons:
    """Return the next uses of MIN: of each key at the start, and of each key of each event."""
    first = {key: -following for key, (following, _) in policy.rank.items()}
    return Lessons(first, policy.following.flat.astype(np.float64))


KERNELS: Final[dict[str, Kernel]] = {
    "lru": Kernel(_used, _no_score, _unlink, head=_head, following=_following, insert=_enlist),
    "fifo": Kernel(_admitted, _no_score, _unlink, head=_head, following=_following, insert=_enlist),
    "lfu": Kernel(_counted, _fewest, _keep_all, insert=_number),
    "lfu_in_cache": Kernel(_counted, _fewest, _forget_count, insert=_number),
    "lfu_decay": Kernel(
        _faded, _lightest, _keep_all, lambda options: options.decay, insert=_number
    ),
    "lfru": Kernel(_aged, _rarest, _keep_all, lambda options: options.ticks, insert=_admit),
    "min": Kernel(_promised, _furthest, _keep_all, lessons=_next_uses, insert=_admit),
    "least_stale": Kernel(
        _touched, _stalest, _keep_all, lambda options: options.age == "use", insert=_loaded
    ),
}
"""The kernels of moesim's own policies, by name. A fixed set of residents needs none."""


def compiled_with(kernel: Kernel, function: Callable[..., Any], **names: Any) -> Callable[..., Any]:
    """Return a function compiled with the functions of a policy, and `names`, in its globals.

    Each policy has a function of its own. That of moesim's own policies is kept on disk under a
    name of its own.
    """
    usual, own = KERNELS["lru"], kernel._asdict()
    # Not called: IN_ORDER says which functions are, and `insert` is for copies ahead alone.
    own |= {name: own[name] or getattr(usual, name) for name in ("head", "following", "insert")}
    own["IN_ORDER"] = kernel.head is not None
    copied = FunctionType(function.__code__, {**function.__globals__, **own, **names})
    title = next((title for title, each in KERNELS.items() if each is kernel), None)
    copied.__qualname__ = f"{function.__name__}_{title}"
    return (njit if title is None else kept)(copied, error_model="numpy")
