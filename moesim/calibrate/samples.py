"""From the works of a run to samples: how long each operation kept the run waiting.

The simulated machine starts work at the first possible instant. A real machine first wakes a thread
or launches a kernel. So an operation's sample starts when the simulated machine would have started
it: at the end of the operation before it on the GPU lane, or at the landing of its expert. The
host's work between a front and the first work of its layer event counts as readback. Its work
between two steps counts as part of the tail. Late wake-ups of an emulated link do not add up. So a
copy counts as landed at its nominal time, and any delay after that belongs to the computation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

from moesim.cost.roofline import copy_ns
from moesim.hardware import ops
from moesim.hardware.hardware import Link
from moesim.hardware.ops import BatchShape, Dense, Experts, Front, Tail
from moesim.hardware.topology import GPU, H2D
from moesim.machine.work import DEMAND, Work
from moesim.serving.run_log import Issued

__all__ = ["ExpertWork", "Layer", "Readback", "Samples", "TailWork", "read_works"]


class ExpertWork(NamedTuple):
    """One call over routed experts; `landed`: the lane was idle until its expert's copy landed."""

    tokens: tuple[int, ...]
    landed: bool


class Layer(NamedTuple):
    """One layer of one batch, without its routed experts.

    `first`: it is the first layer of its step. `cold`: the lane waited for a copy somewhere in the
    step, so threads have slept and caches are cold.
    """

    layer: int
    batch: BatchShape
    first: bool
    cold: bool


class Readback(NamedTuple):
    """`nbytes` of ids brought to the host; `cold` as for a layer."""

    nbytes: int
    cold: bool


class TailWork(NamedTuple):
    """The end of a step, until the next begins; it brings `nbytes` of sampled tokens to the host.

    `cold` as for a layer.
    """

    batch: BatchShape
    nbytes: int
    cold: bool


@runtime_checkable
class Waiting(Protocol):
    """What the real machine remembers of a work."""

    def ready_ns(self) -> int:
        """Return the first time at which it could have begun."""


@dataclass(slots=True)
class Samples:
    """Pairs (work, ns) of each kind; `copies`, from host to device, are (bytes, ns)."""

    experts: list[tuple[ExpertWork, int]] = field(default_factory=list)
    fronts: list[tuple[Layer, int]] = field(default_factory=list)
    dense: list[tuple[Layer, int]] = field(default_factory=list)
    readbacks: list[tuple[Readback, int]] = field(default_factory=list)
    tails: list[tuple[TailWork, int]] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)

    def add(self, other: Samples) -> None:
        """Add the samples of another run."""
        for name in self.__slots__:
            getattr(self, name).extend(getattr(other, name))


def read_works(
    works: Sequence[Issued], *, link: Link | None = None, skip_steps: int = 1
) -> Samples:
    """Return the samples of a finished run, without its first `skip_steps` steps.

    `link` is the emulated link, or None.
    """
    # A step's early layers are cold too if a later layer waits, so a first pass finds such steps.
    scout = _Reader(link, skip_steps)
    scout.read(works)
    return _Reader(link, skip_steps, frozenset(scout.waiting)).read(works)


class _Reader:
    """Reads works in the order of issue, which on each lane is the order of time."""

    def __init__(
        self, link: Link | None, skip_steps: int, cold: frozenset[int] = frozenset()
    ) -> None:
        """Start a pass; `cold` are the steps in which the lane waits for copies."""
        self.waiting: set[int] = set()
        self._cold_steps = cold
        self._link = link
        self._skip_steps = skip_steps
        self._samples = Samples()
        self._counts = False
        self._gpu_free_ns = 0  # the end of the operation before
        self._front_ns = 0  # the end of the last front
        # Bytes read back for the current layer event, and when its first work began: that of the
        # copies if there are any, because the run waits for them.
        self._event: tuple[int, int | None] | None = None
        self._copies = 0  # of this layer event
        self._waited = False  # whether its last computation waited for a copy
        self._step = 0
        self._cold = False  # whether any computation of the step waits for a copy
        self._copy: Work | None = None  # the previous copy
        self._link_free_ns = 0  # its end; on an emulated link its nominal end
        self._landing: dict[int, int] = {}  # landing times of experts that are not computed yet
        self._tail: tuple[BatchShape, int, int] | None = None  # of the previous step
        self._sampled_bytes = 0

    def read(self, works: Sequence[Issued]) -> Samples:
        for issued in works:
            self._counts = issued.step >= self._skip_steps
            if issued.step != self._step:
                self._end_event()
                self._step = issued.step
            work = issued.work
            if isinstance(work.op, ops.Readback):
                if self._tail is None:
                    self._event, self._copies = (work.op.nbytes, None), 0
                else:
                    self._sampled_bytes = work.op.nbytes
            elif isinstance(work.op, ops.Copy) and work.lane == H2D:
                self._copied(work, work.op)
            elif work.lane == GPU:
                self._computed(work)
        self._end_event()
        return self._samples

    def _copied(self, work: Work, op: ops.Copy) -> None:
        """Add a copy: its duration, and the time at which it would have landed without delays."""
        before = self._copy
        ready_ns = work.job.ready_ns() if isinstance(work.job, Waiting) else work.start_ns
        # An emulated link counts from when a copy could begin, not from when its thread woke up.
        start_ns = work.start_ns if self._link is None else ready_ns
        follows = before is not None and ready_ns <= before.finish_ns
        if before is not None and follows:
            start_ns = before.finish_ns
        elif work.urgency == DEMAND and self._event is not None and not self._copies:
            self._event = self._event[0], start_ns
        self._copies += 1
        if self._counts:
            self._samples.copies.append((op.nbytes, work.finish_ns - start_ns))
        if self._link is None:
            self._link_free_ns = work.finish_ns
        else:
            due_ns = self._link_free_ns if follows else start_ns
            self._link_free_ns = due_ns + copy_ns(self._link, op.nbytes, pinned=True)
        self._copy = work
        self._landing[op.key] = self._link_free_ns

    def _computed(self, work: Work) -> None:
        op, samples = work.op, self._samples
        if not isinstance(op, Experts):
            self._end_event()
        first = self._tail is not None or not self._gpu_free_ns
        cold_tail, self._cold = self._cold, self._step in self._cold_steps
        begun_ns = work.start_ns if first else self._gpu_free_ns
        self._end_step(work, cold_tail)
        # A computation that waited for a copy counts from the landing, any other from the end of
        # the operation before.
        if isinstance(op, Experts):
            # An expert has a landing only until its first computation.
            landings = [self._landing.pop(key, 0) for key in op.keys]
            self._waited = max(landings) > max(self._gpu_free_ns, self._front_ns)
            if self._waited:
                begun_ns = max(landings)
            elif self._event is not None and self._event[1] is None:
                begun_ns = work.start_ns
                self._event = self._event[0], begun_ns
            self._take(samples.experts, ExpertWork(op.tokens, self._waited), work, begun_ns)
        elif isinstance(op, Tail):
            self._tail = op.batch, work.finish_ns - begun_ns, work.finish_ns
        elif isinstance(op, Front):
            self._front_ns = work.finish_ns
            self._take(samples.fronts, Layer(op.layer, op.batch, first, self._cold), work, begun_ns)
        elif isinstance(op, Dense):
            self._take(samples.dense, Layer(op.layer, op.batch, first, self._cold), work, begun_ns)
        self._gpu_free_ns = work.finish_ns

    def _take(self, into: list[Any], what: Any, work: Work, begun_ns: int) -> None:
        if self._counts:
            into.append((what, work.finish_ns - begun_ns))

    def _end_event(self) -> None:
        """Add the readback of the last layer event: from its front to the event's first work."""
        nbytes, begun_ns = self._event or (0, None)
        if begun_ns is not None and self._counts:
            self._samples.readbacks.append(
                (Readback(nbytes, self._cold), begun_ns - self._front_ns)
            )
        if self._waited:
            self.waiting.add(self._step)
        self._event, self._waited = None, False

    def _end_step(self, first: Work, cold: bool) -> None:
        """Add the tail of the previous step, which ends at the first work of this one."""
        if self._tail is None:
            return
        batch, tail_ns, end_ns = self._tail
        if self._counts:
            work = TailWork(batch, self._sampled_bytes, cold)
            self._samples.tails.append((work, tail_ns + first.start_ns - end_ns))
        self._tail = None
