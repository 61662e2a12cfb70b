"""Residency: which experts have a slot in GPU memory, and how a layer event changes that.

A slot belongs to a key as soon as the key's copy is issued, and not only when the copy has landed.
So decisions do not depend on the speed of the link. An expert that must leave while its copy is
under way lands first; the copy gets demand priority.

`ExpertCache.decide` decides a layer event once for the whole union, as a `Decision`. It moves slots
between keys and issues no work. `moesim/serving/program.py` turns a decision into work.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import count

from moesim.errors import InvariantError, PolicyViolation
from moesim.hardware.topology import GPU
from moesim.machine.base import Machine
from moesim.policies.eviction.base import Eviction
from moesim.policies.view import Key, View
from moesim.serving.decision import NO_READS, Decision, Placed
from moesim.serving.free_bytes import FreeBytes
from moesim.serving.host_memory import HostMemory
from moesim.serving.ledger import Ledger
from moesim.serving.placing import Placing
from moesim.serving.slots import ExpertSizes, Slot, Staging

__all__ = ["ExpertCache"]

_STRAY_LEAVER = "is a leaver, but neither resident nor wanted"
_NOWHERE_ELSE: Placed = {}


class ExpertCache:
    """One cache: `capacity` slots for the keys of its policy's universe.

    Where experts have unequal sizes, `capacity` is in bytes.
    """

    def __init__(
        self,
        policy: Eviction,
        machine: Machine,
        ledger: Ledger,
        staging: Staging,
        sizes: ExpertSizes,
        *,
        place: Placing | None = None,
        host: HostMemory | None = None,
    ) -> None:
        """Build the cache, with the keys that its policy preloads.

        `place` gives the lanes of absent keys; None: all run on the GPU. `host` is the host memory
        if it cannot hold all experts.
        """
        self.policy = policy
        self._place = place
        self._host = host
        self.capacity = policy.capacity
        self.expert_bytes = sizes.nbytes
        self.write_back = sizes.write_back
        self._leavers = policy.decide  # looked up once: it is called at every layer event
        self.slots: dict[Key, Slot] = {}
        self._done = machine.done
        self._ledger = ledger
        self._staging = staging
        self._copied_ahead = False  # whether a copy may be under way when a layer event begins
        self._issues = count()
        self._sizes = sizes.by_key
        self._memory: FreeBytes | None = None
        self._free: list[Slot] | FreeBytes
        if self._sizes is None:
            self._free = staging.slots(self.capacity)
        else:
            self._free = self._memory = FreeBytes(self.capacity, staging.total)
        for key in policy.preload():
            if not self._free:
                raise self._violation(
                    key, f"is preloaded, but the {self.capacity} slots are taken; return fewer keys"
                )
            if key in self.slots or key not in policy.book:
                raise self._violation(key, "is preloaded twice, or is not in the policy's book")
            self.slots[key] = slot = self._free.pop()
            self._fit(key, slot)
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
        if self._memory is not None:
            held = sum([slot.units for slot in self.slots.values()])
            if held + self._memory.nbytes != self.capacity:
                raise InvariantError(
                    2, f"{held} used + {self._memory.nbytes} free bytes are not {self.capacity}"
                )
        elif len(self.slots) + len(self._free) != self.capacity:
            raise InvariantError(
                2, f"{len(self.slots)} used + {len(self._free)} free slots are not {self.capacity}"
            )

    def holds(self, layer: int, num_experts: int) -> bool:
        """Return whether all experts of a layer have a slot, with no copy under way."""
        keys = range(layer * num_experts, (layer + 1) * num_experts)
        slots = self.slots
        return all(key in slots and self._is_here(slots[key]) for key in keys)

    def _is_here(self, slot: Slot) -> bool:
        """Return whether the copy that fills the slot is done; this is not a use."""
        return slot.landing is None or self._done(slot.landing)

    def decide(self, layer: int, view: View, rows_of_step: int = 0) -> Decision:
        """Decide one layer event: sort the union, and move slots between keys."""
        union, tokens, slots = view.union, view.tokens, self.slots
        missing = [key for key in union if key not in slots]
        arriving = self._arriving(union) if self._copied_ahead else ()
        placed: Placed = _NOWHERE_ELSE
        if self._place is not None and (missing or arriving):
            placed = self._place(view, missing, arriving, rows_of_step)
            if placed:  # experts are copied in the order in which the policy names them
                named = [key for key in placed if key not in arriving]
                missing = [*named, *(key for key in missing if key not in placed)]
        leavers = self._leavers(view)
        if not (missing or arriving or leavers):
            return Decision(layer, union, tokens, [slots[key] for key in union])
        rows = dict(zip(union, tokens, strict=True))
        ready = [key for key in union if key in slots]
        late: list[tuple[Key, int, Slot]] = []
        if arriving:
            ready = [key for key in ready if key not in arriving]
            late = self._late(rows, arriving, placed)
        held = [slots[key] for key in ready]
        reading = {slot.number for slot in held}.union([slot.number for *_, slot in late])
        bypass: Collection[Key] = ()
        vacated: list[tuple[Key, Slot]] = []
        if leavers:
            bypass, vacated = self._release(missing, leavers, reading)
        loads, later = self._assign(rows, missing, bypass, placed)
        if self._memory is not None:
            for key, _, slot in loads:
                if slots.get(key) is slot:  # others are in staging buffers
                    self._fit(key, slot)
            for key, slot in later:
                self._fit(key, slot)
        staged = len(loads) + len(later) and sum([key in bypass for key, *_ in loads])
        return Decision(
            layer,
            ready,
            [rows[key] for key in ready],
            held,
            late,
            vacated,
            loads,
            [(key, rows[key], lane) for key, lane in placed.items() if lane != GPU],
            later,
            self._reads(loads, placed, later),
            max(1, -(-staged // len(self._staging.buffers))) if loads else 0,
            self.write_back,
        )

    def _arriving(self, union: Sequence[Key]) -> list[Key]:
        """Return the keys of a union whose copy is under way."""
        slots = self.slots
        return [key for key in union if key in slots and not self._landed(slots[key])]

    def _late(
        self, rows: Mapping[Key, int], arriving: Sequence[Key], placed: Placed
    ) -> list[tuple[Key, int, Slot]]:
        """Return the experts that are computed on the GPU when their copy has landed."""
        late = [(k, rows[k], self.slots[k]) for k in arriving if placed.get(k, GPU) == GPU]
        # In order of issue, so the GPU computes the experts in the order in which they land.
        late.sort(key=lambda item: item[2].issued)
        for *_, slot in late:
            if slot.fresh:
                slot.fresh = False
                self._ledger.prefetch_late += slot.units
        return late

    def _assign(
        self,
        rows: Mapping[Key, int],
        missing: Sequence[Key],
        bypass: Collection[Key],
        placed: Placed,
    ) -> tuple[list[tuple[Key, int, Slot]], list[tuple[Key, Slot]]]:
        """Give slots to the missing keys that stay, and staging buffers to those copied for now."""
        slots, free = self.slots, self._free
        loads: list[tuple[Key, int, Slot]] = []
        later: list[tuple[Key, Slot]] = []
        for key in missing:
            here = placed.get(key, GPU) == GPU
            if key in bypass:
                if here:
                    loads.append((key, rows[key], self._staging.take()))
                continue
            if not free:
                raise self._violation(key, self._too_many)
            slots[key] = slot = free.pop()
            if here:
                loads.append((key, rows[key], slot))
            else:
                slot.issued = next(self._issues)
                later.append((key, slot))
                self._copied_ahead = True
        return loads, later

    def _reads(
        self,
        loads: Sequence[tuple[Key, int, Slot]],
        placed: Placed,
        later: Sequence[tuple[Key, Slot]],
    ) -> Mapping[Key, int]:
        """Return the bytes to be read from disk of each expert that leaves host memory's copy."""
        if self._host is None:
            return NO_READS
        elsewhere = [key for key, lane in placed.items() if lane != GPU]
        keys = dict.fromkeys([*(key for key, *_ in loads), *elsewhere, *(key for key, _ in later)])
        return {key: nbytes for key in keys if (nbytes := self._host.read(key))}

    def prefetch(self, layer: int, key: Key, protected: Collection[Key]) -> Decision | None:
        """Decide the copy ahead of an absent key; return None if the policy gives it no slot.

        The decision has the key in `later`, and its victim in `vacated` if there is one.
        """
        policy, slots = self.policy, self.slots
        vacated: list[tuple[Key, Slot]] = []
        if self._memory is not None:
            left = self._make_room(key, protected, self._memory)
            if left is None:
                return None
            vacated, slot = left, self._memory.pop()
            self._fit(key, slot)
        elif self._free:
            slot = self._free.pop()
        else:
            victim = policy.victim(protected) if self.capacity else None
            if victim is None:
                return None
            slot = self._evict(victim, protected)
            vacated.append((victim, slot))
        policy.insert(key)
        slots[key] = slot
        slot.issued = next(self._issues)
        self._copied_ahead = True
        later = [(key, slot)]
        reads = self._reads((), {}, later)
        return Decision(layer, (), (), (), (), vacated, (), (), later, reads, 0, self.write_back)

    def _evict(self, victim: Key, protected: Collection[Key]) -> Slot:
        """Remove a resident for a prefetched key; return its slot."""
        if victim not in self.slots or victim in protected:
            raise self._violation(
                victim, "cannot leave for a prefetch: it is not resident, or is protected"
            )
        slot = self.slots.pop(victim)
        self.policy.remove(victim)
        self._waste(slot)
        return slot

    def _make_room(
        self, key: Key, protected: Collection[Key], memory: FreeBytes
    ) -> list[tuple[Key, Slot]] | None:
        """Free the bytes of a prefetched key; return who left, or None if the policy refuses."""
        assert self._sizes is not None
        nbytes = self._sizes[key]
        victims: Sequence[Key] | None = ()
        if nbytes > memory.nbytes:
            victims = self.policy.victims(protected, nbytes - memory.nbytes)
        if victims is None:
            return None
        left = [(victim, self._evict(victim, protected)) for victim in victims]
        for _, slot in left:
            memory.append(slot)
        return left

    def _fit(self, key: Key, slot: Slot) -> None:
        """Give a slot memory where sizes are unequal. Raise PolicyViolation without enough."""
        memory, sizes = self._memory, self._sizes
        if memory is not None and sizes is not None and not memory.take(slot, sizes[key]):
            raise self._violation(key, self._too_many)

    @property
    def unused_prefetches(self) -> int:
        """Number of experts that were copied ahead and not used so far.

        Where sizes are unequal, it is their bytes.
        """
        return sum([slot.units for slot in self.slots.values() if slot.fresh])

    def _landed(self, slot: Slot) -> bool:
        """Return whether the copy that fills the slot is done, and count a prefetch as useful."""
        if slot.landing is None:
            return True
        if not self._done(slot.landing):
            return False
        slot.landing = None
        if slot.fresh:
            slot.fresh = False
            self._ledger.prefetch_useful += slot.units
        return True

    def _release(
        self, missing: Sequence[Key], leavers: Collection[Key], reading: Collection[int]
    ) -> tuple[Collection[Key], list[tuple[Key, Slot]]]:
        """Free the slots of resident leavers.

        Return the missing keys that get no slot, and the leavers that need a copy to leave. Slots
        that are still being read are used last.
        """
        slots, free, done = self.slots, self._free, self._done
        bypass, vacated = [], []
        busy = set(reading)
        for key in leavers:
            slot = slots.pop(key, None)
            if slot is None:
                bypass.append(key)
                continue
            self._waste(slot)
            if slot.landing is not None or self.write_back:
                vacated.append((key, slot))
                if self.write_back:
                    busy.add(slot.number)
            free.append(slot)
        if bypass and (len(set(bypass)) < len(bypass) or not set(missing).issuperset(bypass)):
            raise self._violation(bypass, _STRAY_LEAVER)
        # The end of the stack is taken first: there go the slots for which no copy must wait.
        if len(free) > 1:
            free.sort(
                key=lambda slot: (
                    slot.number not in busy and (slot.reader is None or done(slot.reader))
                )
            )
        return bypass, vacated

    def _waste(self, slot: Slot) -> None:
        """Count a prefetched expert that leaves before any use."""
        if slot.fresh:
            slot.fresh = False
            self._ledger.prefetch_wasted += slot.units

    @property
    def _too_many(self) -> str:
        unit = "keys" if self._memory is None else "bytes"
        return f"keeps more than {self.capacity} {unit}; return more leavers from `decide`"

    def _violation(self, key: object, reason: str) -> PolicyViolation:
        return PolicyViolation(self.policy.name, key, reason)
