"""Issuing: the one place where work is handed to a machine, priced for the host, and logged."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from moesim.hardware.topology import GPU, Topology
from moesim.machine.work import Work
from moesim.serving.run_log import Issued, Record
from moesim.serving.stalls import READBACK, Entry, Waits

__all__ = ["Execution", "HostTimes", "Issuer", "ObservedIssuer"]


@dataclass(frozen=True, slots=True)
class HostTimes:
    """The host's time to issue work, in nanoseconds: a property of the engine.

    `launch_ns` is for a computation, `copy_ns` for a copy. `event_ns` is for deciding a layer
    event on the host; the first work of the event carries it.
    """

    launch_ns: int = 0
    copy_ns: int = 0
    event_ns: int = 0


@dataclass(frozen=True, slots=True)
class Execution:
    """How decided work is executed: on which lanes, with which sizes, by which engine.

    `nbytes(key)` are the bytes of an expert, `state_bytes` those of the hidden states of a row.
    `lanes[m]` is the compute lane of model layer m without its routed experts; the last entry is
    the end of a step. Empty: all on the GPU. `copies_later`: experts that ran elsewhere may be
    copied to the GPU for later events. `sorts_on_device`: a layer whose experts are all in GPU
    memory needs no ids on the host, except for prefetches. `kind_of(key)`: experts of one kind take
    the same time; None: all are of one kind.
    """

    nbytes: Callable[[int], int]
    topology: Topology = field(default_factory=Topology.single_gpu)
    state_bytes: int = 0
    host: HostTimes = HostTimes()
    lanes: tuple[str, ...] = ()
    copies_later: bool = False
    sorts_on_device: bool = False
    kind_of: Callable[[int], Hashable] | None = None

    def lane(self, model_layer: int) -> str:
        """Return the compute lane of a model layer; -1 is the end of a step."""
        return self.lanes[model_layer] if self.lanes else GPU


# The class's own constructor takes twice as long, and this is called for each work.
_new = tuple.__new__


class Issuer:
    """Submits work through `submit` and appends an entry of it to `log`.

    `decided_ns` is the time of the host's last wait, and `waited` the cause of a GPU that is idle
    during it. `step` is the step that further work belongs to.
    """

    def __init__(
        self,
        submit: Callable[[Work], None],
        log: list[Entry],
        topology: Topology,
        host: HostTimes,
    ) -> None:
        self._submit = submit
        self._append = log.append
        self._issue_ns = {
            lane.name: host.launch_ns if lane.computes else host.copy_ns for lane in topology.lanes
        }
        self._event_ns = host.event_ns
        self._extra_ns = 0
        self.free = not any((host.launch_ns, host.copy_ns, host.event_ns))
        self.decided_ns = 0
        self.waited = READBACK
        self.step = 0

    def event_decided(self) -> None:
        """Add the time of a layer event's decision to the next work."""
        self._extra_ns += self._event_ns

    def __call__(self, work: Work, kind: str, layer: int, waits: Waits = ()) -> Work:
        """Issue a work and return it."""
        if not self.free:
            work.issue_ns = self._issue_ns[work.lane] + self._extra_ns
            self._extra_ns = 0
        self._submit(work)
        entry = (work, kind, layer, self.decided_ns, self.waited, waits)
        self._append(_new(Entry, entry))
        return work


class ObservedIssuer(Issuer):
    """An issuer that also passes each work to `tell`, as a record of the run log."""

    def __init__(
        self,
        submit: Callable[[Work], None],
        log: list[Entry],
        topology: Topology,
        host: HostTimes,
        tell: Callable[[Record], None],
    ) -> None:
        super().__init__(submit, log, topology, host)
        self._tell = tell

    def __call__(self, work: Work, kind: str, layer: int, waits: Waits = ()) -> Work:
        super().__call__(work, kind, layer, waits)
        self._tell(Issued(self.step, work, kind, layer, self.decided_ns, self.waited, waits))
        return work
