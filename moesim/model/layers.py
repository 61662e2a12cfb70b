"""What one layer of a model is made of, where the layers of a model differ.

A layer has a mixer of tokens, or none: attention over all positions or over a window, or a
recurrence (linear attention, Mamba, a short convolution) whose state has the same size for a
sequence of any length. After the mixer follow routed experts, a dense FFN, or nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LayerKind", "Mla"]


@dataclass(frozen=True, slots=True)
class Mla:
    """Multi-head latent attention, which stores keys and values as one low-rank vector a token.

    Source: DeepSeek-V2 (Liu et al., 2024), section 2.1.
    """

    kv_rank: int
    rope_dim: int
    nope_dim: int
    value_dim: int
    q_rank: int | None = None


@dataclass(frozen=True, slots=True)
class LayerKind:
    """One layer without its routed experts. Layers of one kind take the same time.

    - `params`: the weights that each token is multiplied with, norms and router included.
    - `routed`: whether the layer has routed experts.
    - `heads`, `key_dim`, `value_dim`: attention, and the sizes of one head; 0: no attention.
    - `kv_numbers`: the numbers that a token leaves in the KV cache.
    - `window`: attention is limited to that many positions, the last or chosen ones.
    - `index_flops`: the operations in which an index scores one pair, to choose positions.
    - `index_numbers`: the numbers that a token leaves in the cache of the index.
    - `mla`: latent attention; its sizes replace `key_dim` and `value_dim`.
    - `state_bytes`: the recurrent state of one sequence, read and written once a step.
    - `state_flops`: the operations of one token on the state.
    """

    params: int
    routed: bool = True
    heads: int = 0
    key_dim: int = 0
    value_dim: int = 0
    kv_numbers: int = 0
    window: int | None = None
    mla: Mla | None = None
    state_bytes: int = 0
    state_flops: int = 0
    index_flops: int = 0
    index_numbers: int = 0

    @property
    def cached_numbers(self) -> int:
        """The numbers that a token leaves in all caches of the layer."""
        return self.kv_numbers + self.index_numbers
