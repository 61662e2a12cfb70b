"""Programs: the work of a decided layer event, in the order of issue.

Experts in GPU memory are computed in one call. Experts whose copy is under way follow, each when it
has landed. Then come the experts that are computed on other lanes: their inputs go there, and one
call computes them. Leavers are written back if the scenario says so. Each missing expert that runs
on the GPU has a copy and a computation. Only then do outputs of other lanes come back, because they
would delay these copies. Copies for later events are last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from moesim.hardware.ops import Copy, Experts, States
from moesim.hardware.topology import D2H, DISK, GPU, H2D, Topology
from moesim.machine.protocol import Machine
from moesim.machine.work import DEMAND, PREFETCH, Work
from moesim.policies.view import Key
from moesim.serving import stalls
from moesim.serving.experts.decision import NO_READS, Decision
from moesim.serving.experts.slots import Slot
from moesim.serving.issue import Issuer
from moesim.serving.stalls import Waits

__all__ = ["Hidden", "Program"]


_NOTHING: Final[tuple[tuple[Work, ...], Waits]] = ((), ())


class Hidden(NamedTuple):
    """Where the hidden states are, and what the next work on them waits for.

    `lane` is the compute lane beside them. `waits` has the causes of an idle GPU meanwhile. Without
    `after`, only earlier work of that lane matters, and the lane is first in first out.
    """

    lane: str
    after: tuple[Work, ...] = ()
    waits: Waits = ()


class Program:
    """Issues the work of decided layer events on one machine.

    `nbytes(key)` are the bytes of an expert, `state_bytes` those of one row's hidden states.
    """

    def __init__(
        self,
        machine: Machine,
        topology: Topology,
        nbytes: Callable[[Key], int],
        state_bytes: int,
        num_experts: int,
    ) -> None:
        self._promote = machine.promote
        self._done = machine.done
        self._topology = topology
        self._nbytes = nbytes
        self._state_bytes = state_bytes
        self._num_experts = num_experts
        self._copies: dict[Key, Copy] = {}  # of each expert to GPU memory
        self._reading: dict[Key, Work] = {}  # the last read of an expert, while it may be under way

    def move(self, hidden: Hidden, lane: str, layer: int, rows: int, issue: Issuer) -> Hidden:
        """Bring hidden states beside another compute lane, if they are not there yet."""
        if hidden.lane == lane:
            return hidden
        topology = self._topology
        source, target = topology.memory_of(hidden.lane), topology.memory_of(lane)
        if source == target:
            return hidden
        op = States(layer, rows, rows * self._state_bytes)
        copy = issue(Work(topology.route(source, target), op, hidden.after), "states", layer)
        return Hidden(lane, (copy,), (*hidden.waits, (copy, stalls.CPU, layer)))

    def event(self, it: Decision, hidden: Hidden, rows: int, issue: Issuer) -> Hidden:
        """Issue a layer event; return where its results are.

        `hidden` are the inputs of its experts, for the `rows` rows of the step.
        """
        layer = it.layer
        here, inputs = hidden.lane == GPU, hidden
        if not here and (it.ready or it.late or it.loads):
            inputs = self.move(hidden, GPU, layer, rows, issue)
        # A lane is first in first out, so work on the GPU needs no other promise of its inputs.
        before = () if here else inputs.after
        last = None
        if it.ready:
            op = Experts(layer, tuple(it.ready), tuple(it.ready_rows))
            last = issue(Work(GPU, op, before), "experts", layer, inputs.waits)
            for slot in it.held:
                slot.reader = last
        for key, count, slot in it.late:
            landing = slot.landing
            assert landing is not None
            self._promote(landing)
            landed = (landing,)
            until: Waits = ((landing, stalls.LATE, layer),)
            op = Experts(layer, (key,), (count,), fresh=True)
            work = Work(GPU, op, landed + before)
            slot.reader = last = issue(work, "experts", layer, inputs.waits + until)
        computed = self._elsewhere(it, hidden, rows, issue) if it.elsewhere else ()
        for key, slot in it.vacated:
            self._vacate(key, slot, it.write_back, issue)
        reads = it.reads or self._reading
        last_load = len(it.loads) - 1
        for number, (key, count, slot) in enumerate(it.loads):
            after, read = self._read(key, it.reads, layer, issue) if reads else _NOTHING
            landing = self._copy(key, slot, DEMAND, after, layer, issue)
            landed, until = (landing,), (*read, (landing, stalls.DEMAND, layer))
            copied = len(it.loads) if number == last_load else 0
            work = Work(GPU, Experts(layer, (key,), (count,), True, copied), landed + before)
            slot.reader = last = issue(work, "experts", layer, inputs.waits + until)
            slot.landing = None  # later work waits for the reader, which waits for the copy
        # A lane is first in first out: before the copies of experts, the outputs of another lane
        # would keep them waiting until it has computed.
        parts = [self.move(there, hidden.lane, layer, rows, issue) for there in computed]
        if last is not None and (hidden.after or not here):
            parts.append(self.move(Hidden(GPU, (last,)), hidden.lane, layer, rows, issue))
        if it.later:
            # They ran elsewhere in this event, so whatever is on disk is being read already.
            self._copy_ahead(it._replace(reads=NO_READS), issue)
        return _joined(hidden.lane, parts) if parts else hidden

    def ahead(self, it: Decision, issue: Issuer) -> None:
        """Issue copies of experts for later events, behind all demand copies.

        Slots of leavers are made ready first: a copy under way lands, an expert is written back.
        """
        for key, slot in it.vacated:
            self._vacate(key, slot, it.write_back, issue)
        self._copy_ahead(it, issue)

    def _copy_ahead(self, it: Decision, issue: Issuer) -> None:
        reads = it.reads or self._reading
        for key, slot in it.later:
            after, _ = self._read(key, it.reads, it.layer, issue) if reads else _NOTHING
            slot.landing = self._copy(key, slot, PREFETCH, after, it.layer, issue)
            slot.reader = None
            slot.fresh = True

    def _vacate(self, key: Key, slot: Slot, write_back: bool, issue: Issuer) -> None:
        """A copy under way lands first, and the expert is written back."""
        if slot.landing is not None:
            self._promote(slot.landing)
        if write_back:
            work = Work(D2H, Copy(key, self._nbytes(key)), self._busy(slot), DEMAND, slot.number)
            slot.reader = issue(work, "write_back", key // self._num_experts)

    def _copy(
        self,
        key: Key,
        slot: Slot,
        urgency: int,
        after: tuple[Work, ...],
        layer: int,
        issue: Issuer,
    ) -> Work:
        """Issue the copy of an expert into a slot that may still be in use."""
        op = self._copies.get(key)
        if op is None:
            op = self._copies[key] = Copy(key, self._nbytes(key))
        if slot.over:  # it takes the memory of experts that may still be read
            after = (*after, *[work for other in slot.over for work in self._busy(other)])
            slot.over = ()
        work = Work(H2D, op, self._busy(slot) + after, urgency, slot.number)
        return issue(work, "prefetch" if urgency else "demand", layer)

    def _read(
        self, key: Key, reads: Mapping[Key, int], layer: int, issue: Issuer
    ) -> tuple[tuple[Work, ...], Waits]:
        """Read the part of an expert that is on disk; return what to wait for.

        An expert that is in host memory may still be under way to it, for an earlier use.
        """
        reading, nbytes = self._reading, reads.get(key, 0)
        if nbytes:
            reading[key] = issue(Work(DISK, Copy(key, nbytes)), "read", layer)
        elif key not in reading:
            return _NOTHING
        read = reading[key]
        if self._done(read):
            del reading[key]
            return _NOTHING
        return (read,), ((read, stalls.DISK, layer),)

    def _elsewhere(self, it: Decision, hidden: Hidden, rows: int, issue: Issuer) -> list[Hidden]:
        """Issue the experts that run on other lanes, one call a lane.

        Return where each lane's results are: beside the lane still.
        """
        computed = []
        for lane in dict.fromkeys([lane for *_, lane in it.elsewhere]):
            chosen = [(key, count) for key, count, where in it.elsewhere if where == lane]
            inputs = self.move(hidden, lane, it.layer, rows, issue)
            after, waits = list(inputs.after), list(inputs.waits)
            for key, _ in chosen:
                read, until = self._read(key, it.reads, it.layer, issue)
                after += read
                waits += until
            keys, counts = zip(*chosen, strict=True)
            op = Experts(it.layer, keys, counts)
            call = issue(Work(lane, op, after), "experts", it.layer)
            waits.append((call, stalls.CPU, it.layer))
            computed.append(Hidden(lane, (call,), tuple(waits)))
        return computed

    def _busy(self, slot: Slot) -> tuple[Work, ...]:
        """Return the work that must be done before the slot may be overwritten.

        That is its last reader, which itself waits for the copy that fills the slot. Without a
        reader it is that copy.
        """
        last = slot.landing if slot.reader is None else slot.reader
        return () if last is None or self._done(last) else (last,)


def _joined(lane: str, parts: Sequence[Hidden]) -> Hidden:
    """Return hidden states that are complete when all parts are."""
    after = tuple([work for part in parts for work in part.after])
    return Hidden(lane, after, tuple([wait for part in parts for wait in part.waits]))
