"""A plain version of prefetch by gain: every candidate of every round is simulated anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from oracles.two_queue import Absent, Loads, best_plan, makespan


class Seen(NamedTuple):
    """One call: the layer (-1: start of a step), its rows by key, those predicted, residents."""

    layer: int
    rows: Loads
    predicted: list[Loads]
    residents: set[int]


def gains(
    calls: Sequence[Seen], prices: Any, layers: int, experts: int, top_k: int, depth: int
) -> list[list[int]]:
    """Return the keys to copy after each call."""
    queued = idle = 0
    present: set[int] = set()
    answers: list[list[int]] = []
    for layer, rows, predicted, residents in calls:
        queued = max(0, queued - idle)
        idle = 0
        answer: list[int] = []
        if layer >= 0:
            tokens = -(-sum(rows.values()) // top_k)
            queued = max(0, queued - prices.front_ns(layer, tokens))
            absent = {key: "host" for key in rows if key not in present}
            copied = best_plan(rows, absent, prices)
            idle = _idle(rows, absent, prices)
            queued += sum(
                prices.copy_ns(key) for key in absent if key not in copied and key in residents
            )
            later = predicted[: min(depth, layers - 1 - layer)]
            free, left = [], idle
            for ahead, loads in enumerate(later):
                left += prices.front_ns(layer + 1 + ahead, tokens)
                free.append(left - queued)
                left += _idle(loads, _without(loads, residents), prices)
            answer = _choose(later, residents, free, prices)
            queued += sum(map(prices.copy_ns, answer))
        answers.append(answer)
        present = residents.union(answer)
    return answers


def _without(loads: Loads, residents: set[int]) -> Absent:
    return {key: "host" for key in loads if key not in residents}


def _span(loads: Loads, absent: Absent, prices: Any) -> int:
    return makespan(loads, absent, prices, best_plan(loads, absent, prices))


def _idle(loads: Loads, absent: Absent, prices: Any) -> int:
    copied = best_plan(loads, absent, prices)
    link: int = sum(prices.copy_ns(key) + prices.read_ns(key) for key in copied)
    return max(0, _span(loads, absent, prices) - link)


def _choose(later: list[Loads], residents: set[int], free: list[int], prices: Any) -> list[int]:
    chosen: list[tuple[int, int]] = []  # layers ahead, and key
    while True:
        found = []
        for ahead, loads in enumerate(later):
            absent = _without(loads, residents.union(key for _, key in chosen))
            for place, key in enumerate(absent):
                rest = {other: where for other, where in absent.items() if other != key}
                gain = _span(loads, absent, prices) - _span(loads, rest, prices)
                with_it = [*chosen, (ahead, key)]
                fits = all(
                    sum(prices.copy_ns(k) for at, k in with_it if at <= due) <= free[due]
                    for due in range(ahead, len(later))
                )
                if fits and gain > 0:
                    found.append((-gain, ahead, place, key))
        if not found:
            return [key for _, key in sorted(chosen, key=lambda pair: pair[0])]
        _, ahead, _, key = min(found)
        chosen.append((ahead, key))
