"""Naive staged prefetch: sets of residents, and a list of guessed keys that is as long as allowed.

An event is (cache, layer, keys of the event, keys of its whole layer); a request is (cache, key).
Both are replayed in order. No slot, copy or time is modelled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from oracles.eviction import Worth

Event = tuple[int, int, Sequence[int], Sequence[int]]


def replay_staged(
    history: Sequence[Any], worth: Worth, capacities: Sequence[int], buffers: int, experts: int
) -> Iterator[Any]:
    """Yield the misses and the residents of each event, and whether each request gets a buffer.

    `history` holds events, and requests for keys that are not resident and not guessed yet. After
    an event, those of residents ∪ keys that are worth most stay.
    """
    residents: list[set[int]] = [set() for _ in capacities]
    past: list[list[Sequence[int]]] = [[] for _ in capacities]
    before: list[list[set[int]]] = [[set()] for _ in capacities]
    guesses: list[int] = []
    for it in history:
        if len(it) == 2:
            cache, key = it
            assert key not in residents[cache]
            assert key not in guesses
            fits = len(guesses) < buffers
            guesses += [key] * fits
            yield fits
            continue
        cache, layer, keys, union = it
        guesses = [key for key in guesses if key // experts != layer or key in union]
        misses = [key for key in keys if key not in residents[cache] and key not in guesses]
        guesses = [key for key in guesses if key not in keys]
        past[cache].append(keys)
        order = {
            key: worth(key, past[cache], before[cache]) for key in residents[cache].union(keys)
        }
        kept = sorted(order, key=order.__getitem__, reverse=True)[: capacities[cache]]
        residents[cache] = set(kept)
        before[cache].append(residents[cache])
        yield misses, residents[cache]
