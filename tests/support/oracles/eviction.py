"""Naive eviction: every event decides from the whole history which keys stay.

A policy is a function `worth(key, past, before)`. Of residents ∪ union, the keys worth most stay.
`past` holds the events up to the present one; `before[i]` the residents before event i.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from itertools import combinations
from typing import Any

Event = Sequence[int]
Worth = Callable[[int, Sequence[Event], Sequence[set[int]]], Any]
Outcome = tuple[set[int], set[int]]


def replay(
    worth: Worth, events: Sequence[Event], capacity: int, always: bool = False
) -> list[Outcome]:
    """Return the hits of each event, and the residents after it."""
    before: list[set[int]] = [set()]
    outcomes = []
    for index, event in enumerate(events):
        past = events[: index + 1]

        def order(key: int, past: Sequence[Event] = past, event: Event = event) -> Any:
            return (always and key in event, worth(key, past, before))

        candidates = sorted(before[-1].union(event), key=order, reverse=True)
        outcomes.append((before[-1].intersection(event), set(candidates[:capacity])))
        before.append(outcomes[-1][1])
    return outcomes


def replay_bytes(
    worth: Worth,
    events: Sequence[Event],
    capacity: int,
    sizes: Sequence[int],
    always: bool = False,
) -> list[Outcome]:
    """Return what `replay` does, for keys of unequal sizes in a cache of `capacity` bytes.

    The key worth least leaves, one after another, until the others fit. Keys larger than the cache
    do not compete.
    """
    before: list[set[int]] = [set()]
    outcomes = []
    for index, event in enumerate(events):
        past = events[: index + 1]
        kept = [key for key in before[-1].union(event) if sizes[key] <= capacity]
        while sum(sizes[key] for key in kept) > capacity:
            worths = {key: (always and key in event, worth(key, past, before)) for key in kept}
            kept.remove(min(kept, key=worths.__getitem__))
        outcomes.append((before[-1].intersection(event), set(kept)))
        before.append(set(kept))
    return outcomes


def entered(key: int, past: Sequence[Event], before: Sequence[set[int]]) -> int:
    """Return the last event at which the key was loaded (the present one if it is loaded now)."""
    return max(i for i, event in enumerate(past) if key in event and key not in before[i])


def lru(key: int, past: Sequence[Event], _: Any = None) -> Any:
    return max((i, list(event).index(key)) for i, event in enumerate(past) if key in event)


def fifo(key: int, past: Sequence[Event], before: Sequence[set[int]]) -> Any:
    arrival = entered(key, past, before)
    return (arrival, list(past[arrival]).index(key))


def lfu(key: int, past: Sequence[Event], _: Any) -> Any:
    return (sum(key in event for event in past), lru(key, past))


def lfu_in_cache(key: int, past: Sequence[Event], before: Sequence[set[int]]) -> Any:
    return (sum(key in event for event in past[entered(key, past, before) :]), lru(key, past))


def lfu_decay(decay: float) -> Worth:
    fade = Fraction(decay)

    def worth(key: int, past: Sequence[Event], _: Any) -> Any:
        uses = (fade**age for age, event in enumerate(reversed(past)) if key in event)
        return (sum(uses), lru(key, past))

    return worth


def furthest_next_use(events: Sequence[Event]) -> Worth:
    def worth(key: int, past: Sequence[Event], _: Any) -> Any:
        waits = (i for i, event in enumerate(events[len(past) :]) if key in event)
        return (-next(waits, len(events)), -key)

    return worth


def seen_within(window: int, events: Sequence[Event]) -> Worth:
    """Keys of the next `window` events that are not empty, soonest first; then LRU."""

    def worth(key: int, past: Sequence[Event], _: Any) -> Any:
        coming = [event for event in events[len(past) :] if event][:window]
        wait = next((i for i, event in enumerate(coming) if key in event), window)
        return (-wait, lru(key, past))

    return worth


def lfru(ticks: int = 1) -> Worth:
    def worth(key: int, past: Sequence[Event], _: Any) -> Any:
        uses = [i for i, event in enumerate(past) if key in event]
        age = ticks * (len(past) - 1 - uses[-1]) + 1
        return (Fraction(len(uses), age), lru(key, past))

    return worth


def least_stale(age: Callable[..., Any]) -> Worth:
    """Each event is a pass: all keys outside it are stale. Among equals, the oldest is worth least.

    `age` is `fifo` for the age since the load, `lru` for that since the last use.
    """

    def worth(key: int, past: Sequence[Event], before: Sequence[set[int]]) -> Any:
        return (key in past[-1], age(key, past, before))

    return worth


def activation_share(fade: float, starts: Callable[[int], int] = lambda now: 0) -> Worth:
    """The matrix has one row, and each use is a token. It counts from event `starts(now)` on."""
    shrink = Fraction(fade)

    def worth(key: int, past: Sequence[Event], _: Any) -> Any:
        ages = list(enumerate(reversed(past[starts(len(past) - 1) :])))
        tokens = sum(shrink**age * len(event) for age, event in ages)
        own = sum(shrink**age for age, event in ages if key in event)
        return (own / tokens if own else 0, lru(key, past))

    return worth


def mean_recent_score(weight: float) -> Worth:
    """Without scores, each key of an event has an equal share of it."""

    def worth(key: int, past: Sequence[Event], _: Any) -> Any:
        mean = 0.0
        for event in past:
            mean = (1 - weight) * mean + weight * (1 / len(event) if key in event else 0.0)
        return (mean, lru(key, past))

    return worth


def probability_times_frequency(key: int, past: Sequence[Event], _: Any) -> Any:
    """Without scores, each key of an event has an equal share of it."""
    shares = [1 / len(event) for event in past if key in event]
    return (sum(shares) * len(shares) / len(past), lru(key, past))


def static(events: Sequence[Event], universe: Sequence[int], capacity: int) -> list[Outcome]:
    """Return the outcomes if the keys used most in the whole run stay resident throughout."""
    counts = Counter(key for event in events for key in event)
    kept = set(sorted(universe, key=lambda key: (-counts[key], key))[:capacity])
    return [(kept.intersection(event), kept) for event in events]


def most_hits(events: Sequence[Event], capacity: int, always: bool = False) -> int:
    """Return the most hits of any sequence of keep-sets, by trying all of them."""
    best: dict[frozenset[int], int] = {frozenset(): 0}
    for event in events:
        after: dict[frozenset[int], int] = {}
        for resident, hits in best.items():
            for kept in _keep_sets(resident, frozenset(event), capacity, always):
                after[kept] = max(after.get(kept, 0), hits + len(resident.intersection(event)))
        best = after
    return max(best.values())


def _keep_sets(
    resident: frozenset[int], wanted: frozenset[int], capacity: int, always: bool
) -> Iterator[frozenset[int]]:
    for size in range(capacity + 1):
        for kept in map(frozenset, combinations(resident | wanted, size)):
            admitted = len(kept & wanted)
            if not always or admitted == min(capacity, len(wanted)):
                yield kept
