"""Residency: which experts have a slot in GPU memory, and how a layer event changes that.

A slot belongs to a key as soon as the key's copy is issued, and not only when the copy has landed.
So decisions do not depend on the speed of the link. An expert that must leave while its copy is
under way lands first; the copy gets demand priority.

A layer event is decided once for the whole union. Resident experts are computed first. Leavers
free their slots, after their computation if they are wanted now. Missing experts that stay are
copied into free slots. The others pass through the staging buffers, in *waves* of one expert per
buffer.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import count

from moesim.errors import InvariantError, PolicyViolation
from moesim.hardware.ops import Copy, Experts
from moesim.hardware.topology import D2H, GPU, H2D
from moesim.machine.base import Machine
from moesim.machine.step_times import FREE, RESIDENTS, Event
from moesim.machine.work import DEMAND, PREFETCH, Work
from moesim.policies.eviction.base import Eviction
from moesim.policies.view import Key, View
from moesim.serving.ledger import CAUSE_DEMAND, CAUSE_LATE, CAUSE_READBACK, Ledger

_STRAY_LEAVER = "is a leaver, but neither resident nor wanted"


class Slot:
    """A buffer in GPU memory for one expert.

    - `number`: its place among all expert-sized buffers.
    - `landing`: the copy that fills it; None once that is known to be done.
    - `reader`: the last computation, or write-back, that reads it.
    - `fresh`: whether its expert was prefetched and not used since.
    - `issued`: number of the prefetch that fills it, in order of issue.
    """

    __slots__ = ("fresh", "issued", "landing", "number", "reader")

    def __init__(self, number: int) -> None:
        self.number = number
        self.landing: Work | None = None
        self.reader: Work | None = None
        self.fresh = False
        self.issued = 0


@dataclass(frozen=True, slots=True)
class ExpertSizes:
    """Bytes of one expert, and whether an evicted expert is copied back to the host."""

    nbytes: int
    write_back: bool = False


class Staging:
    """Buffers for experts that are computed without a slot; reused round robin.

    It numbers all expert-sized buffers of GPU memory: staging buffers first, then the slots of the
    caches. `total` counts the buffers numbered so far.
    """

    def __init__(self, count: int) -> None:
        self.total = 0
        self.buffers = self.slots(count)
        self._next = 0

    def slots(self, count: int) -> list[Slot]:
        """Return new buffers with the next numbers."""
        first, self.total = self.total, self.total + count
        return [Slot(number) for number in range(first, self.total)]

    def take(self) -> Slot:
        """Return the buffer that was used longest ago."""
        buffer = self.buffers[self._next]
        self._next = (self._next + 1) % len(self.buffers)
        return buffer


class ExpertCache:
    """One cache: `capacity` slots for the keys of its policy's universe."""

    def __init__(
        self,
        policy: Eviction,
        machine: Machine,
        ledger: Ledger,
        staging: Staging,
        sizes: ExpertSizes,
    ) -> None:
        self.policy = policy
        self.capacity = policy.capacity
        self.expert_bytes = sizes.nbytes
        self.write_back = sizes.write_back
        self._decide = policy.decide  # looked up once: it is called at every layer event
        self.slots: dict[Key, Slot] = {}
        self._machine = machine
        self._ledger = ledger
        self._staging = staging
        self._sizes = sizes
        self._issues = count()
        self._free = staging.slots(self.capacity)
        for key in policy.preload():
            if not self._free:
                raise self._violation(
                    key, f"is preloaded, but the {self.capacity} slots are taken; return fewer keys"
                )
            if key in self.slots or key not in policy.book:
                raise self._violation(key, "is preloaded twice, or is not in the policy's book")
            self.slots[key] = self._free.pop()
        self.preloaded = tuple(self.slots)

    def audit(self) -> None:
        """Check that the policy's book equals the residency, and that no slot is lost.

        Raise `PolicyViolation` or `InvariantError` otherwise.
        """
        if self.policy.book.keys() != self.slots.keys():
            wrong = self.policy.book.keys() ^ self.slots.keys()
            raise self._violation(
                sorted(wrong, key=str),
                "the policy's book is not the residency: these keys are in one of them only; "
                "call `insert` for each key that gets a slot, and `remove` for each that loses it",
            )
        if len(self.slots) + len(self._free) != self.capacity:
            raise InvariantError(
                2, f"{len(self.slots)} used + {len(self._free)} free slots are not {self.capacity}"
            )

    def event(self, layer: int, view: View) -> None:
        """Run one layer event: sort the union, decide, and issue computations and copies."""
        machine, ledger, slots = self._machine, self._ledger, self.slots
        ready: list[Key] = []
        rows_ready: list[int] = []
        held: list[Slot] = []
        missing: list[tuple[Key, int]] = []
        late: list[tuple[Key, int]] = []
        for key, rows in zip(view.union, view.tokens, strict=True):
            slot = slots.get(key)
            if slot is None:
                missing.append((key, rows))
            elif slot.landing is None or self._landed(slot):
                ready.append(key)
                rows_ready.append(rows)
                held.append(slot)
            else:
                late.append((key, rows))
        leavers = self._decide(view)

        # Residents are computed in one call. The order of issue is the order on the GPU, so experts
        # that are still being copied come after them.
        if ready:
            reader = Work(GPU, Experts(layer, tuple(ready), tuple(rows_ready)))
            machine.submit(reader)
            ledger.work.append((reader, ledger.issued_ns, CAUSE_READBACK, layer, None))
            ledger.hits[layer] += len(ready)
            for slot in held:
                slot.reader = reader
        if late:
            self._compute_late(layer, late)
        bypass = self._release(missing, leavers) if leavers else None
        if missing:
            self._load(layer, missing, bypass)

    def decide(self, view: View, union: Sequence[Key], tokens: tuple[int, ...]) -> Event:
        """Decide one layer event that begins on idle lanes, with no copy under way.

        Decisions are those of `event`, but nothing is issued. Without copies under way a slot is
        either free or read by this event, so what a copy waits for follows without tickets.
        `union` and `tokens` are the view's.
        """
        slots = self.slots
        missing = [key for key in union if key not in slots]
        leavers = self._decide(view)
        if not missing and not leavers:
            return missing, (tokens, (), ())
        absent = tuple([key not in slots for key in union])
        return missing, (tokens, absent, self._move(union, missing, leavers))

    def _move(
        self, union: Sequence[Key], missing: Sequence[Key], leavers: Collection[Key]
    ) -> tuple[int, ...]:
        """Free the leavers' slots and give slots to the missing keys that stay.

        Return what each copy must wait for, or nothing if no copy must wait.
        """
        slots, free = self.slots, self._free
        try:
            if leavers and not set(union).isdisjoint(leavers):
                return self._share_out(union, missing, leavers)
            for key in leavers:
                free.append(slots.pop(key))
            for key in missing:
                slots[key] = free.pop()
        except KeyError as error:
            raise self._violation(error.args[0], _STRAY_LEAVER) from None
        except IndexError:
            raise self._violation(missing, self._too_many) from None
        return ()

    def _share_out(
        self, union: Sequence[Key], missing: Sequence[Key], leavers: Collection[Key]
    ) -> tuple[int, ...]:
        """Give slots to the missing keys that stay, and staging buffers to the others.

        Return what each copy must wait for. Slots read by this event are used last.
        """
        slots, free = self.slots, self._free
        bypass = set(leavers).intersection(missing)
        leaving = [key for key in leavers if key not in bypass]
        if len(leaving) + len(bypass) < len(leavers):
            raise self._violation(leavers, "are leavers, one of them twice")
        # `free` is a stack: slots put in front are taken last.
        read = set(union).intersection(leaving)
        free[:0] = [slots.pop(key) for key in leaving if key in read]
        free += [slots.pop(key) for key in leaving if key not in read]
        idle = len(free) - len(read)
        staged: list[int] = []
        after = []
        for number, key in enumerate(missing, 1):
            if key in bypass:
                # A staging buffer is free after the computation of the expert one wave before.
                staged.append(number)
                wave_before = len(staged) - len(self._staging.buffers)
                after.append(staged[wave_before - 1] if wave_before > 0 else FREE)
            else:
                slots[key] = free.pop()
                after.append(FREE if idle > 0 else RESIDENTS)
                idle -= 1
        return tuple(after)

    def _landed(self, slot: Slot) -> bool:
        """Return whether the prefetch that fills the slot is done, and count it as useful."""
        assert slot.landing is not None
        if not self._machine.done(slot.landing):
            return False
        slot.landing = None
        if slot.fresh:
            slot.fresh = False
            self._ledger.prefetch_useful += 1
        return True

    def _compute_late(self, layer: int, late: list[tuple[Key, int]]) -> None:
        """Give copies under way demand priority, and compute each expert when it has landed."""
        # In order of issue, so the GPU computes the experts in the order in which they land.
        ledger = self._ledger
        late.sort(key=lambda item: self.slots[item[0]].issued)
        for key, rows in late:
            slot = self.slots[key]
            landing = slot.landing
            assert landing is not None
            self._machine.promote(landing)
            op = Experts(layer, (key,), (rows,))
            slot.reader = reader = Work(GPU, op, (landing,))
            self._machine.submit(reader)
            ledger.work.append((reader, ledger.issued_ns, CAUSE_LATE, layer, landing))
            if slot.fresh:
                slot.fresh = False
                ledger.prefetch_late += 1
        ledger.late_hits[layer] += len(late)

    def _load(
        self, layer: int, missing: list[tuple[Key, int]], bypass: Collection[Key] | None
    ) -> None:
        """Copy the missing experts into free slots or staging buffers, and compute them."""
        machine, ledger, free = self._machine, self._ledger, self._free
        submit, nbytes = machine.submit, self._sizes.nbytes
        issued_ns, missed_rows = ledger.issued_ns, 0
        for key, rows in missing:
            if bypass and key in bypass:
                slot = self._staging.take()
            elif free:
                self.slots[key] = slot = free.pop()
            else:
                raise self._violation(key, self._too_many)
            after = _busy_with(slot, machine)
            landing = Work(H2D, Copy(key, nbytes), after, DEMAND, slot.number)
            submit(landing)
            slot.reader = reader = Work(GPU, Experts(layer, (key,), (rows,)), (landing,))
            submit(reader)
            slot.landing = None  # later work waits for the reader, which waits for the copy
            ledger.copies.append((landing, "demand", layer, key, nbytes, after))
            ledger.work.append((reader, issued_ns, CAUSE_DEMAND, layer, landing))
            missed_rows += rows
        ledger.demand_copies[layer] += len(missing)
        ledger.missed_rows[layer] += missed_rows
        ledger.waves(max(1, -(-len(bypass) // len(self._staging.buffers))) if bypass else 1)

    def _release(self, missing: list[tuple[Key, int]], leavers: Collection[Key]) -> Collection[Key]:
        """Free the slots of resident leavers, and return the missing keys that get no slot.

        Slots that are still being read are used last.
        """
        slots, free = self.slots, self._free
        bypass = []
        for key in leavers:
            slot = slots.pop(key, None)
            if slot is None:
                bypass.append(key)
                continue
            if slot.landing is not None or self.write_back:
                self._vacate(key, slot)
            free.append(slot)
        if bypass and (
            len(set(bypass)) < len(bypass) or not {key for key, _ in missing}.issuperset(bypass)
        ):
            raise self._violation(bypass, _STRAY_LEAVER)
        # The end of the stack is taken first: there go the slots for which no copy must wait.
        if len(free) > 1:
            done = self._machine.done
            free.sort(key=lambda slot: slot.reader is None or done(slot.reader))
        return bypass

    def _vacate(self, key: Key, slot: Slot) -> None:
        """Prepare a slot for reuse: a copy under way lands, and the expert is written back."""
        ledger, machine, nbytes = self._ledger, self._machine, self._sizes.nbytes
        if slot.fresh:
            slot.fresh = False
            ledger.prefetch_wasted += 1
        if slot.landing is not None:
            machine.promote(slot.landing)
        if self.write_back:
            after = _busy_with(slot, machine)
            slot.reader = back = Work(D2H, Copy(key, nbytes), after, DEMAND, slot.number)
            machine.submit(back)
            layer = key // ledger.num_experts
            ledger.copies.append((back, "write_back", layer, key, nbytes, after))

    @property
    def _too_many(self) -> str:
        return f"keeps more than {self.capacity} keys; return more leavers from `decide`"

    def _violation(self, key: object, reason: str) -> PolicyViolation:
        return PolicyViolation(self.policy.name, key, reason)

    def prefetch(self, layer: int, key: Key, protected: Collection[Key]) -> bool:
        """Issue a prefetch of an absent key. Return False if the policy gives it no slot."""
        policy, slots = self.policy, self.slots
        if self._free:
            slot = self._free.pop()
        else:
            victim = policy.victim(protected) if self.capacity else None
            if victim is None:
                return False
            if victim not in slots or victim in protected:
                raise self._violation(
                    victim, "cannot leave for a prefetch: it is not resident, or is protected"
                )
            slot = slots.pop(victim)
            policy.remove(victim)
            self._vacate(victim, slot)
        policy.insert(key)
        after = _busy_with(slot, self._machine)
        nbytes = self._sizes.nbytes
        landing = Work(H2D, Copy(key, nbytes), after, PREFETCH, slot.number)
        self._machine.submit(landing)
        slot.landing = landing
        slot.reader = None
        slot.fresh = True
        slot.issued = next(self._issues)
        slots[key] = slot
        self._ledger.copies.append((landing, "prefetch", layer, key, nbytes, after))
        self._ledger.prefetch_copies[layer] += 1
        return True

    @property
    def unused_prefetches(self) -> int:
        """Number of prefetched experts that were not used so far."""
        return sum(slot.fresh for slot in self.slots.values())


def _busy_with(slot: Slot, machine: Machine) -> Sequence[Work]:
    """Return the work that must be done before the slot may be overwritten.

    That is its last reader, which itself waits for the copy that fills the slot. Without a reader
    it is that copy.
    """
    last = slot.landing if slot.reader is None else slot.reader
    return () if last is None or machine.done(last) else (last,)
