"""The budget: how GPU memory is split before a run starts.

The parts are fixed weights, KV blocks, expert slots, staging buffers, prefetch buffers and
activations. Either KV blocks or expert slots may take the rest. A split that does not fit is
refused before anything runs, with all numbers and with changes that would make it fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from moesim.config.units import format_bytes
from moesim.errors import BudgetError, ScenarioError
from moesim.hardware.topology import GPU
from moesim.model.shapes import stored_bytes
from moesim.policies import find
from moesim.policies.placement import fixes_residents
from moesim.scenario.keys import key_path

if TYPE_CHECKING:
    from moesim.model.shapes import ModelShape
    from moesim.scenario import MemoryShare, Scenario
    from moesim.scenario.sections import Batching

STATE_BYTES = 2  # of one activation: they have 16 bits, also where weights are quantised
_LOGIT_BYTES = 4  # logits have 32 bits
_MIB = 2**20


@dataclass(frozen=True, slots=True)
class Budget:
    """Bytes of each part, and the numbers of expert slots and KV blocks.

    `recurrent_bytes` are the recurrent states of as many sequences as may run at once.
    `staging_bytes` are of staging buffers, `buffers_bytes` of those that only copies ahead fill
    (`prefetch.buffers`), and `slots_bytes` of all expert slots together. Where
    experts have unequal sizes, `slots` says how many of their mean size these bytes hold.
    """

    capacity_bytes: int
    fixed_bytes: int
    activations_bytes: int
    staging_bytes: int
    slots: int
    slots_bytes: int
    kv_blocks: int
    kv_bytes: int
    recurrent_bytes: int = 0
    buffers_bytes: int = 0

    @property
    def used_bytes(self) -> int:
        """Sum of all parts, at most `capacity_bytes`."""
        return (
            self.fixed_bytes
            + self.activations_bytes
            + self.staging_bytes
            + self.buffers_bytes
            + self.slots_bytes
            + self.kv_bytes
            + self.recurrent_bytes
        )

    @property
    def free_bytes(self) -> int:
        """Bytes that no part takes."""
        return self.capacity_bytes - self.used_bytes


@dataclass(frozen=True, slots=True)
class OnGpu:
    """The bytes of a model that are in GPU memory.

    These are weights without experts, KV of a token, and recurrent states of a sequence.
    """

    fixed_bytes: int
    kv_bytes_per_token: int
    state_bytes_per_sequence: int = 0

    @classmethod
    def of(cls, shape: ModelShape, lanes: Sequence[str] = ()) -> OnGpu:
        """Return the parts of a model whose layers run on `lanes`, the last for the end of a step.

        Empty: all on the GPU.
        """
        fixed, kv = shape.fixed_bytes, shape.kv_bytes_per_token
        states = shape.state_bytes_per_sequence
        for lane, kind in zip(lanes, shape.all_kinds(), strict=False):
            if lane != GPU:
                fixed -= stored_bytes(kind.params, shape.weight_bits)
                kv -= stored_bytes(kind.cached_numbers, shape.kv_bits)
                states -= kind.state_bytes
        if lanes and lanes[-1] != GPU:
            fixed -= shape.end_bytes
            kv -= shape.router_kv_bytes_per_token
        return cls(max(0, fixed), kv, states)


def plan_budget(
    scenario: Scenario,
    shape: ModelShape,
    vram_bytes: int,
    kv_tokens: Sequence[int],
    on_gpu: OnGpu | None = None,
) -> Budget:
    """Return the split of the memory.

    Args:
        scenario: its sections `memory`, `cache` and `batching` decide.
        shape: the model.
        vram_bytes: memory of the GPU, used where `memory.capacity` is not set.
        kv_tokens: the most KV entries that each request will hold.
        on_gpu: the parts of the model in GPU memory; by default all but its experts.

    Raise `BudgetError` with all numbers if the parts exceed the memory.
    """
    memory = scenario.memory
    capacity = memory.capacity if memory.capacity is not None else vram_bytes
    unit = _unit_bytes(shape)
    on_gpu = on_gpu or OnGpu.of(shape)
    block = memory.kv_block_tokens * on_gpu.kv_bytes_per_token
    tokens = largest_step(scenario.batching, kv_tokens)
    parts = _fixed_parts(scenario, shape, on_gpu.fixed_bytes, tokens)
    states = most_sequences(scenario, kv_tokens) * on_gpu.state_bytes_per_sequence
    if states:
        parts["recurrent states"] = states
    left = capacity - sum(parts.values())
    longest = max(-(-tokens // memory.kv_block_tokens) for tokens in kv_tokens)
    slots = _slots(scenario, shape)
    blocks = _blocks(memory.kv, block, capacity)
    shortage = _Shortage(
        scenario,
        shape,
        vram_bytes,
        capacity,
        parts,
        longest * block,
        (blocks or 0) * block,
        slots or 0,
    )
    if left < 0:
        raise shortage.error("leave nothing for KV blocks and experts")
    every = _all_units(shape)
    wanted_blocks = useful_blocks(scenario, kv_tokens)
    # `auto` shares what is left evenly with the slots, if these take the rest. The longest request
    # must fit, and blocks beyond those that the requests can use would be wasted.
    if blocks is None and (memory.kv.kind == "auto" or not block):
        room = left - slots * unit if slots is not None else left // 2
        blocks = min(wanted_blocks, max(longest, room // block if block else wanted_blocks))
    if slots is None:
        assert blocks is not None
        slots = max(0, min(every, (left - blocks * block) // unit))
    if blocks is None:
        blocks = max(0, (left - slots * unit) // block)
    shortage = replace(shortage, kv=blocks * block, slots=slots)
    if left < blocks * block + slots * unit:
        raise shortage.error("exceed the memory")
    # Requests that do not fit are rejected on arrival, so one that fits is enough for a run.
    shortest = min(-(-tokens // memory.kv_block_tokens) for tokens in kv_tokens)
    if blocks == 0 or blocks < shortest:
        raise shortage.error("leave too few KV blocks for any request")
    weights_bytes, activations_bytes, staging_bytes, *_ = parts.values()
    return Budget(
        capacity_bytes=capacity,
        fixed_bytes=weights_bytes,
        activations_bytes=activations_bytes,
        staging_bytes=staging_bytes,
        slots=slots if shape.equal_sizes else slots * _num_experts(shape) // every,
        slots_bytes=slots * unit,
        kv_blocks=blocks,
        kv_bytes=blocks * block,
        recurrent_bytes=states,
        buffers_bytes=prefetch_buffers(scenario) * shape.expert_bytes,
    )


def prefetch_buffers(scenario: Scenario) -> int:
    """Return how many buffers only copies ahead fill; none where nothing is prefetched."""
    prefetch = scenario.prefetch
    return prefetch.buffers if find("prefetch", prefetch.policy).active else 0


def most_sequences(scenario: Scenario, kv_tokens: Sequence[int]) -> int:
    """Return the most requests, one for each entry of `kv_tokens`, that may run at once."""
    return min(scenario.batching.max_sequences, len(kv_tokens))


def _num_experts(shape: ModelShape) -> int:
    return len(shape.moe_layers) * shape.num_experts


def _unit_bytes(shape: ModelShape) -> int:
    """Return the bytes in which slots are planned: an expert, or single bytes if sizes differ."""
    return shape.expert_bytes if shape.equal_sizes else 1


def _all_units(shape: ModelShape) -> int:
    """Return the units of `_unit_bytes` that all experts take."""
    return _num_experts(shape) if shape.equal_sizes else sum(shape.sizes())


def bytes_in_unused_memory(
    scenario: Scenario,
    shape: ModelShape,
    vram_bytes: int,
    kv_tokens: Sequence[int],
    on_gpu: OnGpu | None = None,
) -> int:
    """Return the bytes of slots that `cache.slots: rest` would give; 0 if KV takes the rest.

    Arguments are those of `plan_budget`, for a scenario that fits.
    """
    if scenario.memory.kv.kind == "rest":
        return 0
    rest = {"slots": replace(scenario.cache.slots, kind="rest"), "split": "uniform"}
    cache = scenario.cache.model_copy(update=rest)
    roomy = scenario.model_copy(update={"cache": cache})
    return plan_budget(roomy, shape, vram_bytes, kv_tokens, on_gpu).slots_bytes


def split_slots(total: int, num_layers: int, num_experts: int) -> list[int]:
    """Return the slots of each layer, as even as possible and at most `num_experts`.

    The first layers get one more where the total does not divide.
    """
    each, more = divmod(total, num_layers)
    return [min(num_experts, each + (layer < more)) for layer in range(num_layers)]


def split_bytes(total_bytes: int, sizes: Sequence[Sequence[int]]) -> list[int]:
    """Return the bytes of each layer's cache, in proportion to the bytes of its experts.

    `sizes[l]` are the bytes of the experts of layer l. A share is rounded down to a multiple of the
    layer's largest expert. The first layers get one more where the rest allows it. With equal sizes
    this is `split_slots`.
    """
    layers, largest = [sum(layer) for layer in sizes], [max(layer) for layer in sizes]
    total_bytes = min(total_bytes, sum(layers))
    shares = [
        total_bytes * layer // sum(layers) // most * most
        for layer, most in zip(layers, largest, strict=True)
    ]
    left = total_bytes - sum(shares)
    for number, most in enumerate(largest):
        more = min(most, layers[number] - shares[number])
        if more <= left:
            shares[number] += more
            left -= more
    return shares


def largest_step(batching: Batching, kv_tokens: Sequence[int]) -> int:
    """Return an upper bound of the tokens of one step.

    `kv_tokens` are the most KV entries that each request will hold. All of them are computed in one
    step if the request loses them shortly before its end and prompts are not cut.
    """
    longest = max(kv_tokens)
    exceeds = not batching.chunked_prefill and batching.long_prompts == "exceed"
    if not exceeds or longest <= batching.token_budget:
        return batching.token_budget
    # Decodes before the prompt: they leave a token of the budget and a place for its request.
    return min(batching.token_budget, batching.max_sequences) - 1 + longest


def _fixed_parts(
    scenario: Scenario, shape: ModelShape, fixed_bytes: int, step_tokens: int
) -> dict[str, int]:
    """Return the bytes of weights, activations and staging buffers, by the names in messages."""
    memory = scenario.memory
    activations = memory.activations
    if activations is None:
        activations = _activations(scenario, shape, step_tokens)
    parts = {
        "fixed weights": fixed_bytes,
        "activations": activations,
        f"{memory.staging} staging buffers": memory.staging * shape.expert_bytes,
    }
    if ahead := prefetch_buffers(scenario):
        parts[_buffers_name(ahead)] = ahead * shape.expert_bytes
    return parts


def _buffers_name(count: int) -> str:
    return f"{count} prefetch buffers"


def _activations(scenario: Scenario, shape: ModelShape, tokens: int) -> int:
    """Return an estimate of the bytes of activations in the largest step, one of `tokens`.

    It assumes the intermediates of one layer, since layers reuse the memory: residual stream,
    attention and FFN. The logits of all sequences are added.
    """
    widths = 4 * shape.hidden + 3 * shape.top_k * shape.expert_ffn + shape.shared_ffn
    widths += (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim + shape.dense_ffn
    logits = min(scenario.batching.max_sequences, tokens) * shape.vocabulary * _LOGIT_BYTES
    return tokens * widths * STATE_BYTES + logits


def useful_blocks(scenario: Scenario, kv_tokens: Sequence[int]) -> int:
    """Return the blocks that the longest requests need if as many as allowed run at once."""
    block_tokens = scenario.memory.kv_block_tokens
    blocks = sorted((-(-tokens // block_tokens) for tokens in kv_tokens), reverse=True)
    return sum(blocks[: scenario.batching.max_sequences])


def _slots(scenario: Scenario, shape: ModelShape) -> int | None:
    """Return the slots that the scenario sets, or None if they take the rest.

    A list of the slots of each layer sets their sum; `ScenarioError` if `cache.slots` is another.
    """
    stated, listed = _stated_slots(scenario, shape), _listed_slots(scenario)
    if listed is None:
        return stated
    if stated not in (None, listed):
        raise ScenarioError.at(
            scenario,
            "cache.split",
            f"gives {listed} slots in all, and cache.slots {stated}; leave cache.slots out",
        )
    return listed


def _listed_slots(scenario: Scenario) -> int | None:
    """Return the slots that a list of each layer's slots has in all; None without a list in use."""
    split = scenario.cache.split
    fixed = fixes_residents(find("placement", scenario.placement.policy))
    return sum(split) if isinstance(split, list) and not fixed else None


def _stated_slots(scenario: Scenario, shape: ModelShape) -> int | None:
    """Return the slots that `cache.slots` sets, or None if they take the rest.

    A size in bytes may exceed all experts and is cut. A number above them raises `ScenarioError`.
    Where experts have unequal sizes, the slots are returned in bytes, and a slot has the mean size.
    """
    amount, layers = scenario.cache.slots, len(shape.moe_layers)
    total, every = layers * shape.num_experts, _all_units(shape)
    match amount.kind:
        case "count" if amount.value > total:
            raise ScenarioError.at(
                scenario,
                "cache.slots",
                f"is {amount.value} in all; the model has {total} experts in {layers} MoE layers; "
                f"give at most {total}",
            )
        case "per_layer" if amount.value > shape.num_experts:
            raise ScenarioError.at(
                scenario,
                "cache.slots",
                f"is {amount.value} a layer; a layer of the model has {shape.num_experts} experts; "
                f"give at most {shape.num_experts}/layer",
            )
        case "count":
            return int(amount.value) * every // total
        case "per_layer":
            return int(amount.value) * layers * every // total
        case "share":
            return round(amount.value * every)
        case "bytes":
            return min(every, int(amount.value) // _unit_bytes(shape))
    return None


def _blocks(amount: MemoryShare, block: int, capacity: int) -> int | None:
    """Return the KV blocks that the scenario sets, or None for `auto` and the rest."""
    match amount.kind:
        case "bytes" if block:
            return int(amount.value) // block
        case "share" if block:
            return int(capacity * amount.value) // block
    return None


@dataclass(frozen=True, slots=True)
class _Shortage:
    """A split that exceeds the memory: bytes of its parts, to report them and to suggest changes.

    `fixed` are the parts that neither slots nor KV blocks change, by name. `kv` is the size of all
    KV blocks. `vram` is the memory of the card, which may exceed `capacity`.
    """

    scenario: Scenario
    shape: ModelShape
    vram: int
    capacity: int
    fixed: dict[str, int]
    kv_needed: int
    """Bytes of the KV blocks that the longest request needs."""
    kv: int = 0
    slots: int = 0

    @property
    def expert(self) -> int:
        """Bytes of one slot, as `slots` counts them: a single byte where sizes are unequal."""
        return _unit_bytes(self.shape)

    def error(self, what: str) -> BudgetError:
        """Return the error: `what` is wrong, the size of each part, and what to try."""
        parts = {**self.fixed, "KV blocks": self.kv}
        written = self.scenario.cache.slots
        form = f" ({written.plain()})" if written.kind in ("per_layer", "share") else ""
        number = f"{self.slots} " if self.shape.equal_sizes else ""
        parts[f"{number}expert slots{form}"] = self.slots * self.expert
        if self.kv < self.kv_needed:
            parts["KV blocks of the longest request"] = self.kv_needed
        lines = [f"  {name}: {format_bytes(size)} ({size} bytes)" for name, size in parts.items()]
        lines.append(f"  of {format_bytes(self.capacity)} ({self.capacity} bytes)")
        remedies = [*self._remedies(), "fewer model.expert_bits or model.weight_bits"]
        lines += [f"  {note}" for note in self.scenario.units_read().values()]
        return BudgetError(
            f"{self.scenario.mark(self._key())}: impossible memory: the parts {what}\n"
            + "\n".join(lines)
            + f"\n  try {', or '.join(remedies)}"
        )

    def _key(self) -> str:
        """Return the key that is too large: of the largest part without which the others fit."""
        memory, names = self.scenario.memory, list(self.fixed)
        slots_key = "cache.slots" if _listed_slots(self.scenario) is None else "cache.split"
        sizes = {
            slots_key: self.slots * self.expert,
            "memory.kv": self.kv,
            "memory.activations": self.fixed[names[1]],
            "memory.staging": self.fixed[names[2]],
            "prefetch.buffers": self.fixed.get(_buffers_name(prefetch_buffers(self.scenario)), 0),
        }
        if memory.kv.kind in ("bytes", "share") and self.kv < self.kv_needed:
            return "memory.kv"  # it is too small
        excess = sum(sizes.values()) + self.fixed[names[0]] - self.capacity
        document = self.scenario.document()
        written = [key for key in sizes if document.at(key_path(key)) is not None]
        for key in sorted(written, key=lambda key: -sizes[key]):
            if sizes[key] >= excess:
                return key
        return "memory.capacity" if memory.capacity is not None else "hardware"

    def _remedies(self) -> Iterator[str]:
        """Yield changes of which each alone makes everything fit, as `key: value`."""
        fixed, held = sum(self.fixed.values()), self.slots * self.expert
        kv = max(self.kv, self.kv_needed)
        needed = fixed + kv + held
        share = self.scenario.memory.kv
        room = self.capacity - fixed - held
        if share.kind in ("bytes", "share") and room >= self.kv_needed:
            yield f"memory.kv: {min(room, kv)}B"
        if share.kind == "bytes" and self.kv < self.kv_needed:
            return  # KV of a fixed size gets no more from any other change
        if share.kind == "share" and 0 < share.value < 1:
            # KV of a share grows with the capacity, so the new capacity must hold that as well.
            needed = round((fixed + held) / (1 - share.value))
            needed = max(needed, round(self.kv_needed / share.value)) + _MIB  # for rounding
        if needed > self.capacity:
            mebibytes = -(-needed // _MIB)
            fits = mebibytes * _MIB <= self.vram
            yield (
                f"memory.capacity: {mebibytes}MiB"
                if fits
                else f"a card with at least {mebibytes}MiB"
            )
        held_back = share.kind == "share" and self.kv < self.kv_needed
        if not held_back and 0 < fixed + kv + held - self.capacity <= self._whole_prompts():
            yield "batching.chunked_prefill: true"
        staging = self.scenario.memory.staging
        fitting = staging + (self.capacity - fixed - kv - held) // self.shape.expert_bytes
        if 1 <= fitting < staging:
            yield f"memory.staging: {fitting}"
        ahead = prefetch_buffers(self.scenario)
        fitting = ahead + (self.capacity - fixed - kv - held) // self.shape.expert_bytes
        if 0 <= fitting < ahead:
            yield f"prefetch.buffers: {fitting}"
        slots = (self.capacity - fixed - kv) // self.expert
        if 0 <= slots < self.slots and _listed_slots(self.scenario) is not None:
            yield f"a cache.split of at most {slots} slots in all"
        elif 0 <= slots < self.slots:
            yield f"cache.slots: {self._in_form(slots)}"

    def _whole_prompts(self) -> int:
        """Return the bytes of activations that prompts longer than the token budget take."""
        if self.scenario.memory.activations is not None:
            return 0
        cut = _activations(self.scenario, self.shape, self.scenario.batching.token_budget)
        return self.fixed["activations"] - cut

    def _in_form(self, slots: int) -> str:
        """Return at most this many slots in the form that the scenario uses."""
        layers = len(self.shape.moe_layers)
        if not self.shape.equal_sizes:
            return f"{slots}B"
        match self.scenario.cache.slots.kind:
            case "per_layer":
                return f"{slots // layers}/layer"
            case "share":
                return f"{100 * slots // (layers * self.shape.num_experts)}%"
            case "bytes":
                return f"{slots * self.expert}B"
        return str(slots)
