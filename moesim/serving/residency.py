"""Residency: which experts have a slot in GPU memory, and what a layer event does about it.

Residency is logical and decided at issue: a slot belongs to a key from the moment its copy is
issued, so decisions do not depend on how fast the link is. A victim that is still in flight is
promoted and lands before its slot is reused. The event is decided once: residents compute
first; leavers free their slots (after computing, if they are wanted now); those that stay are
copied into them; the rest pass through staging buffers in waves.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import count

from moesim.errors import InvariantError, PolicyViolation
from moesim.hardware.ops import Experts
from moesim.machine.base import D2H, DEMAND, GPU, H2D, PREFETCH, Machine, Ticket
from moesim.machine.step_times import FREE, RESIDENTS, Event
from moesim.policies.eviction.base import Eviction
from moesim.policies.view import Key, View
from moesim.serving.ledger import CAUSE_DEMAND, CAUSE_LATE, CAUSE_READBACK, Ledger

_STRAY_LEAVER = "leaves, and is neither resident nor wanted"


class Slot:
    """Room for one expert. `number`: which of all buffers of its size; `landing`: the copy that
    fills it, until known to be done; `reader`: the last computation that reads it; `fresh`:
    prefetched and not used so far."""

    __slots__ = ("fresh", "issued", "landing", "number", "reader")

    def __init__(self, number: int) -> None:
        self.number = number
        self.landing: Ticket | None = None
        self.reader: Ticket | None = None
        self.fresh = False
        self.issued = 0


@dataclass(frozen=True, slots=True)
class ExpertSizes:
    """Bytes of one expert, and whether an evicted one is written back."""

    nbytes: int
    write_back: bool = False


class Staging:
    """Buffers through which experts pass that get no slot; reused round robin.

    They come first in the numbering of all expert-sized buffers of GPU memory; `total` counts
    them and the slots made so far.
    """

    def __init__(self, count: int) -> None:
        self.total = 0
        self.buffers = self.slots(count)
        self._next = 0

    def slots(self, count: int) -> list[Slot]:
        """New buffers with the next numbers."""
        first, self.total = self.total, self.total + count
        return [Slot(number) for number in range(first, self.total)]

    def take(self) -> Slot:
        """The buffer whose last use lies furthest back."""
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
        self._decide = policy.decide
        self.slots: dict[Key, Slot] = {}
        self._machine = machine
        self._ledger = ledger
        self._staging = staging
        self._sizes = sizes
        self._issues = count()
        self._free = staging.slots(self.capacity)
        for key in policy.preload():
            if not self._free:
                raise self._violation(key, f"is preloaded beyond {self.capacity} slots")
            if key in self.slots or key not in policy.book:
                raise self._violation(key, "is preloaded twice, or not in its own book")
            self.slots[key] = self._free.pop()
        self.preloaded = tuple(self.slots)

    def audit(self) -> None:
        """The policy's book equals the residency; slots are conserved."""
        if self.policy.book.keys() != self.slots.keys():
            wrong = self.policy.book.keys() ^ self.slots.keys()
            raise self._violation(sorted(wrong, key=str), "its book is not the residency")
        if len(self.slots) + len(self._free) != self.capacity:
            raise InvariantError(
                2, f"{len(self.slots)} + {len(self._free)} slots of {self.capacity}"
            )

    def event(self, layer: int, view: View) -> None:
        """Run one layer event: classify, decide, then issue computations and copies."""
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

        if ready:
            reader = machine.compute(GPU, Experts(layer, tuple(ready), tuple(rows_ready)))
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

        The same as `event`, less the issuing: then slots are free or read by this very event,
        and what must be waited for needs no tickets. `union` and `tokens` are the view's.
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
        """Leavers lose their slots, and the missing that stay get them; answers what each copy
        must wait for, or nothing if none must wait."""
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
            raise self._violation(missing, f"keeps more than {self.capacity} keys") from None
        return ()

    def _share_out(
        self, union: Sequence[Key], missing: Sequence[Key], leavers: Collection[Key]
    ) -> tuple[int, ...]:
        """Give slots to those that stay, staging buffers to the others; answers what each copy
        must wait for. Slots that are free now go first, those read by this event last."""
        slots, free = self.slots, self._free
        bypass = set(leavers).intersection(missing)
        leaving = [key for key in leavers if key not in bypass]
        if len(leaving) + len(bypass) < len(leavers):
            raise self._violation(leavers, "leave, one of them twice")
        read = set(union).intersection(leaving)
        free[:0] = [slots.pop(key) for key in leaving if key in read]
        free += [slots.pop(key) for key in leaving if key not in read]
        idle = len(free) - len(read)
        staged: list[int] = []
        after = []
        for number, key in enumerate(missing, 1):
            if key in bypass:
                staged.append(number)
                wave_before = len(staged) - len(self._staging.buffers)
                after.append(staged[wave_before - 1] if wave_before > 0 else FREE)
            else:
                slots[key] = free.pop()
                after.append(FREE if idle > 0 else RESIDENTS)
                idle -= 1
        return tuple(after)

    def _landed(self, slot: Slot) -> bool:
        """Whether the prefetch that fills the slot is done; its first use makes it useful."""
        assert slot.landing is not None
        if not self._machine.done(slot.landing):
            return False
        slot.landing = None
        if slot.fresh:
            slot.fresh = False
            self._ledger.prefetch_useful += 1
        return True

    def _compute_late(self, layer: int, late: list[tuple[Key, int]]) -> None:
        """Promote copies in flight, in the order they were issued, and compute as they land."""
        ledger = self._ledger
        late.sort(key=lambda item: self.slots[item[0]].issued)
        for key, rows in late:
            slot = self.slots[key]
            landing = slot.landing
            assert landing is not None
            self._machine.promote(landing)
            op = Experts(layer, (key,), (rows,))
            slot.reader = reader = self._machine.compute(GPU, op, (landing,))
            ledger.work.append((reader, ledger.issued_ns, CAUSE_LATE, layer, landing))
            if slot.fresh:
                slot.fresh = False
                ledger.prefetch_late += 1
        ledger.late_hits[layer] += len(late)

    def _load(
        self, layer: int, missing: list[tuple[Key, int]], bypass: Collection[Key] | None
    ) -> None:
        """Copy the missing experts in, into free slots or through staging, and compute them."""
        machine, ledger, free = self._machine, self._ledger, self._free
        copy, compute, nbytes = machine.copy, machine.compute, self._sizes.nbytes
        issued_ns, missed_rows = ledger.issued_ns, 0
        for key, rows in missing:
            if bypass and key in bypass:
                slot = self._staging.take()
            elif free:
                self.slots[key] = slot = free.pop()
            else:
                raise self._violation(key, f"keeps more than {self.capacity} keys")
            after = _busy_with(slot, machine)
            landing = copy(H2D, key, nbytes, DEMAND, after, slot.number)
            slot.reader = reader = compute(GPU, Experts(layer, (key,), (rows,)), (landing,))
            slot.landing = None  # whoever comes next waits for the reader, who waits for the copy
            ledger.copies.append((landing, "demand", layer, key, nbytes, after))
            ledger.work.append((reader, issued_ns, CAUSE_DEMAND, layer, landing))
            missed_rows += rows
        ledger.demand_copies[layer] += len(missing)
        ledger.missed_rows[layer] += missed_rows
        ledger.waves(max(1, -(-len(bypass) // len(self._staging.buffers))) if bypass else 1)

    def _release(self, missing: list[tuple[Key, int]], leavers: Collection[Key]) -> Collection[Key]:
        """Take the slots of resident leavers; answer the missing keys that get none.

        Slots that are free now are handed out first, those still being read last.
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
        if len(free) > 1:
            done = self._machine.done
            free.sort(key=lambda slot: slot.reader is None or done(slot.reader))
        return bypass

    def _vacate(self, key: Key, slot: Slot) -> None:
        """The slot's expert leaves: a copy in flight lands first, and is written back if asked."""
        ledger, machine, nbytes = self._ledger, self._machine, self._sizes.nbytes
        if slot.fresh:
            slot.fresh = False
            ledger.prefetch_wasted += 1
        if slot.landing is not None:
            machine.promote(slot.landing)
        if self.write_back:
            after = _busy_with(slot, machine)
            slot.reader = back = machine.copy(D2H, key, nbytes, DEMAND, after, slot.number)
            layer = key // ledger.num_experts
            ledger.copies.append((back, "write_back", layer, key, nbytes, after))

    def _violation(self, key: object, reason: str) -> PolicyViolation:
        return PolicyViolation(self.policy.name, key, reason)

    def prefetch(self, layer: int, key: Key, protected: Collection[Key]) -> bool:
        """Issue a prefetch of an absent key; False if the policy refuses it a slot."""
        policy, slots = self.policy, self.slots
        if self._free:
            slot = self._free.pop()
        else:
            victim = policy.victim(protected) if self.capacity else None
            if victim is None:
                return False
            if victim not in slots or victim in protected:
                raise self._violation(victim, "cannot leave for a prefetch")
            slot = slots.pop(victim)
            policy.remove(victim)
            self._vacate(victim, slot)
        policy.insert(key)
        after = _busy_with(slot, self._machine)
        nbytes = self._sizes.nbytes
        landing = self._machine.copy(H2D, key, nbytes, PREFETCH, after, slot.number)
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
        """Prefetched experts that still wait for their first use."""
        return sum(slot.fresh for slot in self.slots.values())


def _busy_with(slot: Slot, machine: Machine) -> Sequence[Ticket]:
    """What must be done before the slot may be overwritten: its last reader, who waits for the
    copy that fills it, or that copy if nobody has read it."""
    last = slot.landing if slot.reader is None else slot.reader
    return () if last is None or machine.done(last) else (last,)
