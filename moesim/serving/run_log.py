"""The run log: what a run plans, decides and issues, as typed records.

A server passes each record to its observers when it happens. Observers only read: a run is the same
with them and without. An observer names the kinds of record that it receives, so no other record is
made. An observer of `Issued` needs every work. The server then runs each step layer by layer, also
where it could time whole steps at once.

Records are in the order of the run. Steps that are timed at once are decided before they start, so
each record carries its step.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple, Protocol, TypeVar

from moesim.machine.work import Work
from moesim.policies.view import Key
from moesim.serving.experts.decision import Decision
from moesim.serving.stalls import READBACK, Waits

__all__ = [
    "Decided",
    "DecidedAhead",
    "Issued",
    "Observer",
    "PlanRecord",
    "Planned",
    "Record",
    "RunLog",
    "StepEnded",
    "StepStarted",
    "listener",
]

PlanRecord = tuple[tuple[int, int, int], ...]
"""Requests of a step: the index of each, its rows computed so far, and its tokens in the step."""


class Planned(NamedTuple):
    """An answer of the batching policy, before preemptions; a step may take several answers."""

    plan: PlanRecord


class StepStarted(NamedTuple):
    """A step starts; `parts` are the requests that it really has."""

    step: int
    now_ns: int
    parts: PlanRecord


class Decided(NamedTuple):
    """A layer event is decided; `cache` is the number of its cache."""

    step: int
    cache: int
    decision: Decision


class DecidedAhead(NamedTuple):
    """A copy ahead of an absent key is decided; `decision` is None if the key gets no slot."""

    step: int
    cache: int
    key: Key
    decision: Decision | None


class Issued(NamedTuple):
    """A work is issued; its times are final once the machine reports it as done.

    `kind` is the work's name in the timeline, `layer` a trace layer. `decided_ns` is the time of
    the host's last wait before it, and `waited` the cause of a GPU that is idle during that wait.
    `waits` are as in `moesim/serving/stalls.py`.
    """

    step: int
    work: Work
    kind: str
    layer: int
    decided_ns: int = 0
    waited: int = READBACK
    waits: Waits = ()


class StepEnded(NamedTuple):
    """The host has the sampled tokens of a step."""

    step: int
    now_ns: int


Record = Planned | StepStarted | Decided | DecidedAhead | Issued | StepEnded
Kept = TypeVar("Kept", Planned, StepStarted, Decided, DecidedAhead, Issued, StepEnded)


class Observer(Protocol):
    """A reader of records."""

    @property
    def kinds(self) -> Collection[type[Record]]:
        """The kinds of record that it receives; they stay the same."""

    def record(self, it: Record) -> None:
        """Take one record. Change nothing that it refers to."""


def listener(observers: Sequence[Observer], kind: type[Record]) -> Callable[[Record], None] | None:
    """Return a function that passes a record of one kind to its observers; None without any."""
    listening = [observer.record for observer in observers if kind in observer.kinds]
    if len(listening) < 2:
        return listening[0] if listening else None

    def tell_all(it: Record) -> None:
        for record in listening:
            record(it)

    return tell_all


class RunLog:
    """An observer that keeps `records` of the given kinds, in order."""

    def __init__(self, *kinds: type[Record]) -> None:
        """Keep records of these kinds, or of all kinds if none is given."""
        self.kinds = kinds or (Planned, StepStarted, Decided, DecidedAhead, Issued, StepEnded)
        self.records: list[Record] = []

    def record(self, it: Record) -> None:
        self.records.append(it)

    def of(self, kind: type[Kept]) -> list[Kept]:
        """Return the records of one kind, in order."""
        return [it for it in self.records if isinstance(it, kind)]
