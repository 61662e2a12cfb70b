"""A model so small that the sums of its costs can be done by hand."""

from __future__ import annotations

from moesim.model.shapes import ModelShape

__all__ = ["three_layers"]


def three_layers() -> ModelShape:
    """Return a shape of three layers; the first is dense, and the last attends in a window.

    Attention has 8 * 4 * 2 * (2 + 1) = 192 weights, the router 8 * 4 = 32, shared experts
    3 * 8 * 5 = 120, norms 16, the dense FFN 3 * 8 * 20 = 480, an expert 3 * 8 * 10 = 240.
    """
    return ModelShape(
        name="tiny",
        num_layers=3,
        hidden=8,
        expert_ffn=10,
        num_experts=4,
        top_k=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=4,
        vocabulary=100,
        dense_layers=(0,),
        shared_ffn=5,
        dense_ffn=20,
        windowed_layers=(2,),
        window=3,
    )
