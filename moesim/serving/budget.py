"""One budget of GPU memory: fixed weights + KV blocks + expert slots + staging + activations.

The split is fixed at the start. Either KV blocks or expert slots may take the rest. What cannot
fit is refused before anything runs, with the numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from moesim.config.units import format_bytes
from moesim.errors import BudgetError, ScenarioError

if TYPE_CHECKING:
    from moesim.hardware.shapes import ModelShape
    from moesim.scenario import MemoryShare, Scenario

_ACTIVATION_BYTES = 2  # 16-bit activations, whatever the weights
_LOGIT_BYTES = 4
_MIB = 2**20


@dataclass(frozen=True, slots=True)
class Budget:
    """Bytes of each part, and what they amount to in slots and blocks."""

    capacity_bytes: int
    fixed_bytes: int
    activations_bytes: int
    staging_bytes: int
    slots: int
    slots_bytes: int
    kv_blocks: int
    kv_bytes: int

    @property
    def used_bytes(self) -> int:
        return (
            self.fixed_bytes
            + self.activations_bytes
            + self.staging_bytes
            + self.slots_bytes
            + self.kv_bytes
        )


def plan_budget(
    scenario: Scenario, shape: ModelShape, vram_bytes: int, kv_tokens: Sequence[int]
) -> Budget:
    """Split the memory. `kv_tokens`: most KV entries each request will hold.

    Raises `BudgetError` with all numbers where the parts exceed the whole.
    """
    memory = scenario.memory
    capacity = memory.capacity if memory.capacity is not None else vram_bytes
    expert = shape.expert_bytes
    block = memory.kv_block_tokens * shape.kv_bytes_per_token
    activations = (
        memory.activations if memory.activations is not None else _activations(scenario, shape)
    )
    parts = {
        "fixed weights": shape.fixed_bytes,
        "activations": activations,
        f"{memory.staging} staging buffers": memory.staging * expert,
    }
    left = capacity - sum(parts.values())
    longest = max(-(-tokens // memory.kv_block_tokens) for tokens in kv_tokens)
    slots = _slots(scenario, shape)
    blocks = _blocks(memory.kv, block, capacity)
    shortage = _Shortage(
        scenario, capacity, parts, longest * block, expert, (blocks or 0) * block, slots or 0
    )
    if left < 0:
        raise shortage.error("leave nothing for KV blocks and experts")
    total_experts = len(shape.moe_layers) * shape.num_experts
    wanted_blocks = useful_blocks(scenario, kv_tokens)
    if blocks is None and memory.kv.kind == "auto":
        room = left - slots * expert if slots is not None else left // 2
        blocks = min(wanted_blocks, max(longest, room // block if block else wanted_blocks))
    if slots is None:
        assert blocks is not None
        slots = max(0, min(total_experts, (left - blocks * block) // expert))
    if blocks is None:
        blocks = max(0, (left - slots * expert) // block)
    shortage = replace(shortage, kv=blocks * block, slots=slots)
    if left < blocks * block + slots * expert:
        raise shortage.error("exceed the memory")
    shortest = min(-(-tokens // memory.kv_block_tokens) for tokens in kv_tokens)
    if blocks == 0 or blocks < shortest:
        raise shortage.error("leave too few KV blocks for any request")
    return Budget(
        capacity_bytes=capacity,
        fixed_bytes=shape.fixed_bytes,
        activations_bytes=activations,
        staging_bytes=memory.staging * expert,
        slots=slots,
        slots_bytes=slots * expert,
        kv_blocks=blocks,
        kv_bytes=blocks * block,
    )


def split_slots(total: int, num_layers: int, num_experts: int) -> list[int]:
    """Slots of each layer: the floor, the remainder to the first layers, none above `experts`."""
    each, more = divmod(total, num_layers)
    return [min(num_experts, each + (layer < more)) for layer in range(num_layers)]


def _activations(scenario: Scenario, shape: ModelShape) -> int:
    """Assumed: residual stream, attention and FFN intermediates of one layer for a full step's
    tokens, and the logits of all sequences."""
    widths = 4 * shape.hidden + 3 * shape.top_k * shape.expert_ffn + shape.shared_ffn
    widths += (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim + shape.dense_ffn
    tokens = scenario.batching.token_budget
    logits = min(scenario.batching.max_sequences, tokens) * shape.vocabulary * _LOGIT_BYTES
    return tokens * widths * _ACTIVATION_BYTES + logits


def useful_blocks(scenario: Scenario, kv_tokens: Sequence[int]) -> int:
    """Blocks that the longest requests need if as many run at once as may."""
    block_tokens = scenario.memory.kv_block_tokens
    most = sorted((-(-tokens // block_tokens) for tokens in kv_tokens), reverse=True)
    return sum(most[: scenario.batching.max_sequences])


def _slots(scenario: Scenario, shape: ModelShape) -> int | None:
    """Slots asked for; None for the rest. A size beyond all experts is used as far as they go; a
    number beyond them is a mistake."""
    amount, layers = scenario.cache.slots, len(shape.moe_layers)
    total = layers * shape.num_experts
    match amount.kind:
        case "count" if amount.value > total:
            raise ScenarioError.at(
                scenario,
                "cache.slots",
                f"is {amount.value} in all; the model has {total} experts in {layers} MoE layers",
            )
        case "per_layer" if amount.value > shape.num_experts:
            raise ScenarioError.at(
                scenario,
                "cache.slots",
                f"is {amount.value} a layer; a layer of the model has {shape.num_experts} experts",
            )
        case "count":
            return int(amount.value)
        case "per_layer":
            return int(amount.value) * layers
        case "share":
            return round(amount.value * total)
        case "bytes":
            return min(total, int(amount.value) // shape.expert_bytes)
    return None


def _blocks(amount: MemoryShare, block: int, capacity: int) -> int | None:
    match amount.kind:
        case "bytes":
            return int(amount.value) // block
        case "share":
            return int(capacity * amount.value) // block
    return None


@dataclass(frozen=True, slots=True)
class _Shortage:
    """Parts that exceed the memory, in bytes, and what of them may change."""

    scenario: Scenario
    capacity: int
    fixed: dict[str, int]
    kv_needed: int
    """Bytes of the KV blocks that the longest request fills."""
    expert: int
    kv: int = 0
    slots: int = 0

    def error(self, what: str) -> BudgetError:
        parts = {**self.fixed, "KV blocks": self.kv}
        parts[f"{self.slots} expert slots"] = self.slots * self.expert
        if self.kv < self.kv_needed:
            parts["KV blocks of the longest request"] = self.kv_needed
        lines = [f"  {name}: {format_bytes(size)} ({size} bytes)" for name, size in parts.items()]
        lines.append(f"  of {format_bytes(self.capacity)} ({self.capacity} bytes)")
        remedies = [*self._remedies(), "fewer model.expert_bits or model.weight_bits"]
        return BudgetError(
            f"{self.scenario.mark('memory')}: impossible memory: the parts {what}\n"
            + "\n".join(lines)
            + f"\n  try {', or '.join(remedies)}"
        )

    def _remedies(self) -> Iterator[str]:
        """Yield single changes that make everything fit, as `key: value`."""
        fixed, held = sum(self.fixed.values()), self.slots * self.expert
        kv = max(self.kv, self.kv_needed)
        needed = fixed + kv + held
        share = self.scenario.memory.kv
        room = self.capacity - fixed - held
        if share.kind in ("bytes", "share") and room >= self.kv_needed:
            yield f"memory.kv: {min(room, kv)}B"
        if share.kind == "bytes" and self.kv < self.kv_needed:
            return  # nothing else gives the KV blocks more
        if share.kind == "share" and 0 < share.value < 1:  # it grows with the capacity
            needed = round((fixed + held) / (1 - share.value))
            needed = max(needed, round(self.kv_needed / share.value)) + _MIB
        if needed > self.capacity:
            yield f"memory.capacity: {-(-needed // _MIB)}MiB"
        staging = self.scenario.memory.staging
        spare = staging + (self.capacity - fixed - kv - held) // self.expert
        if 1 <= spare < staging:
            yield f"memory.staging: {spare}"
        slots = (self.capacity - fixed - kv) // self.expert
        if 0 <= slots < self.slots:
            yield f"cache.slots: {slots}"
