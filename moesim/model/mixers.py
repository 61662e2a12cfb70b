"""The parts of a layer that mix tokens, with their weights, KV entries and states.

Each function returns a `LayerKind` whose `params` are those of the mixer alone. Recurrent states
are stored in 32 bits and the inputs of a convolution in 16 bits, by assumption.
"""

from __future__ import annotations

from moesim.model.layers import LayerKind

__all__ = [
    "attention",
    "delta_net",
    "kimi_delta",
    "lightning",
    "mamba1",
    "mamba2",
    "short_convolution",
]

_STATE_BYTES, _INPUT_BYTES = 4, 2


def attention(
    hidden: int, heads: int, kv_heads: int, key_dim: int, value_dim: int | None = None
) -> LayerKind:
    """Return attention with projections to queries, keys and values, and from the heads back."""
    value = key_dim if value_dim is None else value_dim
    return LayerKind(
        hidden * (heads * (key_dim + value) + kv_heads * (key_dim + value)),
        heads=heads,
        key_dim=key_dim,
        value_dim=value,
        kv_numbers=kv_heads * (key_dim + value),
    )


def delta_net(
    hidden: int, *, key_heads: int, value_heads: int, key_dim: int, value_dim: int, kernel: int
) -> LayerKind:
    """Return a gated delta net (Yang et al., 2024, arXiv 2412.06464), as Qwen3-Next has it.

    Queries, keys and values pass a convolution. There is a gate on the output, and each value head
    has a decay and a rate. A token decays its state, subtracts what the key recalls, adds the
    value, and reads it with the query: 3 multiply-adds for each number.
    """
    keys, values = key_heads * key_dim, value_heads * value_dim
    mixed = 2 * keys + values
    state = values * key_dim
    return LayerKind(
        hidden * (mixed + values + 2 * value_heads) + mixed * kernel + values * hidden,
        state_bytes=_STATE_BYTES * state + _INPUT_BYTES * mixed * (kernel - 1),
        state_flops=6 * state,
    )


def kimi_delta(hidden: int, *, heads: int, head_dim: int, kernel: int, low_rank: bool) -> LayerKind:
    """Return Kimi delta attention (Kimi Linear, 2025, arXiv 2510.26692), with a decay a channel.

    `low_rank`: the gates of decay and output pass a bottleneck as wide as a head.
    """
    width = heads * head_dim
    gate = head_dim * (hidden + width) if low_rank else hidden * width
    state = width * head_dim
    return LayerKind(
        hidden * (4 * width + heads) + 3 * width * kernel + 2 * gate,
        state_bytes=_STATE_BYTES * state + _INPUT_BYTES * 3 * width * (kernel - 1),
        state_flops=6 * state,
    )


def lightning(hidden: int, heads: int, head_dim: int) -> LayerKind:
    """Return lightning attention (Qin et al., 2024, arXiv 2401.04658), gated, as in MiniMax-01."""
    state = heads * head_dim * head_dim
    return LayerKind(
        5 * hidden * heads * head_dim, state_bytes=_STATE_BYTES * state, state_flops=4 * state
    )


def mamba1(hidden: int, *, inner: int, state: int, kernel: int, rank: int) -> LayerKind:
    """Return Mamba (Gu and Dao, 2023, arXiv 2312.00752) with a step size of rank `rank`."""
    inputs = 2 * hidden * inner + inner * kernel
    selection = inner * (rank + 2 * state) + rank * inner
    return LayerKind(
        inputs + selection + inner * state + inner * hidden,
        state_bytes=_STATE_BYTES * inner * state + _INPUT_BYTES * inner * (kernel - 1),
        state_flops=4 * inner * state,
    )


def mamba2(
    hidden: int, *, heads: int, head_dim: int, state: int, groups: int, kernel: int
) -> LayerKind:
    """Return Mamba-2 (Dao and Gu, 2024, arXiv 2405.21060): one decay a head."""
    inner = heads * head_dim
    mixed = inner + 2 * groups * state
    return LayerKind(
        hidden * (inner + mixed + heads) + mixed * kernel + inner * hidden,
        state_bytes=_STATE_BYTES * inner * state + _INPUT_BYTES * mixed * (kernel - 1),
        state_flops=4 * inner * state,
    )


def short_convolution(hidden: int, kernel: int) -> LayerKind:
    """Return a gated short convolution, as LFM2 has it: three projections in, one back."""
    return LayerKind(
        4 * hidden * hidden + hidden * kernel, state_bytes=_INPUT_BYTES * hidden * (kernel - 1)
    )
