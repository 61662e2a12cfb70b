"""The decisions of a server, without their times: steps, misses, placements, evictions, bytes.

Two machines that run the same workload must make the same decisions. A witness reads them from the
run log of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, ClassVar

from moesim.hardware.ops import Copy, Readback, States
from moesim.policies.view import Key
from moesim.serving.ledger import MOVES
from moesim.serving.run_log import Decided, DecidedAhead, Issued, Planned, PlanRecord, Record

__all__ = ["Decisions", "Witness", "differences"]

# (cache, "event", the leavers of a layer event in rising order), or (cache, "prefetch", victim).
Departure = tuple[int, str, tuple[Key, ...]]


@dataclass(frozen=True, slots=True)
class Decisions:
    """All decisions of one run.

    `schedule`: the batching policy's answers, enough to `Replay` them; `misses` (step, layer, key)
    and `prefetches` (step, key) in the order of issue; `evictions`: the keys that left each cache,
    event by event; `nbytes`: bytes of issued copies, by kind; `placements` (step, layer, key,
    lane): absent experts that were computed on another lane than the GPU.
    """

    schedule: tuple[PlanRecord, ...]
    misses: tuple[tuple[int, int, Key], ...]
    prefetches: tuple[tuple[int, Key], ...]
    evictions: tuple[Departure, ...]
    nbytes: dict[str, int]
    placements: tuple[tuple[int, int, Key, str], ...] = ()


@dataclass(slots=True)
class Witness:
    """An observer of one run that notes its decisions and keeps its works.

    The lists are those of `Decisions`; `works` are in the order of issue.
    """

    kinds: ClassVar = (Planned, Decided, DecidedAhead, Issued)

    works: list[Issued] = field(default_factory=list)
    schedule: list[PlanRecord] = field(default_factory=list)
    misses: list[tuple[int, int, Key]] = field(default_factory=list)
    prefetches: list[tuple[int, Key]] = field(default_factory=list)
    evictions: list[Departure] = field(default_factory=list)
    placements: list[tuple[int, int, Key, str]] = field(default_factory=list)
    nbytes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(MOVES, 0))

    def record(self, it: Record) -> None:
        if isinstance(it, Issued):
            self._issued(it)
        elif isinstance(it, Planned):
            self.schedule.append(it.plan)
        elif isinstance(it, Decided):
            self._decided(it)
        elif isinstance(it, DecidedAhead):
            self._decided_ahead(it)

    def _issued(self, it: Issued) -> None:
        self.works.append(it)
        op = it.work.op
        if isinstance(op, Copy | Readback | States):
            self.nbytes[it.kind] += op.nbytes
        if isinstance(op, Copy) and it.kind == "demand":
            self.misses.append((it.step, it.layer, op.key))
        elif isinstance(op, Copy) and it.kind == "prefetch":
            self.prefetches.append((it.step, op.key))

    def _decided(self, it: Decided) -> None:
        # Policies may return sets. Sorted, equal answers are equal on both machines.
        self.evictions.append((it.cache, "event", tuple(sorted(it.decision.leavers))))
        for key, _, lane in it.decision.elsewhere:
            self.placements.append((it.step, it.decision.layer, key, lane))

    def _decided_ahead(self, it: DecidedAhead) -> None:
        leavers = () if it.decision is None else tuple(it.decision.leavers)
        if it.decision is None or leavers:
            self.evictions.append((it.cache, "prefetch", leavers))

    def decisions(self) -> Decisions:
        """Return the decisions of the run so far."""
        return Decisions(
            tuple(self.schedule),
            tuple(self.misses),
            tuple(self.prefetches),
            tuple(self.evictions),
            dict(self.nbytes),
            tuple(self.placements),
        )


def differences(real: Decisions, simulated: Decisions) -> list[str]:
    """Return the first difference of each kind, in words; empty if all decisions are equal."""
    texts = [
        _first("step composition", real.schedule, simulated.schedule),
        _first("miss (step, layer, key)", real.misses, simulated.misses),
        _first("prefetch (step, key)", real.prefetches, simulated.prefetches),
        _first("eviction (cache, for, keys)", real.evictions, simulated.evictions),
        _first("placement (step, layer, key, lane)", real.placements, simulated.placements),
    ]
    # A stored run may lack the kinds that are newer than it.
    for kind in real.nbytes | simulated.nbytes:
        ours, theirs = real.nbytes.get(kind, 0), simulated.nbytes.get(kind, 0)
        if ours != theirs:
            texts.append(f"{kind} bytes: {ours:,} on the real machine, {theirs:,} simulated")
    return [text for text in texts if text]


def _first(what: str, real: Sequence[Any], simulated: Sequence[Any]) -> str:
    for number, (ours, theirs) in enumerate(zip_longest(real, simulated)):
        if ours != theirs:
            return f"{what} number {number}: {ours} on the real machine, {theirs} simulated"
    return ""
