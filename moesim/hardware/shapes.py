"""The sizes of a mixture-of-experts model, for costing: how many weights sit where.

A decoder layer has attention and then either routed experts (with a router, and perhaps shared
experts that see every token) or one dense FFN. Experts are SwiGLU: three matrices of
hidden × expert FFN. A decoupled router stands before all layers instead of in each. Shapes come
from a Hugging Face `config.json` or from the shipped table, whose entries name their source.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
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
    "load_shape",
    "named_shape",
    "shape_from_config",
    "shape_names",
]

SHAPES = Path(__file__).with_name("shapes.yaml")
EXCHANGED = ("moesim_readme", "moesim_gated")
"""The `model_type`s of dense models (`base`) whose FFNs were exchanged for experts: as Read-ME
does, and with any gate."""


@dataclass(frozen=True, slots=True)
class Mla:
    """Multi-head latent attention: keys and values kept as one low-rank vector a token.

    Source: DeepSeek-V2 (Liu et al., 2024), section 2.1.
    """

    kv_rank: int
    rope_dim: int
    nope_dim: int
    value_dim: int
    q_rank: int | None = None


@dataclass(frozen=True, slots=True)
class DecoupledRouter:
    """A router that reads token ids and chooses for all layers: one causal transformer block.

    It has embeddings of its own (as many as the backbone), all heads with keys and values of
    their own, an MLP of two matrices (three if `gated`), biases in every product and three norms.
    Source: Read-ME (Cai et al., 2024), table 1, and its released code, whose MLP is not gated.
    """

    hidden: int
    heads: int
    ffn: int
    gated: bool = False

    def multiplied_params(self, num_experts: int) -> int:
        """Weights that each token meets: all but the embeddings, which are looked up."""
        hidden, ffn = self.hidden, self.ffn
        attention = 4 * (hidden * hidden + hidden)
        mlp = (1 + self.gated) * (hidden * ffn + ffn) + ffn * hidden + hidden
        return attention + mlp + hidden * num_experts + num_experts + 3 * hidden


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of one model. Layer numbers are model layers, dense ones included.

    With a decoupled `router` layers have none of their own. `shared_ffn` is the total width of a
    layer's shared experts, `dense_ffn` that of the FFN in `dense_layers`; `windowed_layers` attend
    to the last `window` positions only. The bits are those of a stored weight (4.25 for MXFP4:
    4 bits and 8 for every block of 32).
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
        """Bytes of one routed expert as stored."""
        return stored_bytes(self.expert_params, self.expert_bits)

    @property
    def attention_params(self) -> int:
        """Weights of one layer's attention: query, key, value and output projections."""
        if self.mla is None:
            return self.hidden * self.head_dim * 2 * (self.num_heads + self.num_kv_heads)
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
        """Weights of one MoE layer without its routed experts: attention, its router, shared."""
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
        """Weights of a decoupled router, its embeddings included; 0 if layers have their own."""
        if self.router is None:
            return 0
        embeddings = self.vocabulary * self.router.hidden
        return embeddings + self.router.multiplied_params(self.num_experts)

    @property
    def fixed_params(self) -> int:
        """All weights but the routed experts': embeddings, LM head and router included."""
        dense = len(self.dense_layers)
        embeddings = (1 if self.tied_embeddings else 2) * self.vocabulary * self.hidden
        layers = (self.num_layers - dense) * self.front_params + dense * self.dense_params
        return layers + embeddings + self.hidden + self.router_params

    @property
    def fixed_bytes(self) -> int:
        """Bytes of all weights but the routed experts'."""
        return stored_bytes(self.fixed_params, self.weight_bits)

    @property
    def total_params(self) -> int:
        """All weights."""
        return self.fixed_params + len(self.moe_layers) * self.num_experts * self.expert_params

    @property
    def kv_bytes_per_token_layer(self) -> int:
        """Bytes that one token leaves in the KV cache of one layer."""
        if self.mla is not None:
            return stored_bytes(self.mla.kv_rank + self.mla.rope_dim, self.kv_bits)
        return stored_bytes(2 * self.num_kv_heads * self.head_dim, self.kv_bits)

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes that one token leaves in the KV cache of all layers and of a decoupled router."""
        return self.num_layers * self.kv_bytes_per_token_layer + self.router_kv_bytes_per_token

    @property
    def router_kv_bytes_per_token(self) -> int:
        """Bytes that one token leaves in the KV cache of a decoupled router."""
        return 0 if self.router is None else stored_bytes(2 * self.router.hidden, self.kv_bits)

    def with_bits(
        self,
        *,
        expert_bits: float | None = None,
        weight_bits: float | None = None,
        kv_bits: float | None = None,
    ) -> ModelShape:
        """The same model stored with other precisions; None keeps one."""
        return replace(
            self,
            expert_bits=expert_bits or self.expert_bits,
            weight_bits=weight_bits or self.weight_bits,
            kv_bits=kv_bits or self.kv_bits,
        )


def stored_bytes(params: int, bits: float) -> int:
    """Whole bytes of `params` numbers of `bits` each, rounded up."""
    return -(-(params * Fraction(bits)) // 8)


def shape_names() -> list[str]:
    """The models of the shipped table."""
    return sorted(_table())


def shapes_like(num_layers: int, num_experts: int, top_k: int) -> list[str]:
    """Return the shipped models with this many MoE layers and experts, and this top-k."""
    wanted = (num_layers, num_experts, top_k)
    return [
        name
        for name, shape in sorted(_table().items())
        if (len(shape.moe_layers), shape.num_experts, shape.top_k) == wanted
    ]


def named_shape(name: str) -> ModelShape:
    """A model of the shipped table. Raises UsageError where there is none of that name."""
    if wrong := check_shape_name(name):
        raise UsageError(wrong)
    return _table()[name]


def check_shape_name(name: str) -> str | None:
    """What is wrong with a model's name; None if the table has it."""
    if name in _table():
        return None
    hint = suggest(name, shape_names(), rest="there are")
    return (
        f"no model shape is called {name!r}, and it is no path of a config.json{hint} "
        "(see `moesim list models`)"
    )


def load_shape(name_or_path: str | Path) -> ModelShape:
    """A model of the shipped table by name, or of a `config.json` by path (ending in .json).

    Raises:
        UsageError: no such name or file, or the file describes no known kind of model.
    """
    text = str(name_or_path)
    if not text.endswith(".json"):
        return named_shape(text)
    try:
        config = json.loads(Path(text).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{text}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{text}: is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise UsageError(f"{text}: must hold a JSON object")
    try:
        return shape_from_config(config)
    except UsageError as error:
        raise UsageError(f"{text}: {error}") from error


@cache
def _table() -> dict[str, ModelShape]:
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


def shape_from_config(config: Mapping[str, Any], name: str | None = None) -> ModelShape:
    """The shape that a Hugging Face `config.json` describes.

    Read are the spellings of Mixtral, Phi-3.5-MoE, Qwen2/3-MoE, OLMoE, GraniteMoE, DeepSeek V2/V3
    and GPT-OSS (transformers 5.23), and this project's own, dense models (`base`) whose FFNs were
    exchanged for experts.
    `name` overrides the model's own.

    Raises:
        UsageError: a size is missing or no positive integer, or the model has no routed experts.
    """
    inner = config.get("text_config")
    exchanged = config.get("model_type") in EXCHANGED
    if exchanged:
        read = _Config(_exchanged(config))
    else:
        read = _Config({**inner, **_named(config)} if isinstance(inner, dict) else config)
    num_layers = read.size("num_hidden_layers")
    num_heads = read.size("num_attention_heads")
    hidden = read.size("hidden_size")
    ffn = read.optional("moe_intermediate_size")
    dense_ffn = read.size("intermediate_size") if ffn else 0
    dense_layers = read.dense_layers(num_layers)
    windowed, window = read.windowed_layers(num_layers)
    return ModelShape(
        name=name or read.name(),
        num_layers=num_layers,
        hidden=hidden,
        expert_ffn=ffn or read.size("intermediate_size"),
        num_experts=read.size("num_local_experts", "num_experts", "n_routed_experts"),
        top_k=read.size("num_experts_per_tok", "experts_per_token"),
        num_heads=num_heads,
        num_kv_heads=read.optional("num_key_value_heads") or num_heads,
        head_dim=read.optional("head_dim") or max(1, hidden // num_heads),
        vocabulary=read.size("vocab_size"),
        dense_layers=dense_layers,
        shared_ffn=read.shared_ffn(),
        dense_ffn=dense_ffn if dense_layers else 0,
        mla=read.mla(),
        windowed_layers=windowed,
        window=window,
        tied_embeddings=bool(read.values.get("tie_word_embeddings", False)),
        router=_router(config) if exchanged else None,
        expert_bits=read.expert_bits(),
        weight_bits=read.weight_bits(),
        source="config.json",
    )


def _named(config: Mapping[str, Any]) -> dict[str, Any]:
    """What an outer config says for its text part."""
    kept = ("_name_or_path", "dtype", "torch_dtype", "quantization_config", "tie_word_embeddings")
    return {key: config[key] for key in kept if key in config}


def _exchanged(config: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes of a dense model whose every FFN became experts, spelled as Qwen's are."""
    base = config.get("base")
    if not isinstance(base, dict):
        raise UsageError(f"the model configuration has base = {base!r}, no model's configuration")
    return {
        **base,
        **{key: config[key] for key in ("_name_or_path", "dtype", "torch_dtype") if key in config},
        "model_type": config.get("model_type"),
        "num_experts": config.get("num_experts"),
        "num_experts_per_tok": config.get("num_experts_per_tok"),
        "moe_intermediate_size": _Config(config).size("expert_ffn"),
        "shared_expert_intermediate_size": config.get("shared_ffn"),
    }


def _router(config: Mapping[str, Any]) -> DecoupledRouter | None:
    """The router before all layers; None if each layer has its own (or a table of ids, which is
    costed as one)."""
    routing, sizes = config.get("routing"), config.get("router")
    if routing == "layerwise" or config.get("routed_by") in ("tokens", "tasks"):
        return None
    if routing != "decoupled" or not isinstance(sizes, dict):
        raise UsageError(
            f"the model configuration has routing = {routing!r}, router = {sizes!r}; routing is "
            "layerwise, or decoupled with the sizes of its router"
        )
    read = _Config(sizes)
    return DecoupledRouter(
        hidden=read.size("hidden"),
        heads=read.size("heads"),
        ffn=read.size("ffn"),
        gated=sizes.get("mlp") == "swiglu",
    )


class _Config:
    """A `config.json` with its families' spellings of the same sizes."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    def optional(self, *keys: str) -> int | None:
        for key in keys:
            value = self.values.get(key)
            if value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise UsageError(f"the model configuration has {key} = {value!r}, no valid size")
            if value:
                return value
        return None

    def size(self, *keys: str) -> int:
        value = self.optional(*keys)
        if value is None:
            kind = self.values.get("model_type", "unknown")
            raise UsageError(
                f"the model configuration (model_type {kind!r}) lacks {' or '.join(keys)}; "
                "only decoders with routed experts have a shape here; "
                f"name a shipped model instead, one of {', '.join(shape_names())}"
            )
        return value

    def name(self) -> str:
        return str(self.values.get("_name_or_path") or self.values.get("model_type") or "unknown")

    def dense_layers(self, num_layers: int) -> tuple[int, ...]:
        """DeepSeek's first layers, or Qwen's `mlp_only_layers` and `decoder_sparse_step`."""
        kinds = self.values.get("mlp_layer_types")
        if isinstance(kinds, list):
            return tuple(i for i, kind in enumerate(kinds[:num_layers]) if kind == "dense")
        first = self.optional("first_k_dense_replace") or 0
        every = self.optional("moe_layer_freq") or 1
        step = self.optional("decoder_sparse_step") or 1
        only = self.values.get("mlp_only_layers") or ()
        return tuple(
            layer
            for layer in range(num_layers)
            if layer < first or layer % every or (layer + 1) % step or layer in only
        )

    def windowed_layers(self, num_layers: int) -> tuple[tuple[int, ...], int | None]:
        window = self.optional("sliding_window")
        if window is None or self.values.get("use_sliding_window") is False:
            return (), None
        kinds = self.values.get("layer_types") or ["sliding_attention"] * num_layers
        windowed = tuple(i for i, kind in enumerate(kinds[:num_layers]) if "sliding" in str(kind))
        return windowed, window if windowed else None

    def shared_ffn(self) -> int:
        """One width (Qwen) or a number of experts of the routed width (DeepSeek)."""
        one = self.optional("shared_expert_intermediate_size", "shared_intermediate_size")
        if one is not None:
            return one
        return (self.optional("n_shared_experts") or 0) * (
            self.optional("moe_intermediate_size") or 0
        )

    def mla(self) -> Mla | None:
        rank = self.optional("kv_lora_rank")
        if rank is None:
            return None
        return Mla(
            kv_rank=rank,
            rope_dim=self.size("qk_rope_head_dim"),
            nope_dim=self.size("qk_nope_head_dim"),
            value_dim=self.size("v_head_dim"),
            q_rank=self.optional("q_lora_rank"),
        )

    def weight_bits(self) -> float:
        dtype = str(self.values.get("dtype") or self.values.get("torch_dtype") or "bfloat16")
        return 32 if "float32" in dtype else 16

    def expert_bits(self) -> float:
        """Experts are what quantised checkpoints quantise; other weights are left as they are."""
        how = self.values.get("quantization_config")
        if not isinstance(how, dict):
            return self.weight_bits()
        method = how.get("quant_method")
        bits = how.get("bits")
        if method == "mxfp4":
            return 4.25
        if method == "fp8":
            return 8
        if isinstance(bits, int | float) and not isinstance(bits, bool) and 0 < bits <= 32:
            return bits
        return self.weight_bits()
