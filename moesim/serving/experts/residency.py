"""Residency: which experts have a slot in GPU memory, and how a layer event changes that.

A slot belongs to a key as soon as the key's copy is issued, and not only when the copy has landed.
So decisions do not depend on the speed of the link. An expert that must leave while its copy is
under way lands first; the copy gets demand priority.

With prefetch buffers (`moesim/serving/experts/prefetch_buffers.py`), a copy ahead takes no slot. A
wanted expert in such a buffer is a hit, but for the eviction policy it is absent: `decide` admits
it and chooses who leaves, or bypasses it.

`ExpertCache.decide` decides a layer event once for the whole union, as a `Decision`. It moves slots
between keys and issues no work. `moesim/serving/experts/program.py` turns a decision into work.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import count
from typing import Final

from moesim.errors import InvariantError, PolicyViolation
from moesim.hardware.topology import DISK, GPU
from moesim.machine.protocol import Machine
from moesim.policies.eviction.base import Eviction
from moesim.policies.view import Key, View
from moesim.serving.experts.decision import NO_READS, Decision, Place, Placed
from moesim.serving.experts.free_bytes import FreeBytes
from moesim.serving.experts.host_memory import HostMemory
from moesim.serving.experts.prefetch_buffers import PrefetchBuffers
from moesim.serving.experts.slots import ExpertSizes, Slot, Staging
from moesim.serving.ledger import Ledger

__all__ = ["ExpertCache"]

_STRAY_LEAVER = "is a leaver, but neither resident nor wanted"
_NOWHERE_ELSE: Placed = {}
_Released = tuple[Collection[Key], Sequence[tuple[Key, Slot]]]
_Assigned = tuple[Sequence[tuple[Key, int, Slot]], Sequence[tuple[Key, Slot]]]
_NO_EXPERTS: Final[Sequence[tuple[Key, int, str]]] = ()
_NO_LEAVERS: Final[_Released] = ((), ())
_NO_LOADS: Final[_Assigned] = ((), ())
_NONE_ARRIVED: Final[Mapping[Key, Slot]] = {}


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
        place: Place | None = None,
        host: HostMemory | None = None,
        buffers: PrefetchBuffers | None = None,
        cancels: bool = False,
    ) -> None:
        """Build the cache, with the keys that its policy preloads.

        `place` gives the lanes of absent keys; None: all run on the GPU. `host` is the host memory
        if it cannot hold all experts. `buffers` take the copies ahead; None: a copy ahead takes a
        slot when it is issued. `cancels`: useless copies ahead that are queued are removed.
        """
        self.policy = policy
        self.host = host
        self.place = place
        self.capacity = policy.capacity
        self.expert_bytes = sizes.nbytes
        self.write_back = sizes.write_back
        self._leavers = policy.decide  # looked up once: it is called at every layer event
        self.slots: dict[Key, Slot] = {}
        self._done = machine.done
        self._ledger = ledger
        self._staging = staging
        self.buffers = buffers
        self._cancel = machine.cancel if cancels else None
        # Keys copied ahead whose layer event has not come. Not needed with neither option.
        self.guesses: dict[Key, Slot] = {} if buffers is None else buffers.held
        self._issues = count()
        self._sizes = sizes.by_key
        self._memory: FreeBytes | None = None
        self._free: list[Slot] | FreeBytes
        if self._sizes is None:
            self._free = staging.slots(self.capacity)
        else:
            self._free = self._memory = FreeBytes(self.capacity, staging.total)
        # Leavers for prefetches, each with the keys that took its slot, until either is wanted.
        self._displaced: dict[Key, list[Key]] = {}
        self._displacers: dict[Key, list[Key]] = {}
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
        self.left_by_kernel: Collection[Key] | None = None
        """The residents that a compiled run left, which does not change this object otherwise."""
        self.unused_by_kernel: int | None = None
        """How many of these were copied ahead and not used; None: see the slots."""

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
        if self.buffers is not None:
            self.buffers.audit()

    @property
    def residents(self) -> Collection[Key]:
        """The keys that have a slot, also after a compiled run."""
        return self.slots.keys() if self.left_by_kernel is None else self.left_by_kernel

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
        slots, tokens = self.slots, view.tokens
        ready, counts, held = [], [], []
        missing: list[tuple[Key, int]] = []
        late: list[tuple[Key, int, Slot]] = []
        for place, key in enumerate(view.union):
            slot = slots.get(key)
            if slot is None:
                missing.append((key, tokens[place]))
            elif slot.landing is None or self._landed(slot):
                ready.append(key)
                counts.append(tokens[place])
                held.append(slot)
            else:
                late.append((key, tokens[place], slot))
        if self._displaced:
            self._count_pollution(view.union)
        arrived = _NONE_ARRIVED
        if missing and self.buffers is not None and self.guesses:
            missing, arrived = self._find_buffered(missing, ready, counts, held, late)
        placed, elsewhere = _NOWHERE_ELSE, _NO_EXPERTS
        if self.place is not None and (missing or late):
            placed = self.place(view, [k for k, _ in missing], [k for k, *_ in late], rows_of_step)
            if placed:
                missing, late, elsewhere = _divide(placed, missing, late)
        leavers = self._leavers(view)
        if not (missing or late or elsewhere or leavers or arrived):
            return Decision(layer, ready, counts, held)
        if late:
            self._count_late(late)
        bypass, vacated = _NO_LEAVERS
        if leavers:
            bypass, vacated = self._release(missing, leavers, held, late, arrived)
        loads, later = self._assign(missing, bypass, placed) if missing else _NO_LOADS
        if self._memory is not None:
            for key, _, slot in loads:
                if slots.get(key) is slot:  # others are in staging buffers
                    self._fit(key, slot)
            for key, slot in later:
                self._fit(key, slot)
        if arrived:
            self._admit(arrived, bypass)
        return Decision(
            layer,
            ready,
            counts,
            held,
            late,
            vacated,
            loads,
            elsewhere,
            later,
            NO_READS if self.host is None else self._reads(self.host, loads, elsewhere, later),
            self._waves(loads, bypass) if loads else 0,
            self.write_back,
            leavers,
        )

    def _find_buffered(
        self,
        missing: Sequence[tuple[Key, int]],
        ready: list[Key],
        counts: list[int],
        held: list[Slot],
        late: list[tuple[Key, int, Slot]],
    ) -> tuple[list[tuple[Key, int]], Mapping[Key, Slot]]:
        """Add wanted keys in prefetch buffers to the ready or late ones.

        Return the keys that are still missing, and those in buffers.
        """
        absent: list[tuple[Key, int]] = []
        arrived: dict[Key, Slot] = {}
        for key, rows in missing:
            slot = self.guesses.get(key)
            if slot is None:
                absent.append((key, rows))
                continue
            arrived[key] = slot
            if self._landed(slot):
                ready.append(key)
                counts.append(rows)
                held.append(slot)
            else:
                late.append((key, rows, slot))
        return absent, arrived

    def _admit(self, arrived: Mapping[Key, Slot], bypass: Collection[Key]) -> None:
        """Make wanted keys in prefetch buffers resident, or free the buffers of bypassed ones."""
        assert self.buffers is not None
        for key, slot in arrived.items():
            if key in bypass:
                self._drop(key, self.buffers)
                continue
            if not self._free:
                raise self._violation(key, self._too_many)
            left = self._free.pop()
            self._fit(key, left)  # the buffer's bytes become the cache's, and these the buffer's
            self.slots[key] = slot
            self.buffers.swap(key, left)

    def drop_wrong(self, layer: int, union: Collection[Key]) -> None:
        """End the guesses for a layer, whose event wants `union`.

        A wrong guess leaves its prefetch buffer. In a slot it stays, unless its copy is cancelled.
        """
        experts, guesses = self._ledger.num_experts, self.guesses
        keys = range(layer * experts, (layer + 1) * experts)
        due = [key for key in guesses if key in keys]
        if self.buffers is not None:
            for key in due:
                if key not in union:
                    self._drop(key, self.buffers)
            return
        for key in due:
            slot = guesses.pop(key)
            if key not in union and self._cancelled(slot):
                del self.slots[key]
                self.policy.remove(key)
                self._free.append(slot)

    def _drop(self, key: Key, buffers: PrefetchBuffers) -> None:
        slot = buffers.release(key)
        if slot.fresh and not self._cancelled(slot):
            self._waste(slot)

    def _cancelled(self, slot: Slot) -> bool:
        """Cancel the copy that fills a slot, if that is possible; return whether it was.

        The slot then waits for what the copy waited for. It remembers one work, so a copy that
        waits for several is not cancelled.
        """
        landing = slot.landing
        if self._cancel is None or landing is None:
            return False
        before = [work for work in landing.after if work.lane != DISK and not self._done(work)]
        if len(before) > 1 or not self._cancel(landing):
            return False
        slot.landing, slot.reader, slot.fresh = None, before[0] if before else None, False
        self._ledger.cancelled(landing)
        return True

    def _waves(self, loads: Sequence[tuple[Key, int, Slot]], bypass: Collection[Key]) -> int:
        """Return the rounds through the staging buffers that some copies need."""
        if not bypass:
            return 1
        staged = sum([key in bypass for key, *_ in loads])
        return max(1, -(-staged // len(self._staging.buffers)))

    def _count_late(self, late: list[tuple[Key, int, Slot]]) -> None:
        """Count late prefetches, and sort the experts by the landing of their copies."""
        if len(late) > 1:
            # In order of issue, so the GPU computes the experts in the order in which they land.
            late.sort(key=lambda item: item[2].issued)
        for *_, slot in late:
            if slot.fresh:
                slot.fresh = False
                self._ledger.prefetch_late += slot.units

    def _count_pollution(self, union: Sequence[Key]) -> None:
        """Count keys that left for a prefetch and are wanted before the prefetched key."""
        displaced, displacers = self._displaced, self._displacers
        for key in union:  # first, because a key wanted at the same time is not wanted before
            for victim in displacers.pop(key, ()):
                left = [other for other in displaced.pop(victim, ()) if other != key]
                if left:
                    displaced[victim] = left
        for key in union:
            self._ledger.prefetch_pollution += len(displaced.pop(key, ()))

    def _assign(
        self, missing: Sequence[tuple[Key, int]], bypass: Collection[Key], placed: Placed
    ) -> _Assigned:
        """Give slots to the missing keys that stay, and staging buffers to those copied for now."""
        slots, free = self.slots, self._free
        loads: list[tuple[Key, int, Slot]] = []
        later: list[tuple[Key, Slot]] = []
        for key, rows in missing:
            here = not placed or placed.get(key, GPU) == GPU
            if key in bypass:
                if here:
                    loads.append((key, rows, self._staging.take()))
                continue
            if not free:
                raise self._violation(key, self._too_many)
            slots[key] = slot = free.pop()
            if here:
                loads.append((key, rows, slot))
            else:
                slot.issued = next(self._issues)
                later.append((key, slot))
        return loads, later

    def _reads(
        self,
        host: HostMemory,
        loads: Sequence[tuple[Key, int, Slot]],
        elsewhere: Sequence[tuple[Key, int, str]],
        later: Sequence[tuple[Key, Slot]],
    ) -> Mapping[Key, int]:
        """Return the bytes of each used expert that must first be read from disk."""
        keys = dict.fromkeys([key for key, *_ in loads])
        keys.update(dict.fromkeys([key for key, *_ in elsewhere]))
        keys.update(dict.fromkeys([key for key, _ in later]))
        return {key: nbytes for key in keys if (nbytes := host.read(key))}

    def prefetch(self, layer: int, key: Key, protected: Collection[Key]) -> Decision | None:
        """Decide the copy ahead of an absent key; return None if there is no slot or buffer for it.

        The decision has the key in `later`, and its victim in `vacated` if there is one.
        """
        if self.buffers is not None:
            return self._prefetch_to_buffer(layer, key, self.buffers)
        policy, slots = self.policy, self.slots
        vacated: Sequence[tuple[Key, Slot]] = ()
        leavers: Sequence[Key] = ()
        if self._memory is not None:
            left = self._make_room(key, protected, self._memory)
            if left is None:
                return None
            leavers, vacated = left
            slot = self._memory.pop()
            self._fit(key, slot)
        elif self._free:
            slot = self._free.pop()
        else:
            victim = policy.victim(protected) if self.capacity else None
            if victim is None:
                return None
            slot, vacated = self._evict(victim, protected)
            leavers = (victim,)
        for victim in leavers:
            self._displaced.setdefault(victim, []).append(key)
            self._displacers.setdefault(key, []).append(victim)
        policy.insert(key)
        slots[key] = slot
        if self._cancel is not None:
            self.guesses[key] = slot
        return self._copied_ahead(layer, key, slot, vacated, self.write_back, leavers)

    def _copied_ahead(
        self,
        layer: int,
        key: Key,
        slot: Slot,
        vacated: Sequence[tuple[Key, Slot]],
        write_back: bool,
        leavers: Sequence[Key],
    ) -> Decision:
        slot.issued = next(self._issues)
        later = [(key, slot)]
        reads = NO_READS if self.host is None else self._reads(self.host, (), (), later)
        return Decision(
            layer, (), (), (), (), vacated, (), (), later, reads, 0, write_back, leavers
        )

    def _prefetch_to_buffer(
        self, layer: int, key: Key, buffers: PrefetchBuffers
    ) -> Decision | None:
        """Decide the copy ahead of a key to a buffer; return None if all hold other guesses.

        A wrong guess may have left the buffer with its copy under way. That copy lands first.
        """
        slot = buffers.take(key, self._is_idle)
        if slot is None:
            return None
        # Without a write-back only the slot matters here: it has no expert of its own.
        vacated = [] if slot.landing is None else [(key, slot)]
        if self._sizes is not None:
            slot.units = self._sizes[key]
        return self._copied_ahead(layer, key, slot, vacated, False, ())

    def _is_idle(self, slot: Slot) -> bool:
        """Return whether a copy into a free buffer need not wait for its last copy or reader."""
        return self._is_here(slot) and (slot.reader is None or self._done(slot.reader))

    @property
    def places(self) -> bool:
        """Whether a placement policy may run experts on other lanes than the GPU."""
        return self.place is not None

    def _evict(
        self, victim: Key, protected: Collection[Key]
    ) -> tuple[Slot, Sequence[tuple[Key, Slot]]]:
        """Remove a resident for a prefetched key; return its slot.

        Return it also with its key if the resident needs a copy to leave, or has one under way.
        """
        if victim not in self.slots or victim in protected:
            raise self._violation(
                victim, "cannot leave for a prefetch: it is not resident, or is protected"
            )
        slot = self.slots.pop(victim)
        self.policy.remove(victim)
        if slot.fresh and self._leaves_unused(victim, slot):
            return slot, ()
        return slot, [(victim, slot)] if slot.landing is not None or self.write_back else ()

    def _make_room(
        self, key: Key, protected: Collection[Key], memory: FreeBytes
    ) -> tuple[Sequence[Key], Sequence[tuple[Key, Slot]]] | None:
        """Free the bytes of a prefetched key; return None if the policy refuses.

        Else return who left, and those of them that need a copy to leave or have one under way.
        """
        assert self._sizes is not None
        nbytes = self._sizes[key]
        victims: Sequence[Key] | None = ()
        if nbytes > memory.nbytes:
            victims = self.policy.victims(protected, nbytes - memory.nbytes)
        if victims is None:
            return None
        left = [self._evict(victim, protected) for victim in victims]
        for slot, _ in left:
            memory.append(slot)
        return victims, [pair for _, vacated in left for pair in vacated]

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
        if self.unused_by_kernel is not None:
            return self.unused_by_kernel
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
        self,
        missing: Sequence[tuple[Key, int]],
        leavers: Collection[Key],
        held: Sequence[Slot],
        late: Sequence[tuple[Key, int, Slot]],
        arrived: Collection[Key],
    ) -> _Released:
        """Free the slots of resident leavers.

        Return the keys, missing or `arrived` in a prefetch buffer, that get no slot, and the
        leavers that need a copy to leave. Slots that are still being read are used last.
        """
        slots, free, write_back = self.slots, self._free, self.write_back
        bypass, vacated = [], []
        for key in leavers:
            slot = slots.pop(key, None)
            if slot is None:
                bypass.append(key)
                continue
            free.append(slot)
            if slot.fresh and self._leaves_unused(key, slot):
                continue
            if slot.landing is not None or write_back:
                vacated.append((key, slot))
        if bypass:
            absent = {key for key, _ in missing}.union(arrived)
            if len(set(bypass)) < len(bypass) or not absent.issuperset(bypass):
                raise self._violation(bypass, _STRAY_LEAVER)
        if len(free) > 1:
            busy = {*held, *(slot for *_, slot in late)}
            self._sort_free(busy.union([slot for _, slot in vacated]) if write_back else busy)
        return bypass, vacated

    def _sort_free(self, busy: Collection[Slot]) -> None:
        """Sort the free slots: those for which no copy must wait go to the end, taken first."""
        done = self._done
        self._free.sort(
            key=lambda slot: slot not in busy and (slot.reader is None or done(slot.reader))
        )

    def _leaves_unused(self, key: Key, slot: Slot) -> bool:
        """Cancel the copy ahead of a leaver and return True, or count it as wasted."""
        if self._cancel is not None:
            self.guesses.pop(key, None)
            if self._cancelled(slot):
                return True
        self._waste(slot)
        return False

    def _waste(self, slot: Slot) -> None:
        """Count a prefetched expert that leaves before any use."""
        slot.fresh = False
        self._ledger.prefetch_wasted += slot.units

    @property
    def _too_many(self) -> str:
        unit = "keys" if self._memory is None else "bytes"
        return f"keeps more than {self.capacity} {unit}; return more leavers from `decide`"

    def _violation(self, key: object, reason: str) -> PolicyViolation:
        return PolicyViolation(self.policy.name, key, reason)


def _divide(
    placed: Placed, missing: Sequence[tuple[Key, int]], late: Sequence[tuple[Key, int, Slot]]
) -> tuple[list[tuple[Key, int]], list[tuple[Key, int, Slot]], list[tuple[Key, int, str]]]:
    """Return the missing keys, the late ones that run on the GPU, and the keys that run elsewhere.

    Experts are copied in the order in which the policy names them.
    """
    rows = dict(missing)
    named = [(key, rows[key]) for key in placed if key in rows]
    missing = [*named, *(pair for pair in missing if pair[0] not in placed)]
    rows.update({key: count for key, count, _ in late})
    elsewhere = [(key, rows[key], lane) for key, lane in placed.items() if lane != GPU]
    return missing, [item for item in late if placed.get(item[0], GPU) == GPU], elsewhere
