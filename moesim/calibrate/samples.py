"""From the works of a run to samples: how long each operation kept the run waiting.

The simulated machine starts work at the first possible instant. A real machine first wakes a thread
or launches a kernel. So an operation's sample starts when the simulated machine would have started
it: at the end of the operation before it on the GPU lane, or at the landing of its expert. The
host's work between a front and the first work of its layer event counts as readback. Its work
between two steps counts as part of the tail.

An emulated link tells of a landing late, because a thread must wake up. So a copy over it lasts its
nominal time, and the delay after that belongs to the computation that waited. The delay then counts
once. If the copy itself takes longer than the link would let it, its own end counts.

A copy also costs time on the compute lane: the host issues it, computation beside it is slower, and
threads that have waited start cold. So each sample has the number of copies in its layer event.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol, runtime_checkable

from moesim.cost.roofline import copy_ns
from moesim.hardware import ops
from moesim.hardware.hardware import Link
from moesim.hardware.ops import BatchShape, Dense, Experts, Front, Tail
from moesim.hardware.topology import GPU, H2D
from moesim.machine.work import DEMAND, Work
from moesim.serving.run_log import Issued

_SLOWER: Final = 1.5  # times its nominal duration: then the link did not hold the copy back

__all__ = ["KINDS", "ExpertWork", "Layer", "Readback", "Samples", "TailWork", "read_works"]


class ExpertWork(NamedTuple):
    """One call over routed experts.

    `landed`: the lane was idle until its expert's copy landed. `fresh`: the call follows the copy
    of its expert. `copies`: how many experts were copied beside a call that is not fresh.
    """

    tokens: tuple[int, ...]
    landed: bool
    fresh: bool = False
    copies: int = 0


class Layer(NamedTuple):
    """One layer of one batch, without its routed experts.

    `first`: it is the first layer of its step. `copies`: how many experts the layer event before it
    copied, in the same step.
    """

    layer: int
    batch: BatchShape
    first: bool
    copies: int = 0


class Readback(NamedTuple):
    """`nbytes` of ids brought to the host, for a layer event that copies `copies` experts.

    `before`: how many experts the layer event before it copied.
    """

    nbytes: int
    copies: int = 0
    before: int = 0


class TailWork(NamedTuple):
    """The end of a step, until the next begins; it brings `nbytes` of sampled tokens to the host.

    `copies`: how many experts the last layer event of the step copied.
    """

    batch: BatchShape
    nbytes: int
    copies: int = 0


@runtime_checkable
class Waiting(Protocol):
    """What the real machine remembers of a work."""

    def ready_ns(self) -> int:
        """Return the first time at which it could have begun."""


KINDS: Final = ("experts", "fronts", "dense", "readbacks", "tails")
"""The kinds of samples that add up to a step, beside the waits for copies."""


@dataclass(slots=True)
class Samples:
    """Pairs (work, ns) of each kind; `copies`, from host to device, are (bytes, ns).

    `steps` has an entry for each finished step: how many samples of each of `KINDS` there were at
    its end.
    """

    experts: list[tuple[ExpertWork, int]] = field(default_factory=list)
    fronts: list[tuple[Layer, int]] = field(default_factory=list)
    dense: list[tuple[Layer, int]] = field(default_factory=list)
    readbacks: list[tuple[Readback, int]] = field(default_factory=list)
    tails: list[tuple[TailWork, int]] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)
    steps: list[tuple[int, ...]] = field(default_factory=list)

    def add(self, other: Samples) -> None:
        """Add the samples of another run."""
        before = self.counts()
        self.steps += [tuple(map(sum, zip(before, end, strict=True))) for end in other.steps]
        for name in (*KINDS, "copies"):
            getattr(self, name).extend(getattr(other, name))

    def counts(self) -> tuple[int, ...]:
        """Return how many samples of each of `KINDS` there are."""
        return tuple(len(getattr(self, kind)) for kind in KINDS)


def read_works(
    works: Sequence[Issued], *, link: Link | None = None, skip_steps: int = 1
) -> Samples:
    """Return the samples of a finished run, without its first `skip_steps` steps.

    `link` is the emulated link, or None.
    """
    return _Reader(link, skip_steps).read(works)


@dataclass(slots=True)
class _Event:
    """A layer event: its readback, and what has begun in it so far."""

    nbytes: int
    work_ns: int | None = None  # when its first computation began
    copy_ns: int | None = None  # when its first copy began
    copies: int = 0
    waited: bool = False  # whether any computation waited for a copy
    resident: int | None = None  # the sample of the call over experts that were in GPU memory

    @property
    def begun_ns(self) -> int | None:
        """When its first work began: that of its copies if the run waits for them."""
        return self.copy_ns if self.waited and self.copy_ns is not None else self.work_ns


class _Reader:
    """Reads works in the order of issue, which on each lane is the order of time."""

    def __init__(self, link: Link | None, skip_steps: int) -> None:
        self._link = link
        self._skip_steps = skip_steps
        self._samples = Samples()
        self._counts = False
        self._gpu_free_ns = 0  # the end of the operation before
        self._front_ns = 0  # the end of the last front
        self._event: _Event | None = None
        self._before = 0  # copies of the last layer event
        self._copies = 0  # the same, until the layer after the event has begun
        self._step = 0
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
                    self._event = _Event(work.op.nbytes)
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
        if follows:
            start_ns = self._link_free_ns
        if work.urgency == DEMAND and self._event is not None:
            if not self._event.copies and not follows:
                self._event.copy_ns = start_ns
            self._event.copies += 1
        self._link_free_ns = self._landed_ns(work, start_ns, op.nbytes)
        if self._counts:
            self._samples.copies.append((op.nbytes, self._link_free_ns - start_ns))
        self._copy = work
        self._landing[op.key] = self._link_free_ns

    def _landed_ns(self, work: Work, start_ns: int, nbytes: int) -> int:
        """Return when a copy landed that began at `start_ns`."""
        if self._link is None:
            return max(start_ns, work.finish_ns)
        nominal_ns = copy_ns(self._link, nbytes, pinned=True)
        # A thread wakes up late by much less than a copy takes, unless the link is very fast.
        own = work.finish_ns - start_ns > _SLOWER * nominal_ns
        return work.finish_ns if own else min(work.finish_ns, start_ns + nominal_ns)

    def _computed(self, work: Work) -> None:
        op, samples = work.op, self._samples
        if not isinstance(op, Experts):
            self._end_event()
        first = self._tail is not None or not self._gpu_free_ns
        begun_ns = work.start_ns if first else self._gpu_free_ns
        self._end_step(work)
        if isinstance(op, Experts):
            self._experts(work, op)
        elif isinstance(op, Tail):
            self._tail = op.batch, work.finish_ns - begun_ns, work.finish_ns
        elif isinstance(op, Front):
            self._front_ns = work.finish_ns
            self._take(samples.fronts, self._layer(op, first), work, begun_ns)
        elif isinstance(op, Dense):
            self._take(samples.dense, self._layer(op, first), work, begun_ns)
        if isinstance(op, Front | Dense):
            self._copies = 0
        self._gpu_free_ns = work.finish_ns

    def _layer(self, op: Front | Dense, first: bool) -> Layer:
        return Layer(op.layer, op.batch, first, 0 if first else self._copies)

    def _experts(self, work: Work, op: Experts) -> None:
        """Add a call over experts.

        A call that waited for a copy counts from the landing, any other from the end of the
        operation before.
        """
        # An expert has a landing only until its first computation.
        landing_ns = max([self._landing.pop(key, 0) for key in op.keys])
        landed = landing_ns > max(self._gpu_free_ns, self._front_ns)
        begun_ns, event = self._gpu_free_ns, self._event
        if event is not None:
            event.waited |= landed
            if event.work_ns is None:
                event.work_ns = begun_ns = work.start_ns
            if not op.fresh:
                event.resident = len(self._samples.experts)
        what = ExpertWork(op.tokens, landed, op.fresh)
        self._take(self._samples.experts, what, work, landing_ns if landed else begun_ns)

    def _take(self, into: list[Any], what: Any, work: Work, begun_ns: int) -> None:
        if self._counts:
            into.append((what, work.finish_ns - begun_ns))

    def _end_event(self) -> None:
        """Add the readback of the last layer event: from its front to the event's first work."""
        event, self._event = self._event, None
        if event is None:
            return
        before, self._before = self._before, event.copies
        self._copies = event.copies
        if event.begun_ns is None or not self._counts:
            return
        readback = Readback(event.nbytes, event.copies, before)
        self._samples.readbacks.append((readback, max(0, event.begun_ns - self._front_ns)))
        if event.resident is not None and event.copies:
            what, ns = self._samples.experts[event.resident]
            self._samples.experts[event.resident] = what._replace(copies=event.copies), ns

    def _end_step(self, first: Work) -> None:
        """Add the tail of the previous step, which ends at the first work of this one."""
        if self._tail is None:
            return
        batch, tail_ns, end_ns = self._tail
        if self._counts:
            work = TailWork(batch, self._sampled_bytes, self._copies)
            self._samples.tails.append((work, tail_ns + first.start_ns - end_ns))
            self._samples.steps.append(self._samples.counts())
        self._tail, self._copies = None, 0
