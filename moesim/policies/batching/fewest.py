"""Fewest experts first: an order in which few experts serve many tokens.

Again and again, of all sets of experts that some request misses, the one that admits most tokens
an expert (no more than the batch still holds) is chosen, and everybody whose experts are then
chosen goes next. Among equal sets the one whose first request came first wins.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Set = frozenset[int]


def fewest_experts_first(
    requests: Sequence[Any],
    wants: Mapping[int, Set],
    weight: Mapping[int, int],
    room: int,
    chosen: Set = frozenset(),
) -> Iterator[list[Any]]:
    """Groups of `requests` (in order of arrival), each with the experts chosen for it and before.

    By request index, `wants` are its experts and `weight` its tokens; `room` is how many tokens
    the batch holds. QueuedExperts `chosen` already cost nothing.
    """
    alike: dict[Set, list[Any]] = {}
    for request in requests:
        alike.setdefault(wants[request.index], []).append(request)
    while alike:
        missing = {want: want - chosen for want in alike}
        tokens: Counter[Set] = Counter()
        for want, those in alike.items():
            tokens[missing[want]] += sum(weight[request.index] for request in those)
        best = max(tokens, key=lambda more: _worth(more, tokens, room))
        chosen |= best
        admitted = [r for want in missing if missing[want] <= best for r in alike.pop(want)]
        room = max(0, room - sum(weight[request.index] for request in admitted))
        yield sorted(admitted, key=lambda request: int(request.index))


def _worth(more: Set, tokens: Mapping[Set, int], room: int) -> float:
    """What these experts would admit, for each of them; whatever needs none goes at once."""
    if not more:
        return float("inf")
    admits = sum(size for need, size in tokens.items() if need <= more)
    return min(admits, room) / len(more)
