"""The decisions of a server, without their times: step compositions, misses, evictions, bytes.

Two machines that run the same workload must make the same decisions. A witness between server and
policies notes the policies' answers. Misses and prefetches are read from the machine's journal.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from moesim.hardware.ops import Copy, Readback
from moesim.hardware.topology import H2D
from moesim.machine.journal import Record
from moesim.machine.work import DEMAND
from moesim.policies.batching.base import Batching
from moesim.policies.eviction.base import Eviction
from moesim.policies.view import Key, View
from moesim.serving.replay import PlanRecord, PlanRecorder, Replay

__all__ = ["Decisions", "Witness", "differences"]

# (cache, "event", the leavers of a layer event in rising order), or (cache, "prefetch", victim).
Departure = tuple[int, str, tuple[Key, ...]]


@dataclass(frozen=True, slots=True)
class Decisions:
    """All decisions of one run.

    `schedule`: the batching policy's answers, enough to `Replay` them; `misses` (step, layer, key)
    and `prefetches` (step, key) in the order of issue; `evictions`: the keys that left each cache,
    event by event; `nbytes`: bytes of issued copies, by kind.
    """

    schedule: tuple[PlanRecord, ...]
    misses: tuple[tuple[int, int, Key], ...]
    prefetches: tuple[tuple[int, Key], ...]
    evictions: tuple[Departure, ...]
    nbytes: dict[str, int]


@dataclass(slots=True)
class Witness:
    """An observer between one server and its policies that notes their answers.

    With a `script`, it replaces the batching policy by a replay.
    """

    script: Sequence[PlanRecord] | None = None
    asks: list[PlanRecord] = field(default_factory=list)
    evictions: list[Departure] = field(default_factory=list)

    def batching(self, policy: Batching) -> Batching:
        return PlanRecorder(policy if self.script is None else Replay(self.script), self.asks)

    def eviction(self, cache: int, policy: Eviction) -> Eviction:
        return _Eviction(cache, policy, self.evictions)

    def decisions(self, records: Sequence[Record], num_experts: int) -> Decisions:
        """Return the decisions of the run whose journal holds `records`."""
        misses, prefetches = [], []
        nbytes = {"demand": 0, "prefetch": 0, "write_back": 0, "readback": 0}
        for step, work in records:
            op = work.op
            if not isinstance(op, Copy | Readback):
                continue
            if isinstance(op, Readback):
                kind = "readback"
            elif work.lane != H2D:
                kind = "write_back"
            elif work.urgency == DEMAND:
                kind = "demand"
                misses.append((step, op.key // num_experts, op.key))
            else:
                kind = "prefetch"
                prefetches.append((step, op.key))
            nbytes[kind] += op.nbytes
        return Decisions(
            tuple(self.asks), tuple(misses), tuple(prefetches), tuple(self.evictions), nbytes
        )


class _Eviction(Eviction):
    """A wrapper of an eviction policy that notes its answers; it shares the policy's book."""

    def __init__(self, cache: int, policy: Eviction, departures: list[Departure]) -> None:
        # The server reads these attributes of the class, and this class stands for any policy.
        self.name = policy.name  # type: ignore[misc]
        self.clairvoyant = policy.clairvoyant  # type: ignore[misc]
        self.looks_ahead = policy.looks_ahead  # type: ignore[misc]
        self.recent_rows = policy.recent_rows
        self.capacity = policy.capacity
        self.sizes = policy.sizes
        self.always = policy.always
        self.options = policy.options
        self.preload = policy.preload  # type: ignore[method-assign]
        self.insert = policy.insert  # type: ignore[method-assign]
        self.remove = policy.remove  # type: ignore[method-assign]
        self._cache = cache
        self._policy = policy
        self._departures = departures

    @property
    def book(self) -> Any:  # type: ignore[override]
        return self._policy.book

    def decide(self, view: View) -> Collection[Key]:
        leavers = self._policy.decide(view)
        # Policies may return sets. Sorted, equal answers are equal on both machines.
        self._departures.append((self._cache, "event", tuple(sorted(leavers))))
        return leavers

    def victim(self, protected: Collection[Key]) -> Key | None:
        victim = self._policy.victim(protected)
        self._departures.append((self._cache, "prefetch", () if victim is None else (victim,)))
        return victim


def differences(real: Decisions, simulated: Decisions) -> list[str]:
    """Return the first difference of each kind, in words; empty if all decisions are equal."""
    texts = [
        _first("step composition", real.schedule, simulated.schedule),
        _first("miss (step, layer, key)", real.misses, simulated.misses),
        _first("prefetch (step, key)", real.prefetches, simulated.prefetches),
        _first("eviction (cache, for, keys)", real.evictions, simulated.evictions),
    ]
    for kind, count in real.nbytes.items():
        if count != simulated.nbytes[kind]:
            theirs = simulated.nbytes[kind]
            texts.append(f"{kind} bytes: {count:,} on the real machine, {theirs:,} simulated")
    return [text for text in texts if text]


def _first(what: str, real: Sequence[Any], simulated: Sequence[Any]) -> str:
    for number, (ours, theirs) in enumerate(zip_longest(real, simulated)):
        if ours != theirs:
            return f"{what} number {number}: {ours} on the real machine, {theirs} simulated"
    return ""
