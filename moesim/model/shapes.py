"""The shape of a mixture-of-experts model: its sizes, and the weights of each part.

A decoder layer has attention, and then either routed experts or one dense FFN. A layer with
routed experts has a router, and may have shared experts that compute every token. Experts are
SwiGLU (Shazeer, 2020, arXiv 2002.05202), three matrices of hidden × expert FFN, or have two
matrices. A decoupled router runs before all layers and replaces the routers in them. Where layers
differ in more than this, the shape lists their kinds (`moesim.model.layers`). Shapes come from a
Hugging Face `config.json`, from the header of a GGUF file, or from the shipped table, whose entries
name their source.

Weights are those of all matrices and convolutions, and of two norms a layer and one at the end.
Other vectors (biases, norms of queries and keys) are left out: they are under 0.1 % of a published
model, and take no time of their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any, Final

from moesim.config.shipped_yaml import load_shipped
from moesim.config.suggest import suggest
from moesim.errors import UsageError
from moesim.model.layers import LayerKind, Mla

__all__ = [
    "DecoupledRouter",
    "LayerKind",
    "Mla",
    "ModelShape",
    "check_shape_name",
    "named_shape",
    "shape_aliases",
    "shape_names",
    "shapes_like",
    "stored_bytes",
]

SHAPES = Path(__file__).with_name("shapes.yaml")


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
    `single_expert_bits` for one expert of a layer. Both are sorted. Embeddings and LM head have
    `weight_bits` unless they have their own; tied embeddings are stored once, as the head.

    Families name the blocks that most bytes of experts and of other weights have, such as
    `k-quant`; "" where they are not known.

    Experts have `expert_matrices` matrices between `expert_width` (the hidden size, if None) and
    `expert_ffn`. `kinds` and `layer_kinds`, the number of each layer's kind, replace the sizes of
    attention and dense FFNs where both are given. `dense_layers` are always all layers without
    routed experts. `lookup_params` are weights outside the layers of which a token reads few rows,
    like the table of an n-gram embedding.
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
    embedding_bits: float | None = None
    head_bits: float | None = None
    expert_family: str = ""
    weight_family: str = ""
    expert_matrices: int = 3
    expert_width: int | None = None
    kinds: tuple[LayerKind, ...] = ()
    layer_kinds: tuple[int, ...] = ()
    lookup_params: int = 0

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """The layers with routed experts, in order."""
        dense = set(self.dense_layers)
        return tuple(layer for layer in range(self.num_layers) if layer not in dense)

    @property
    def expert_params(self) -> int:
        """Weights of one routed expert: its projections up (one, or gate and up) and down."""
        return self.expert_matrices * (self.expert_width or self.hidden) * self.expert_ffn

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

    def kind(self, layer: int) -> LayerKind:
        """Return what a model layer is made of."""
        if self.kinds:
            return self.kinds[self.layer_kinds[layer]]
        mla, routed = self.mla, layer not in self.dense_layers
        return LayerKind(
            params=self.front_params if routed else self.dense_params,
            routed=routed,
            heads=self.num_heads,
            key_dim=self.head_dim,
            value_dim=self.head_dim,
            # Latent attention caches the latent vector and the rotary key only.
            kv_numbers=mla.kv_rank + mla.rope_dim if mla else 2 * self.num_kv_heads * self.head_dim,
            window=self.window if layer in self.windowed_layers else None,
            mla=mla,
        )

    def all_kinds(self) -> tuple[LayerKind, ...]:
        """Return the kind of each layer; equal layers share one object."""
        if self.kinds:
            return tuple(self.kinds[number] for number in self.layer_kinds)
        dense, windowed = set(self.dense_layers), set(self.windowed_layers)
        first: dict[tuple[bool, bool], LayerKind] = {}
        for layer in range(self.num_layers):
            key = (layer in dense, layer in windowed)
            if key not in first:
                first[key] = self.kind(layer)
        return tuple(first[layer in dense, layer in windowed] for layer in range(self.num_layers))

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
        layers = sum(kind.params for kind in self.all_kinds())
        return layers + self.end_params

    @property
    def end_params(self) -> int:
        """Weights outside the layers: embeddings, last norm, LM head, and a decoupled router."""
        embeddings = (1 if self.tied_embeddings else 2) * self.vocabulary * self.hidden
        return embeddings + self.lookup_params + self.hidden + self.router_params

    @property
    def fixed_bytes(self) -> int:
        """Bytes of all weights but those of routed experts."""
        if self.plain_ends:  # rounded up once
            return stored_bytes(self.fixed_params, self.weight_bits)
        return stored_bytes(self.fixed_params - self.end_params, self.weight_bits) + self.end_bytes

    @property
    def plain_ends(self) -> bool:
        """Whether embeddings and LM head are stored as other weights are."""
        return self.embedding_bits is None and self.head_bits is None

    @property
    def end_bytes(self) -> int:
        """Bytes of the end of a step: embeddings, last norm, LM head, and the decoupled router."""
        if self.plain_ends:
            return stored_bytes(self.end_params, self.weight_bits)
        matrix = self.vocabulary * self.hidden
        embedding = 0 if self.tied_embeddings else stored_bytes(matrix, self.bits_of_embedding)
        embedding += stored_bytes(self.lookup_params, self.bits_of_embedding)
        rest = stored_bytes(self.hidden + self.router_params, self.weight_bits)
        return embedding + stored_bytes(matrix, self.bits_of_head) + rest

    @property
    def bits_of_embedding(self) -> float:
        """Bits of a stored weight of the embeddings."""
        if self.tied_embeddings:
            return self.bits_of_head
        return self.weight_bits if self.embedding_bits is None else self.embedding_bits

    @property
    def bits_of_head(self) -> float:
        """Bits of a stored weight of the LM head."""
        return self.weight_bits if self.head_bits is None else self.head_bits

    def layers_bytes(self, layers: Iterable[int]) -> int:
        """Return the bytes of some layers without their routed experts.

        The number of layers stands for the end of a step: embeddings, last norm, LM head, and the
        decoupled router.
        """
        params = [kind.params for kind in self.all_kinds()]
        asked = set(layers)
        if self.plain_ends:
            params.append(self.end_params)
            return stored_bytes(sum(params[layer] for layer in asked), self.weight_bits)
        ends = self.end_bytes if self.num_layers in asked else 0
        asked.discard(self.num_layers)
        return stored_bytes(sum(params[layer] for layer in asked), self.weight_bits) + ends

    @property
    def total_params(self) -> int:
        """All weights of the model."""
        return self.fixed_params + len(self.moe_layers) * self.num_experts * self.expert_params

    def kv_bytes_of(self, layer: int) -> int:
        """Return the bytes of one token in the KV cache of a layer; 0 if it attends to none."""
        return stored_bytes(self.kind(layer).cached_numbers, self.kv_bits)

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of one token in the KV cache of all layers and of a decoupled router."""
        layers = sum(stored_bytes(kind.cached_numbers, self.kv_bits) for kind in self.all_kinds())
        return layers + self.router_kv_bytes_per_token

    def cache_bytes(self, tokens: int, batch: int) -> int:
        """Return the bytes of KV entries that an engine keeps of a sequence of some tokens.

        A layer with a window keeps the window, and a batch of tokens that are computed together.
        """
        layers = sum(
            (min(tokens, kind.window + batch) if kind.window else tokens)
            * stored_bytes(kind.cached_numbers, self.kv_bits)
            for kind in self.all_kinds()
        )
        return layers + tokens * self.router_kv_bytes_per_token

    @property
    def state_bytes_per_sequence(self) -> int:
        """Bytes of the recurrent states of one sequence, whatever its length."""
        return sum(kind.state_bytes for kind in self.all_kinds())

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
        """Return the same model stored in other precisions; None keeps a precision.

        `expert_bits` are those of all experts, and `weight_bits` also those of embeddings and head.
        """
        changed: dict[str, Any] = {}
        if expert_bits:
            changed.update(expert_bits=expert_bits, layer_bits=(), expert_family="")
            changed["single_expert_bits"] = ()
        if weight_bits:
            changed.update(weight_bits=weight_bits, weight_family="")
            changed.update(embedding_bits=None, head_bits=None)
        if kv_bits:
            changed["kv_bits"] = kv_bits
        return replace(self, **changed)


def stored_bytes(params: int, bits: float) -> int:
    """Return the bytes of `params` numbers of `bits` each, rounded up to whole bytes."""
    # A fraction is exact; a float would round the product of a large count.
    return -(-(params * Fraction(bits)) // 8)


def shape_names() -> list[str]:
    """Return the names of the shipped models."""
    return sorted(_entries())


def shapes_like(num_layers: int, num_experts: int, top_k: int) -> list[str]:
    """Return the shipped models with these numbers of MoE layers and experts, and this top-k."""
    sizes = (num_layers, num_experts, top_k)
    return [
        name
        for name, shape in sorted(_table().items())
        if (len(shape.moe_layers), shape.num_experts, shape.top_k) == sizes
    ]


def named_shape(name: str) -> ModelShape:
    """Return a shipped model by its name or an alias.

    Case, blanks, hyphens and underscores do not count, nor do an owner before a slash and endings
    of tuned versions (`-Instruct`, `-it`, `-2507`). Raise UsageError without such a model.
    """
    found = _found(name)
    if found is None:
        raise UsageError(check_shape_name(name) or "")
    return _table()[found]


def shape_aliases(name: str) -> list[str]:
    """Return the other names of a shipped model."""
    return [str(alias) for alias in _entries()[name].get("aliases", ())]


def check_shape_name(name: str) -> str | None:
    """Return a message if there is no shipped model of this name, else None."""
    if _found(name) is not None:
        return None
    hint = suggest(name, shape_names(), rest="there are")
    return (
        f"no model shape is called {name!r}, and it is no path of a config.json{hint} "
        "(see `moesim list models`)"
    )


@cache
def _entries() -> dict[str, dict[str, Any]]:
    # Part of the package, so it needs none of the checks of a user's file.
    entries: dict[str, dict[str, Any]] = load_shipped(SHAPES)
    return entries


def _found(name: str) -> str | None:
    """Return the entry of a name, with as few endings left out as possible."""
    words = _WORDS.findall(name.lower().rpartition("/")[2])
    while words:
        key = "".join(words)
        if key in _names():
            return _names()[key]
        if not _ENDING.search(key):
            return None
        if words[-1] in _TUNED or _DATE.fullmatch(words[-1]):
            words.pop()
        else:  # `Qwen3-30B-A3B-Instruct2507`
            words = [_ENDING.sub("", key)]
    return None


_WORDS: Final = re.compile(r"[a-z0-9.]+")
_TUNED: Final = ("instruct", "inst", "it", "chat", "thinking", "base", "gguf", "hf", "v0.1")
_DATE: Final = re.compile(r"\d{4}")
_ENDING: Final = re.compile(rf"(?:{'|'.join(map(re.escape, _TUNED))}|\d{{4}})$")


@cache
def _names() -> dict[str, str]:
    """Return the name of the entry for each name and alias, without blanks and hyphens."""
    return {
        "".join(_WORDS.findall(spelling.lower())): name
        for name in _entries()
        for spelling in (name, *shape_aliases(name))
    }


@cache
def _table() -> dict[str, ModelShape]:
    return {name: _from_entry(name, entry) for name, entry in _entries().items()}


def _from_entry(name: str, entry: dict[str, Any]) -> ModelShape:
    if "config" in entry:
        from moesim.model.hf_config import shape_from_config  # which needs this module

        shape = shape_from_config(entry["config"], name)
        return replace(shape, source=entry["source"])
    fields: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in entry.items()
        if key not in ("mla", "router", "kinds", "aliases")
    }
    mla = Mla(**entry["mla"]) if "mla" in entry else None
    router = DecoupledRouter(**entry["router"]) if "router" in entry else None
    kinds = tuple(LayerKind(**kind) for kind in entry.get("kinds", ()))
    return ModelShape(name=name, mla=mla, router=router, kinds=kinds, **fields)
