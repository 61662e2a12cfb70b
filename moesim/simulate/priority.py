"""The depths of a priority stack, for policies that rank keys independently of capacity.

The first c keys of the stack are those that a cache of c slots holds (Mattson et al., IBM Systems
Journal 1970). At a layer event the keys of the union become candidates, with their new ranks.
Walking down, each level adds one key to the candidates, and the best candidate left takes the
level. A key of the union leaves its old level empty.

There are two ways, with equal results. `numpy` takes the levels of all caches at once, each level
with an event of its own: as in a pipeline, an event is one level further down in each step. A
compiled loop (numba, of the extra `fast`) walks one cache after another. Loading numba takes longer
than a short replay, so it is used for long ones, or where it is loaded already.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from moesim.simulate.accesses import Accesses

__all__ = ["Ranking", "counted_uses", "next_use", "priority_depths"]

Ints = npt.NDArray[Any]
Told = Callable[[int], None]
"""`told(done)`: the caches that are done, from 0 to all."""

_STEP_NS: Final = 5_000
"""About what numpy takes for an event, without its levels."""
_LEVEL_NS: Final = 10
"""About what numpy takes for a level of a stack at an event."""
_LOADING_NS: Final = 400_000_000
"""About what loading numba and the compiled loop takes."""
_GROUP: Final = 2**27
"""Candidates (caches x events x keys of the widest event) that numpy holds in memory at once."""
_RESCALE_ABOVE: Final = 1e200  # as the policy does


@dataclass(frozen=True, slots=True)
class Ranking:
    """How a policy ranks keys: by their next use, or by a count of uses that may fade.

    `decay` is the factor of a count per event; 1 counts all uses alike. None ranks by next use.
    Equal counts rank by recency, keys that are never used again by their number.
    """

    decay: float | None = None


next_use: Final = Ranking()
counted_uses: Final = Ranking(1.0)


def priority_depths(
    caches: Sequence[Accesses],
    ranking: Ranking,
    deepest: int,
    *,
    compiled: bool | None = None,
    told: Told | None = None,
) -> list[Ints] | None:
    """Return the stack depth of each access of each cache; `deepest` where it is deeper or new.

    `compiled` asks for the compiled loop or refuses it; by default it runs where it is faster. It
    is never used if numba is missing. Return None where numpy cannot rank: the policy scales its
    fading counts down, which rounds them.
    """
    scaled = any(_rescales(each, ranking) for each in caches)
    wanted = scaled or _pays(caches, deepest) if compiled is None else compiled
    loop = _compiled_loop() if wanted else None
    if loop is not None:
        return list(_one_by_one(loop, caches, ranking, deepest, told))
    if scaled:
        return None
    depths: list[Ints] = []
    for group in _groups(caches):
        depths += _Pipeline(group, ranking, deepest).depths(_part(told, len(depths), len(group)))
    return depths


def _part(told: Told | None, done: int, caches: int) -> Callable[[float], None] | None:
    """Return a function that takes the share of a group of caches that is done."""
    return None if told is None else lambda share: told(done + int(share * caches))


def _compiled_loop() -> Any:
    """Return the compiled loop, or None where numba is missing or does not fit."""
    try:
        from moesim.simulate.compiled_stack import stack_depths
    except (ImportError, OSError):  # numba refuses a numpy that is newer than itself
        return None
    return stack_depths


def _pays(caches: Sequence[Accesses], deepest: int) -> bool:
    """Return whether numpy would take longer than it takes to load the compiled loop."""
    if "moesim.simulate.compiled_stack" in sys.modules:
        return True
    events = max((each.num_events for each in caches), default=0)
    levels = sum(min(deepest, each.num_keys) for each in caches)
    return events * (_STEP_NS + _LEVEL_NS * levels) > _LOADING_NS


def _rescales(accesses: Accesses, ranking: Ranking) -> bool:
    """Return whether the policy scales its counts down during these events."""
    if ranking.decay is None or ranking.decay == 1:
        return False
    return bool(accesses.num_events * -np.log(ranking.decay) > np.log(_RESCALE_ABOVE) - 1)


def _one_by_one(
    loop: Any, caches: Sequence[Accesses], ranking: Ranking, deepest: int, told: Told | None
) -> Iterator[Ints]:
    for number, each in enumerate(caches):
        keys = each.keys.astype(np.int64)
        following = _events_of(each, _following(each))
        decay = 0.0 if ranking.decay is None else ranking.decay
        yield loop(
            keys, each.starts, following, decay, each.num_keys, min(deepest, each.num_keys), deepest
        )
        if told is not None:
            told(number + 1)


def _groups(caches: Sequence[Accesses]) -> Iterator[Sequence[Accesses]]:
    """Yield neighbouring caches, as many at once as memory has room for."""
    each = max((each.num_events * (_width(each) + 2) for each in caches), default=1)
    size = max(1, _GROUP // max(1, each))
    for first in range(0, len(caches), size):
        yield caches[first : first + size]


def _width(accesses: Accesses) -> int:
    return int(np.diff(accesses.starts).max(initial=0))


def _following(accesses: Accesses) -> Ints:
    """Return the next access of each access's key; the number of accesses if there is none."""
    keys = accesses.keys
    order = np.argsort(keys, kind="stable")
    again = keys[order[1:]] == keys[order[:-1]]
    following = np.full(len(keys), len(keys), np.int64)
    following[order[:-1][again]] = order[1:][again]
    return following


def _events_of(accesses: Accesses, places: Ints) -> Ints:
    """Return the event of each of these accesses; the number of events for none."""
    return np.append(accesses.events(), accesses.num_events)[places]


def _ranks(accesses: Accesses, ranking: Ranking) -> Ints:
    """Return the rank of each access's key after its event, as distinct numbers from 0, best 0."""
    if ranking.decay is None:
        code = _events_of(accesses, _following(accesses)) * accesses.num_keys + accesses.keys
        order = np.argsort(code)
    else:
        order = np.lexsort((-np.arange(len(accesses.keys)), -_counts(accesses, ranking.decay)))
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(len(order))
    return ranks


def _counts(accesses: Accesses, decay: float) -> npt.NDArray[np.float64]:
    """Return the fading count of each access's key after its event, to the last bit the policy's.

    Counts do not shrink. The weight of new uses grows, as in the policy.
    """
    events = np.arange(accesses.num_events)
    # Divided again and again, because powers would be rounded otherwise.
    weights = np.divide.accumulate(np.where(events == 0, 1.0, decay)) if len(events) else events
    order = np.argsort(accesses.keys, kind="stable")
    weight = weights[accesses.events()[order]].astype(np.float64)
    ends = np.cumsum(np.bincount(accesses.keys, minlength=accesses.num_keys))
    counts = np.empty(len(order))
    for first, end in zip(np.append(0, ends[:-1]).tolist(), ends.tolist(), strict=True):
        counts[order[first:end]] = np.cumsum(weight[first:end])
    return counts


class _Pipeline:
    """The stacks of several caches, which step through their events together.

    In step t, level l has event t - l, so all levels work at once. Each takes the best of its key
    and of the candidates from the level above it, and passes the others on.

    A stack holds, from its top, the rank of each key's last access; ranks of all caches are
    numbered apart. `void` stands for an empty level and is worse than any rank.
    """

    def __init__(self, caches: Sequence[Accesses], ranking: Ranking, deepest: int) -> None:
        self._caches, self._deepest = caches, deepest
        self._levels = min(deepest, max((each.num_keys for each in caches), default=0))
        width = max(map(_width, caches), default=0)
        events = max((each.num_events for each in caches), default=0)
        self.void = void = sum(len(each.keys) for each in caches)
        kind = np.int32 if void < 2**31 - 1 else np.int64
        self._new_TWC = np.full((events, width, len(caches)), void, kind)
        # By rank: the event that uses the key again, and the access that does. -1 is the event
        # of the second level in the first step, so the lowest number stands for none.
        self._until = np.full(void + 1, np.iinfo(kind).min, kind)
        self._next = np.zeros(void + 1, kind)
        first = 0
        for number, each in enumerate(caches):
            ranks = first + _ranks(each, ranking)
            event = each.events()
            place = np.arange(len(each.keys)) - np.repeat(each.starts[:-1], np.diff(each.starts))
            self._new_TWC[event, place, number] = ranks
            following = _following(each)
            used = following < len(each.keys)
            self._until[ranks[used]] = event[following[used]]
            self._next[ranks[used]] = first + following[used]
            first += len(each.keys)
        self._new_TWC.sort(axis=1)

    def depths(self, told: Callable[[float], None] | None) -> list[Ints]:
        """Return the depths of the accesses of each cache."""
        depths = np.full(self.void, self._deepest, np.int32)
        ranks, levels = self._hits(told)
        depths[self._next[ranks]] = levels
        ends = np.cumsum([len(each.keys) for each in self._caches])
        return np.split(depths, ends[:-1])

    def _hits(self, told: Callable[[float], None] | None) -> tuple[Ints, Ints]:
        """Return the ranks of the last accesses of all hits, and the levels where they stood."""
        events, width, caches = self._new_TWC.shape
        height, void, kind = self._levels, self.void, self._new_TWC.dtype
        empty = np.empty(0, np.int64)
        if not (width and height):
            return empty, empty
        # The candidates of each level, the best first; `later` are those of the next step.
        now, later = (np.full((width, height + 1, caches), void, kind) for _ in range(2))
        stack = np.full((height, caches), void, kind)
        until, hit = np.empty((height, caches), self._until.dtype), np.empty((height, caches), bool)
        other = np.empty((width - 1, height, caches), kind)
        flat, flat_hit = stack.reshape(-1), hit.reshape(-1)
        event_L1 = -np.arange(height, dtype=kind)[:, None]
        ranks, levels = [], []
        steps = events + height - 1
        for step in range(steps):
            now[:, 0] = self._new_TWC[step] if step < events else void
            self._until.take(stack, out=until, mode="clip")
            np.equal(until, event_L1, out=hit)
            event_L1 += 1
            (places,) = flat_hit.nonzero()
            ranks.append(flat[places])
            levels.append(places)
            flat[places] = void
            here, below = now[:, :-1], later[:, 1:]
            np.minimum(here[1:], stack, out=other)
            np.maximum(here[:-1], other, out=below[:-1])
            np.maximum(here[-1], stack, out=below[-1])
            np.minimum(here[0], stack, out=stack)
            now, later = later, now
            if told is not None and step % 64 == 0:
                told(step / steps)
        if told is not None:
            told(1.0)
        return (
            np.concatenate([empty, *ranks]).astype(np.int64),
            np.concatenate([empty, *levels]) // caches,
        )
