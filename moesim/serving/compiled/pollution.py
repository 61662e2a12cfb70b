"""Pairs of keys: one left for another one, which was copied ahead into its slot.

A victim that is wanted before its taker is *pollution*.
"""

from __future__ import annotations

from moesim.serving.compiled import records as r
from moesim.serving.compiled.keep import kept

__all__ = ["pair_up", "polluted"]


@kept
def pair_up(mem, at, victim, taker):  # type: ignore[no-untyped-def]
    """Remember that a key left for another one that is copied ahead."""
    mem[r.FREE_PAIRS] -= 1
    pair = mem[at.idle_pairs + mem[r.FREE_PAIRS]]
    mem[r.NUM_PAIRS] += 1
    first_v, first_t = mem[at.by_victim + victim], mem[at.by_taker + taker]
    mem[pair + r.PAIR_VICTIM], mem[pair + r.PAIR_TAKER] = victim, taker
    mem[pair + r.PAIR_BEFORE_V], mem[pair + r.PAIR_AFTER_V] = -1, first_v
    mem[pair + r.PAIR_BEFORE_T], mem[pair + r.PAIR_AFTER_T] = -1, first_t
    if first_v >= 0:
        mem[first_v + r.PAIR_BEFORE_V] = pair
    if first_t >= 0:
        mem[first_t + r.PAIR_BEFORE_T] = pair
    mem[at.by_victim + victim] = mem[at.by_taker + taker] = pair


@kept
def _part(mem, at, pair):  # type: ignore[no-untyped-def]
    """Forget a pair."""
    _unlink(mem, at.by_victim + mem[pair + r.PAIR_VICTIM], pair, r.PAIR_BEFORE_V, r.PAIR_AFTER_V)
    _unlink(mem, at.by_taker + mem[pair + r.PAIR_TAKER], pair, r.PAIR_BEFORE_T, r.PAIR_AFTER_T)
    mem[at.idle_pairs + mem[r.FREE_PAIRS]] = pair
    mem[r.FREE_PAIRS] += 1
    mem[r.NUM_PAIRS] -= 1


@kept
def _unlink(mem, first, pair, before_word, after_word):  # type: ignore[no-untyped-def]
    """Take a pair out of the list whose first pair stands at `first`."""
    before, after = mem[pair + before_word], mem[pair + after_word]
    if before >= 0:
        mem[before + after_word] = after
    else:
        mem[first] = after
    if after >= 0:
        mem[after + before_word] = before


@kept
def polluted(mem, at, keys, size):  # type: ignore[no-untyped-def]
    """Return how many keys of a union left for a key that is wanted later than they are."""
    for place in range(size):
        while mem[at.by_taker + keys[place]] >= 0:
            _part(mem, at, mem[at.by_taker + keys[place]])
    found = 0
    for place in range(size):
        while mem[at.by_victim + keys[place]] >= 0:
            _part(mem, at, mem[at.by_victim + keys[place]])
            found += 1
    return found
