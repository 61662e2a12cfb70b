"""Flows: running works that share bandwidths, and the rates that they get.

The rates are max-min fair (Bertsekas and Gallager, Data Networks, section 6.5.2): the flow with the
lowest limit gets its rate first, and the others share what it leaves. For one resource this is
water-filling in ascending order of the flows' own rates, then in order of issue.

There are two roundings. Rates are whole bytes per second, rounded down but never below 1. A flow is
over at the first whole nanosecond at which all its bytes have moved. The bytes left are kept times
10⁹, so that a rate times nanoseconds subtracts exactly. So the instants at which a flow is examined
change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Final

from moesim.machine.work import Cost

__all__ = ["Flow", "Sharing", "fair_rates", "shares"]

_SECOND_NS: Final = 10**9
_MEMO_LIMIT: Final = 1 << 12

RatesObserver = Callable[[Sequence[Cost], Sequence[int]], None]


def shares(cost: Cost) -> bool:
    """Return whether this piece of a work moves bytes through a shared resource.

    Raise `ValueError` if it does and has no rate of its own.
    """
    if not cost.uses or not cost.nbytes:
        return False
    if cost.rate < 1:
        raise ValueError(f"{cost} uses a shared resource and needs a rate of 1 byte/s or more")
    return True


class Flow:
    """A piece of a work that moves its bytes; its fixed part is over.

    - `left`: bytes still to move at `since_ns`, times 10⁹.
    - `rate`: bytes per second from then on; 0 until the rates of that instant are known.
    """

    __slots__ = ("cost", "left", "rate", "since_ns")

    def __init__(self, cost: Cost, start_ns: int) -> None:
        self.cost = cost
        self.left = cost.nbytes * _SECOND_NS
        self.rate = 0
        self.since_ns = start_ns

    def change_rate(self, now_ns: int, rate: int) -> int:
        """Move bytes up to `now_ns` at the rate so far; return the finish at the new rate."""
        self.left -= self.rate * (now_ns - self.since_ns)
        self.since_ns = now_ns
        self.rate = rate
        return now_ns - (-self.left // rate)


class Sharing:
    """The shared resources of a machine: their capacities in bytes/s, by name.

    `observer` receives the costs of the flows and their rates, whenever rates are computed.
    """

    def __init__(self, capacities: Mapping[str, int]) -> None:
        self.capacities = capacities
        self.observer: RatesObserver | None = None
        self._memo: dict[tuple[Cost, ...], list[int]] = {}

    def change_rates(self, flows: Sequence[Flow], now_ns: int) -> list[int]:
        """Give flows in order of issue their rates from `now_ns` on; return their finishes."""
        costs = tuple([flow.cost for flow in flows])
        rates = self._memo.get(costs)
        if rates is None:
            if len(self._memo) >= _MEMO_LIMIT:
                self._memo.clear()
            rates = self._memo[costs] = fair_rates(costs, self.capacities)
        if self.observer is not None:
            self.observer(costs, rates)
        return [flow.change_rate(now_ns, rate) for flow, rate in zip(flows, rates, strict=True)]


def fair_rates(costs: Sequence[Cost], capacities: Mapping[str, int]) -> list[int]:
    """Return the rates in bytes/s of flows with these costs, given in order of issue.

    Each flow has one speed, and uses each of its resources in proportion to its bytes there. The
    speed is at most its own rate. On each resource it is at most what is left, divided by the
    demand per unit of speed of all flows that have no rate yet.

    Raise `KeyError` for a resource that `capacities` does not have.
    """
    demands = [_demand_per_byte(cost) for cost in costs]
    left: dict[str, int | Fraction] = dict(capacities)
    rates = [0] * len(costs)
    waiting = list(range(len(costs)))

    def limit(number: int) -> int:
        levels = [left[name] // _sum(demands, waiting, name) for name in demands[number]]
        return min((costs[number].rate, *levels))

    while waiting:
        limits = {number: limit(number) for number in waiting}
        chosen = min(waiting, key=lambda number: (limits[number], costs[number].rate, number))
        rates[chosen] = max(1, limits[chosen])
        for name, demand in demands[chosen].items():
            left[name] -= demand * rates[chosen]
        waiting.remove(chosen)
    return rates


def _sum(
    demands: Sequence[Mapping[str, int | Fraction]], numbers: Sequence[int], name: str
) -> int | Fraction:
    return sum(demands[number].get(name, 0) for number in numbers)


def _demand_per_byte(cost: Cost) -> dict[str, int | Fraction]:
    """Return the bytes that move through each resource for one byte of the work."""
    demands: dict[str, int | Fraction] = {}
    for name, nbytes in cost.uses:
        if nbytes:
            whole, rest = divmod(nbytes, cost.nbytes)
            # Whole numbers where possible: fractions are slow.
            per_byte = Fraction(nbytes, cost.nbytes) if rest else whole
            demands[name] = demands.get(name, 0) + per_byte
    return demands
