"""The shape of a mixture-of-experts model: its sizes, and the weights of each part.

A decoder layer has attention, and then either routed experts or one dense FFN. A layer with
routed experts has a router, and may have shared experts that compute every token. Experts are
SwiGLU (Shazeer, 2020, arXiv 2002.05202): three matrices of hidden × expert FFN. A decoupled router
runs before all layers and replaces the routers in them. Shapes come from a Hugging Face
`config.json` or from the shipped table, whose entries name their source.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from moesim.config.suggest import suggest
from moesim.errors import UsageError

__all__ = [
    "DecoupledRouter",
    "Mla",
    "ModelShape",
    "check_shape_name",
    "named_shape",
    "shape_names",
    "shapes_like",
    "stored_bytes",
]

SHAPES = Path(__file__).with_name("shapes.yaml")


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
class DecoupledRouter:
    """A router that chooses the experts of all layers from token ids: one causal transformer block.

    It has its own embeddings, as many as the model. Every head has its own keys and values. The MLP
    has two matrices, or three if `gated`. Every product has a bias, and there are three norms.
    Source: Read-ME (Cai et al., 2024), table 1, and its released code, whose MLP is not gated.
    """

    hidden: int
    heads: int
    ffn: int
    gated: bool = False

    def multiplied_params(self, num_experts: int) -> int:
        """Weights that are multiplied for each token: all but the embeddings."""
        hidden, ffn = self.hidden, self.ffn
        attention = 4 * (hidden * hidden + hidden)
        mlp = (1 + self.gated) * (hidden * ffn + ffn) + ffn * hidden + hidden
        return attention + mlp + hidden * num_experts + num_experts + 3 * hidden


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of one model. Layer numbers are model layers, dense ones included.

    With a decoupled `router`, layers have no router of their own. `shared_ffn` is the total width
    of a layer's shared experts, `dense_ffn` the width of the FFN in `dense_layers`. Layers in
    `windowed_layers` attend to the last `window` positions only. Bits are those of one stored
    number; MXFP4 has 4.25, because a block of 32 weights of 4 bits shares a scale of 8 bits.

    Experts have `expert_bits`, except where `layer_bits` gives other bits for those of a layer, or
    `single_expert_bits` for one expert of a layer. Both are sorted.
    """

    name: str
    num_layers: int
    hidden: int
    expert_ffn: int
    num_experts: int
    top_k: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocabulary: int
    dense_layers: tuple[int, ...] = ()
    shared_ffn: int = 0
    dense_ffn: int = 0
    mla: Mla | None = None
    windowed_layers: tuple[int, ...] = ()
    window: int | None = None
    tied_embeddings: bool = False
    router: DecoupledRouter | None = None
    expert_bits: float = 16
    weight_bits: float = 16
    kv_bits: float = 16
    source: str = ""
    layer_bits: tuple[tuple[int, float], ...] = ()
    single_expert_bits: tuple[tuple[int, int, float], ...] = ()

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """The layers with routed experts, in order."""
        dense = set(self.dense_layers)
        return tuple(layer for layer in range(self.num_layers) if layer not in dense)

    @property
    def expert_params(self) -> int:
        """Weights of one routed expert: gate, up and down projection."""
        return 3 * self.hidden * self.expert_ffn

    @property
    def expert_bytes(self) -> int:
        """Bytes of one routed expert as stored; of the largest, if their sizes differ."""
        if self.mixed_bits:
            return max(self.sizes())
        return stored_bytes(self.expert_params, self.expert_bits)

    @property
    def mixed_bits(self) -> bool:
        """Whether some experts may have other bits than `expert_bits`."""
        return bool(self.layer_bits or self.single_expert_bits)

    @property
    def equal_sizes(self) -> bool:
        """Whether all routed experts take the same bytes."""
        return not self.mixed_bits or len(set(self.sizes())) == 1

    def sizes(self) -> tuple[int, ...]:
        """Return the bytes of each routed expert by key: MoE layer by layer, in order.

        The key of expert e of the l-th MoE layer is `l * num_experts + e`.
        """
        layer_bits = dict(self.layer_bits)
        bits = {
            (layer, expert): layer_bits.get(layer, self.expert_bits)
            for layer in self.moe_layers
            for expert in range(self.num_experts)
        }
        bits.update({(layer, expert): own for layer, expert, own in self.single_expert_bits})
        # A model has few different bits, and fractions are slow.
        nbytes = {own: stored_bytes(self.expert_params, own) for own in set(bits.values())}
        return tuple(nbytes[own] for own in bits.values())

    @property
    def attention_params(self) -> int:
        """Weights of one layer's attention: query, key, value and output projections."""
        if self.mla is None:
            return self.hidden * self.head_dim * 2 * (self.num_heads + self.num_kv_heads)
        # All heads share the down-projection; each has up-projections of its own.
        mla, heads = self.mla, self.num_heads
        query_width = heads * (mla.nope_dim + mla.rope_dim)
        if mla.q_rank is None:
            query = self.hidden * query_width
        else:
            query = mla.q_rank * (self.hidden + query_width)
        down = self.hidden * (mla.kv_rank + mla.rope_dim)
        up = mla.kv_rank * heads * (mla.nope_dim + mla.value_dim)
        return query + down + up + heads * mla.value_dim * self.hidden

    @property
    def front_params(self) -> int:
        """Weights of one MoE layer without its routed experts, norms and router included."""
        router = 0 if self.router else self.hidden * self.num_experts
        return self.attention_params + router + 3 * self.hidden * self.shared_ffn + self.norm_params

    @property
    def dense_params(self) -> int:
        """Weights of one layer without routed experts."""
        return self.attention_params + 3 * self.hidden * self.dense_ffn + self.norm_params

    @property
    def norm_params(self) -> int:
        """Weights of the two norms of one layer."""
        return 2 * self.hidden

    @property
    def router_params(self) -> int:
        """Weights of a decoupled router with its embeddings; 0 if layers have their own routers."""
        if self.router is None:
            return 0
        embeddings = self.vocabulary * self.router.hidden
        return embeddings + self.router.multiplied_params(self.num_experts)

    @property
    def fixed_params(self) -> int:
        """All weights but those of routed experts: they stay in GPU memory during a run."""
        dense = len(self.dense_layers)
        embeddings = (1 if self.tied_embeddings else 2) * self.vocabulary * self.hidden
        layers = (self.num_layers - dense) * self.front_params + dense * self.dense_params
        return layers + embeddings + self.hidden + self.router_params

    @property
    def fixed_bytes(self) -> int:
        """Bytes of all weights but those of routed experts."""
        return stored_bytes(self.fixed_params, self.weight_bits)

    def layers_bytes(self, layers: Iterable[int]) -> int:
        """Return the bytes of some layers without their routed experts.

        The number of layers stands for the end of a step: embeddings, last norm, LM head, and the
        decoupled router.
        """
        params = dict.fromkeys(range(self.num_layers), self.front_params)
        params.update(dict.fromkeys(self.dense_layers, self.dense_params))
        params[self.num_layers] = self.fixed_params - sum(params.values())
        return stored_bytes(sum(params[layer] for layer in set(layers)), self.weight_bits)

    @property
    def total_params(self) -> int:
        """All weights of the model."""
        return self.fixed_params + len(self.moe_layers) * self.num_experts * self.expert_params

    @property
    def kv_bytes_per_token_layer(self) -> int:
        """Bytes of one token in the KV cache of one layer."""
        if self.mla is not None:  # the cache holds the latent vector and the rotary key only
            return stored_bytes(self.mla.kv_rank + self.mla.rope_dim, self.kv_bits)
        return stored_bytes(2 * self.num_kv_heads * self.head_dim, self.kv_bits)

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of one token in the KV cache of all layers and of a decoupled router."""
        return self.num_layers * self.kv_bytes_per_token_layer + self.router_kv_bytes_per_token

    @property
    def router_kv_bytes_per_token(self) -> int:
        """Bytes of one token in the KV cache of a decoupled router."""
        return 0 if self.router is None else stored_bytes(2 * self.router.hidden, self.kv_bits)

    def with_bits(
        self,
        *,
        expert_bits: float | None = None,
        weight_bits: float | None = None,
        kv_bits: float | None = None,
    ) -> ModelShape:
        """Return the same model stored in other precisions; None keeps a precision."""
        return replace(
            self,
            expert_bits=expert_bits or self.expert_bits,
            weight_bits=weight_bits or self.weight_bits,
            kv_bits=kv_bits or self.kv_bits,
        )


def stored_bytes(params: int, bits: float) -> int:
    """Return the bytes of `params` numbers of `bits` each, rounded up to whole bytes."""
    # A fraction is exact; a float would round the product of a large count.
    return -(-(params * Fraction(bits)) // 8)


def shape_names() -> list[str]:
    """Return the names of the shipped models."""
    return sorted(_table())


def shapes_like(num_layers: int, num_experts: int, top_k: int) -> list[str]:
    """Return the shipped models with these numbers of MoE layers and experts, and this top-k."""
    sizes = (num_layers, num_experts, top_k)
    return [
        name
        for name, shape in sorted(_table().items())
        if (len(shape.moe_layers), shape.num_experts, shape.top_k) == sizes
    ]


def named_shape(name: str) -> ModelShape:
    """Return a shipped model. Raise UsageError where there is none of that name."""
    if wrong := check_shape_name(name):
        raise UsageError(wrong)
    return _table()[name]


def check_shape_name(name: str) -> str | None:
    """Return a message if there is no shipped model of this name, else None."""
    if name in _table():
        return None
    hint = suggest(name, shape_names(), rest="there are")
    return (
        f"no model shape is called {name!r}, and it is no path of a config.json{hint} "
        "(see `moesim list models`)"
    )


@cache
def _table() -> dict[str, ModelShape]:
    # Part of the package, so it needs none of the checks of a user's file.
    raw = yaml.safe_load(SHAPES.read_text(encoding="utf-8"))
    return {name: _from_entry(name, entry) for name, entry in raw.items()}


def _from_entry(name: str, entry: dict[str, Any]) -> ModelShape:
    fields: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in entry.items()
        if key not in ("mla", "router")
    }
    mla = Mla(**entry["mla"]) if "mla" in entry else None
    router = DecoupledRouter(**entry["router"]) if "router" in entry else None
    return ModelShape(name=name, mla=mla, router=router, **fields)
