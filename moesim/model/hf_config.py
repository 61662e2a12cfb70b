"""A model's `config.json`, as published on Hugging Face, read into a `ModelShape`.

Families of models name the same size differently, and state some sizes only through others. Each
is read under all its names; a value of the wrong kind is an error, whichever the family.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from moesim.errors import UsageError, shown
from moesim.files import as_path
from moesim.inputs import read_json
from moesim.model.shapes import DecoupledRouter, Mla, ModelShape, named_shape, shape_names

__all__ = ["load_config", "load_shape", "shape_from_config"]

# A file may state any number, and lists as long as the layers must fit into memory.
MOST_LAYERS: Final = 10_000
MOST_SIZE: Final = 10_000_000
EXCHANGED = ("moesim_readme", "moesim_gated")
"""The `model_type`s of this project: dense models (`base`) whose FFNs were replaced by experts, as
in Read-ME or with another gate."""


def load_shape(name_or_path: str | Path) -> ModelShape:
    """Return a shipped model by name, or the model of a `config.json` by path (ending in .json).

    Raises:
        UsageError: there is no such name or file, or the file describes no model that is read.
    """
    text = str(name_or_path)
    if not text.endswith(".json"):
        return named_shape(text)
    config = load_config(text)
    try:
        return shape_from_config(config)
    except UsageError as error:
        raise UsageError(f"{text}: {error}") from error


def load_config(path: str | Path) -> dict[str, Any]:
    """Return the content of a `config.json`. Raise UsageError where it cannot be read."""
    try:
        config = read_json(as_path(path))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{path}: is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise UsageError(f"{path}: must hold a JSON object")
    return config


def shape_from_config(config: Mapping[str, Any], name: str | None = None) -> ModelShape:
    """Return the shape that a Hugging Face `config.json` describes.

    The key names of Mixtral, Phi-3.5-MoE, Qwen2/3-MoE, OLMoE, GraniteMoE, DeepSeek V2/V3 and
    GPT-OSS (transformers 5.23) are read, and those of this project's own models (`EXCHANGED`).
    `name` replaces the model's own name.

    Raises:
        UsageError: a size is missing or no positive integer, or the model has no routed experts.
    """
    inner = config.get("text_config")  # of models that read images too
    exchanged = config.get("model_type") in EXCHANGED
    if exchanged:
        read = _Config(_exchanged(config))
    else:
        read = _Config({**inner, **_outer(config)} if isinstance(inner, dict) else config)
    num_layers = read.size("num_hidden_layers", most=MOST_LAYERS)
    num_experts = read.size("num_local_experts", "num_experts", "n_routed_experts", most=65_535)
    num_heads = read.size("num_attention_heads")
    hidden = read.size("hidden_size")
    # Where both widths are given, `intermediate_size` is that of dense FFNs, else of experts.
    ffn = read.optional("moe_intermediate_size")
    dense_ffn = read.size("intermediate_size") if ffn else 0
    dense_layers = read.dense_layers(num_layers)
    if len(dense_layers) == num_layers:
        raise UsageError("the model configuration has no layer with routed experts")
    windowed, window = read.windowed_layers(num_layers)
    return ModelShape(
        name=name or read.name(),
        num_layers=num_layers,
        hidden=hidden,
        expert_ffn=ffn or read.size("intermediate_size"),
        num_experts=num_experts,
        top_k=read.size("num_experts_per_tok", "experts_per_token", most=num_experts),
        num_heads=num_heads,
        # Families that state neither share no keys between heads, and split the hidden size evenly.
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


def _outer(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of an outer configuration that hold for its `text_config` too."""
    keys = ("_name_or_path", "dtype", "torch_dtype", "quantization_config", "tie_word_embeddings")
    return {key: config[key] for key in keys if key in config}


def _exchanged(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sizes of a model in `EXCHANGED` under the key names of Qwen's models."""
    base = config.get("base")
    if not isinstance(base, dict):
        raise UsageError(
            f"the model configuration has base = {shown(base)}, no model's configuration"
        )
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
    """Return the decoupled router of a model in `EXCHANGED`; None if each layer has its own.

    A router that looks ids up in a table costs as much as the router of a layer, by assumption.
    """
    routing, sizes = config.get("routing"), config.get("router")
    if routing == "layerwise" or config.get("routed_by") in ("tokens", "tasks"):
        return None
    if routing != "decoupled" or not isinstance(sizes, dict):
        raise UsageError(
            f"the model configuration has routing = {shown(routing)}, router = {shown(sizes)}; "
            "routing is layerwise, or decoupled with the sizes of its router"
        )
    read = _Config(sizes)
    return DecoupledRouter(
        hidden=read.size("hidden"),
        heads=read.size("heads"),
        ffn=read.size("ffn"),
        gated=sizes.get("mlp") == "swiglu",
    )


def _is_count(value: Any) -> bool:
    # JSON's `true` is an `int` in Python, and no count.
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_list_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list | tuple) and all(map(fits, value))


_KINDS: Final[dict[str, tuple[str, Callable[[Any], bool]]]] = {
    "model_type": ("text", _is_text),
    "_name_or_path": ("text", _is_text),
    "layer_types": ("a list of texts", _is_list_of(_is_text)),
    "mlp_layer_types": ("a list of texts", _is_list_of(_is_text)),
    "mlp_only_layers": ("a list of layer numbers", _is_list_of(_is_count)),
    "use_sliding_window": ("true or false", lambda value: isinstance(value, bool)),
    "tie_word_embeddings": ("true or false", lambda value: isinstance(value, bool)),
    "text_config": ("a JSON object", lambda value: isinstance(value, Mapping)),
    "quantization_config": ("a JSON object", lambda value: isinstance(value, Mapping)),
}
"""The rule of each value that is not a size; sizes are checked when they are read."""


class _Config:
    """The values of a `config.json`, whose key names differ from family to family.

    Each method raises `UsageError` for a value that is missing or wrong.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values
        for key, (rule, fits) in _KINDS.items():
            value = values.get(key)
            if value is not None and not fits(value):
                raise UsageError(f"the model configuration has {key} = {shown(value)}, not {rule}")

    def optional(self, *keys: str, most: int = MOST_SIZE) -> int | None:
        """Return the first of `keys` that holds a positive integer; None where there is none."""
        for key in keys:
            value = self.values.get(key)
            if value is None:
                continue
            if not _is_count(value):
                raise UsageError(
                    f"the model configuration has {key} = {shown(value)}, no valid size"
                )
            if value > most:
                raise UsageError(
                    f"the model configuration has {key} = {shown(value)}, which is too large; "
                    f"at most {most:,} are read"
                )
            if value:  # 0 says that the model has no such part
                return int(value)
        return None

    def size(self, *keys: str, most: int = MOST_SIZE) -> int:
        """Return the first of `keys` that holds a positive integer. Raise UsageError without."""
        value = self.optional(*keys, most=most)
        if value is None:
            kind = self.values.get("model_type", "unknown")
            raise UsageError(
                f"the model configuration (model_type {shown(kind)}) lacks {' or '.join(keys)}; "
                "only decoders with routed experts are supported; "
                f"name a shipped model instead, one of {', '.join(shape_names())}"
            )
        return value

    def name(self) -> str:
        return str(self.values.get("_name_or_path") or self.values.get("model_type") or "unknown")

    def dense_layers(self, num_layers: int) -> tuple[int, ...]:
        """Return the layers without routed experts, as DeepSeek or as Qwen name them."""
        if kinds := self.kinds("mlp_layer_types", num_layers):
            return tuple(i for i, kind in enumerate(kinds) if kind == "dense")
        # DeepSeek counts layers from 0, Qwen from 1, hence `layer + 1` below.
        first = self.optional("first_k_dense_replace") or 0
        every = self.optional("moe_layer_freq") or 1
        step = self.optional("decoder_sparse_step") or 1
        only = set(self.values.get("mlp_only_layers") or ())
        return tuple(
            layer
            for layer in range(num_layers)
            if layer < first or layer % every or (layer + 1) % step or layer in only
        )

    def kinds(self, key: str, num_layers: int) -> list[str]:
        """Return the kind of each layer; empty where the configuration does not list them."""
        kinds: list[str] = self.values.get(key) or []
        if kinds and len(kinds) < num_layers:
            raise UsageError(
                f"the model configuration has {key} of {len(kinds)} layers, and "
                f"num_hidden_layers = {num_layers}"
            )
        return kinds[:num_layers]

    def windowed_layers(self, num_layers: int) -> tuple[tuple[int, ...], int | None]:
        """Return the layers with sliding-window attention, and the window in tokens."""
        window = self.optional("sliding_window")
        if window is None or self.values.get("use_sliding_window") is False:
            return (), None
        # Without `layer_types`, the window holds for all layers.
        kinds = self.kinds("layer_types", num_layers) or ["sliding_attention"] * num_layers
        windowed = tuple(i for i, kind in enumerate(kinds) if "sliding" in kind)
        return windowed, window if windowed else None

    def shared_ffn(self) -> int:
        """Return the total width of a layer's shared experts; 0 where it has none.

        Qwen states the width; DeepSeek states the number of experts, each as wide as a routed one.
        """
        width = self.optional("shared_expert_intermediate_size", "shared_intermediate_size")
        if width is not None:
            return width
        return (self.optional("n_shared_experts") or 0) * (
            self.optional("moe_intermediate_size") or 0
        )

    def mla(self) -> Mla | None:
        """Return the sizes of latent attention; None for a model without it."""
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
        """Return the bits of a stored weight; older configurations name the type `torch_dtype`."""
        dtype = str(self.values.get("dtype") or self.values.get("torch_dtype") or "bfloat16")
        return 32 if "float32" in dtype else 16

    def expert_bits(self) -> float:
        """Return the bits of a stored expert weight; other weights keep `weight_bits`."""
        quantization = self.values.get("quantization_config")
        if not isinstance(quantization, dict):
            return self.weight_bits()
        method = quantization.get("quant_method")
        bits = quantization.get("bits")
        if method == "mxfp4":
            return 4.25  # a block of 32 weights of 4 bits shares a scale of 8 bits
        if method == "fp8":
            return 8
        if isinstance(bits, int | float) and not isinstance(bits, bool) and 0 < bits <= 32:
            return bits
        # Unknown formats are costed as unquantised: experts may then be too large, never too small.
        return self.weight_bits()
