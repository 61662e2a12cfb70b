"""What a machine may be asked to compute, as data.

The server names an operation; the simulated machine prices it, the real machine runs it. An
operation is a tuple, so that it hashes fast and can key a memo of prices. Layers of fronts and
dense layers are model layers, dense ones included; those of experts are trace layers, and their
keys are those of the caches, `layer * experts + expert`.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["BatchShape", "Dense", "Experts", "Front", "Op", "Tail"]


class BatchShape(NamedTuple):
    """All that the cost of one step's non-expert work depends on."""

    tokens: int
    """Rows in the step: prefill and decode together."""
    kv_tokens: int
    """KV entries read in one layer, summed over the sequences of the step."""
    pairs: int
    """(query, key) pairs attended in one layer, summed over the sequences of the step."""
    sampled: int
    """Rows whose logits are needed."""
    sequences: int = 1
    """Requests that take part."""


class Front(NamedTuple):
    """One MoE layer up to its experts: norms, attention, shared experts, and its router unless
    that is decoupled."""

    layer: int
    batch: BatchShape


class Dense(NamedTuple):
    """One whole layer without routed experts: norms, attention and its dense FFN."""

    layer: int
    batch: BatchShape


class Experts(NamedTuple):
    """One grouped call over routed experts of one layer: `tokens[i]` rows through `keys[i]`."""

    layer: int
    keys: tuple[int, ...]
    tokens: tuple[int, ...]


class Tail(NamedTuple):
    """What a step does once: embedding, final norm, LM head, sampling, and a decoupled router."""

    batch: BatchShape


Op = Front | Dense | Experts | Tail
