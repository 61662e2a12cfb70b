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
from moesim.policies.eviction.base import Eviction
from moesim.policies.view import Key, View
from moesim.serving.ledger import CAUSE_DEMAND, CAUSE_LATE, CAUSE_READBACK, Ledger

_ONE = (1,)


class Slot:
    """Room for one expert. `landing`: the copy that fills it, until known to be done; `reader`:
    the last computation that reads it; `fresh`: prefetched and not used so far."""

    __slots__ = ("fresh", "issued", "landing", "reader")

    def __init__(self) -> None:
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
    """Buffers through which experts pass that get no slot; reused round robin."""

    def __init__(self, count: int) -> None:
        self.buffers = [Slot() for _ in range(count)]
        self._next = 0

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
        self.slots: dict[Key, Slot] = {}
        self._machine = machine
        self._ledger = ledger
        self._staging = staging
        self._sizes = sizes
        self._issues = count()
        self._free = [Slot() for _ in range(self.capacity)]
        for key in policy.preload():
            self.slots[key] = self._free.pop()
        self.preloaded = len(self.slots)

    def audit(self) -> None:
        """The policy's book equals the residency; slots are conserved."""
        if self.policy.book.keys() != self.slots.keys():
            wrong = self.policy.book.keys() ^ self.slots.keys()
            raise PolicyViolation(self.policy.name, sorted(wrong), "its book is not the residency")
        if len(self.slots) + len(self._free) != self.capacity:
            raise InvariantError(
                2, f"{len(self.slots)} + {len(self._free)} slots of {self.capacity}"
            )

    def event(self, layer: int, view: View) -> None:
        """Run one layer event: classify, decide, then issue computations and copies."""
        machine, slots, ledger = self._machine, self.slots, self._ledger
        tokens = view.tokens
        ready: list[Key] = []
        ready_tokens: list[int] = []
        late: list[tuple[Key, int]] = []
        missing: list[tuple[Key, int]] = []
        useful = 0
        for key, rows in zip(view.union, tokens, strict=True):
            slot = slots.get(key)
            if slot is None:
                missing.append((key, rows))
                continue
            landing = slot.landing
            if landing is not None:
                if not machine.done(landing):
                    late.append((key, rows))
                    continue
                slot.landing = None
            if slot.fresh:
                slot.fresh = False
                useful += 1
            ready.append(key)
            ready_tokens.append(rows)
        leavers = self.policy.decide(view)

        if ready:
            ticket = machine.compute(GPU, Experts(layer, tuple(ready), tuple(ready_tokens)))
            ledger.computed(ticket, CAUSE_READBACK, layer)
            for key in ready:
                slots[key].reader = ticket
        if late:
            self._compute_late(layer, late)
        waves = 0
        if missing or leavers:
            waves = self._load(layer, missing, leavers)
        ledger.event(
            layer,
            view.union,
            tokens,
            len(ready),
            len(late),
            sum(rows for _, rows in missing),
            waves,
            useful,
        )

    def _compute_late(self, layer: int, late: list[tuple[Key, int]]) -> None:
        """Promote copies in flight, in the order they were issued, and compute as they land."""
        late.sort(key=lambda item: self.slots[item[0]].issued)
        for key, rows in late:
            slot = self.slots[key]
            landing = slot.landing
            assert landing is not None
            self._machine.promote(landing)
            slot.reader = ticket = self._machine.compute(
                GPU, Experts(layer, (key,), (rows,)), (landing,)
            )
            self._ledger.computed(ticket, CAUSE_LATE, layer, landing)
            if slot.fresh:
                slot.fresh = False
                self._ledger.prefetch_late += 1

    def _load(self, layer: int, missing: list[tuple[Key, int]], leavers: Collection[Key]) -> int:
        """Free the leavers' slots, copy the missing experts in, compute them; count the waves."""
        machine, slots, nbytes = self._machine, self.slots, self._sizes.nbytes
        free = self._free
        bypass = self._release(missing, leavers) if leavers else frozenset[Key]()
        for key, rows in missing:
            if key in bypass:
                slot = self._staging.take()
            elif free:
                slot = free.pop()
                slots[key] = slot
            else:
                raise PolicyViolation(
                    self.policy.name, key, f"keeps more than {self.capacity} keys"
                )
            after = _busy_with(slot, machine)
            landing = machine.copy(H2D, key, nbytes, DEMAND, after)
            ticket = machine.compute(
                GPU, Experts(layer, (key,), _ONE if rows == 1 else (rows,)), (landing,)
            )
            slot.landing = landing
            slot.reader = ticket
            slot.fresh = False
            self._ledger.copied_on_demand(landing, layer, key, nbytes, after)
            self._ledger.computed(ticket, CAUSE_DEMAND, layer, landing)
        if not missing:
            return 0
        return max(1, -(-len(bypass) // len(self._staging.buffers)))

    def _release(
        self, missing: list[tuple[Key, int]], leavers: Collection[Key]
    ) -> set[Key] | frozenset[Key]:
        """Take the slots of resident leavers; answer the missing keys that get none.

        Slots that are free now are handed out first, those still being read last.
        """
        slots = self.slots
        bypass = set()
        for key in leavers:
            slot = slots.pop(key, None)
            if slot is None:
                bypass.add(key)
            else:
                self._vacate(key, slot)
                self._free.append(slot)
        if bypass and (len(bypass) > len(missing) or not bypass <= {key for key, _ in missing}):
            wrong = sorted(bypass - {key for key, _ in missing})
            raise PolicyViolation(
                self.policy.name, wrong, "leaves and is neither resident nor wanted"
            )
        if len(self._free) > 1:
            now = self._machine.done
            self._free.sort(key=lambda slot: slot.reader is None or now(slot.reader))
        return bypass

    def _vacate(self, key: Key, slot: Slot) -> None:
        """The slot's expert leaves: a copy in flight lands first; unused prefetches are counted."""
        if slot.fresh:
            slot.fresh = False
            self._ledger.prefetch_wasted += 1
        if slot.landing is not None:
            self._machine.promote(slot.landing)
        if self._sizes.write_back:
            after = _busy_with(slot, self._machine)
            nbytes = self._sizes.nbytes
            slot.reader = ticket = self._machine.copy(D2H, key, nbytes, DEMAND, after)
            self._ledger.written_back(ticket, key, nbytes, after)

    def prefetch(self, layer: int, key: Key, spare: Collection[Key]) -> bool:
        """Issue a prefetch of an absent key; False if the policy refuses it a slot."""
        policy, slots = self.policy, self.slots
        if self._free:
            slot = self._free.pop()
        else:
            victim = policy.victim(spare) if self.capacity else None
            if victim is None:
                return False
            if victim not in slots or victim in spare:
                raise PolicyViolation(policy.name, victim, "cannot leave for a prefetch")
            slot = slots.pop(victim)
            policy.remove(victim)
            self._vacate(victim, slot)
        policy.insert(key)
        after = _busy_with(slot, self._machine)
        landing = self._machine.copy(H2D, key, self._sizes.nbytes, PREFETCH, after)
        slot.landing = landing
        slot.reader = None
        slot.fresh = True
        slot.issued = next(self._issues)
        slots[key] = slot
        self._ledger.prefetched(landing, layer, key, self._sizes.nbytes, after)
        return True

    @property
    def unused_prefetches(self) -> int:
        """Prefetched experts that still wait for their first use."""
        return sum(slot.fresh for slot in self.slots.values())


def _busy_with(slot: Slot, machine: Machine) -> Sequence[Ticket]:
    """What must be done before the slot may be overwritten: its last reader, or the copy that
    still fills it (whoever reads it waits for that copy)."""
    last = slot.reader if slot.reader is not None else slot.landing
    if last is None or machine.done(last):
        last = slot.landing
        if last is None or machine.done(last):
            return ()
    return (last,)
