"""Fewest experts first: a greedy order in which few experts serve many tokens.

Each round chooses further experts until no request is left:

1. The candidates are the sets of experts that some request wants and that are not chosen yet.
2. The candidate that admits most tokens per expert is chosen. Tokens beyond the room that is left
   in the batch do not count. Ties: the candidate whose first request arrived first.
3. All requests whose experts are now chosen go next.

The order is written for `task_aware` and `expert_aware`; it comes from no paper.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

ExpertSet = frozenset[int]


def fewest_experts_first(
    requests: Sequence[Any],
    wants: Mapping[int, ExpertSet],
    weight: Mapping[int, int],
    room: int,
    chosen: ExpertSet = frozenset(),
) -> Iterator[list[Any]]:
    """Yield groups of `requests`, one group a round, each in order of arrival.

    Args:
        requests: in order of arrival.
        wants: the experts that each request wants, by request index.
        weight: the tokens of each request, by request index.
        room: number of tokens that the batch holds.
        chosen: experts chosen before the first round. Requests for these alone go first.
    """
    alike: dict[ExpertSet, list[Any]] = {}
    for request in requests:
        alike.setdefault(wants[request.index], []).append(request)
    while alike:
        missing = {want: want - chosen for want in alike}
        tokens: Counter[ExpertSet] = Counter()
        for want, members in alike.items():
            tokens[missing[want]] += sum(weight[request.index] for request in members)
        # Counters keep the order of arrival and `max` returns the first of equals: the tie rule.
        best = max(tokens, key=lambda further: _worth(further, tokens, room))
        chosen |= best
        admitted = [r for want in missing if missing[want] <= best for r in alike.pop(want)]
        room = max(0, room - sum(weight[request.index] for request in admitted))
        yield sorted(admitted, key=lambda request: int(request.index))


def _worth(further: ExpertSet, tokens: Mapping[ExpertSet, int], room: int) -> float:
    """Return the tokens that these experts would admit, per expert."""
    if not further:  # requests that need no further expert cost nothing
        return float("inf")
    admitted = sum(count for missing, count in tokens.items() if missing <= further)
    return min(admitted, room) / len(further)
