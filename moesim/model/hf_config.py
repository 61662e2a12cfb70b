"""A model's `config.json`, as published on Hugging Face, read into a `ModelShape`.

Families of models name the same size differently, and state some sizes only through others. Each
is read under all its names; a value of the wrong kind is an error, whichever the family.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moesim.errors import UsageError, shown
from moesim.files import as_path
from moesim.inputs import read_json
from moesim.model.config_values import MOST_LAYERS, Values
from moesim.model.families import FAMILIES, Family
from moesim.model.shapes import DecoupledRouter, ModelShape, named_shape

__all__ = ["load_config", "load_shape", "shape_from_config"]

EXCHANGED = ("moesim_readme", "moesim_gated")
"""The `model_type`s of this project: dense models (`base`) whose FFNs were replaced by experts, as
in Read-ME or with another gate."""

NO_DECODERS = ("openai_privacy_filter",)
"""The `model_type`s with routed experts whose models generate no text token by token."""


def load_shape(name_or_path: str | Path) -> ModelShape:
    """Return a shipped model by name, or the model of a file by its path.

    The file is a `config.json` (ending in .json) or a GGUF file (.gguf), of which only the header
    is read.

    Raises:
        UsageError: there is no such name or file, or the file describes no model that is read.
    """
    text = str(name_or_path)
    if text.endswith(".gguf"):
        from moesim.model.gguf_header import gguf_shape

        return gguf_shape(text)
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

    The sizes are those of the model that transformers builds from it. A configuration of an unknown
    family is read if all its keys are those of known ones and its layers are all alike. For models
    with a `text_config`, this is the text part. Experts and weights have the precision of the
    configuration, or 16 bits where it is unknown.

    Raises:
        UsageError: a size is missing or no positive integer, the model has no routed experts, or a
            key is not understood.
    """
    inner = config.get("text_config")  # of models that read images too
    if config.get("model_type") in EXCHANGED:
        return _read(Values(_exchanged(config)), name, _router(config))
    values = {**inner, **_outer(config)} if isinstance(inner, dict) else config
    read = Values(values)
    if read.model_type in NO_DECODERS:
        raise UsageError(f"the model configuration is of a {read.model_type}, which is no decoder")
    family = FAMILIES.get(read.model_type)
    if family is not None and family.spelled is not None:
        spelled = Values(family.spelled(read))
        spelled.read = read.read | {"model_type"}
        read = spelled
    shape = _read(read, name, None, family)
    read.check_keys()
    return shape


def _read(
    read: Values, name: str | None, router: DecoupledRouter | None, family: Family | None = None
) -> ModelShape:
    """Return the shape of checked values, with the layers of `family` if they differ in kind."""
    num_layers = read.size("num_hidden_layers", "num_layers", most=MOST_LAYERS)
    num_experts = read.size(
        *("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"), most=65_535
    )
    num_heads = read.size("num_attention_heads")
    hidden = read.size("hidden_size")
    # Where both widths are given, `intermediate_size` is that of dense FFNs, else of experts.
    ffn = read.optional("moe_intermediate_size")
    dense_layers = read.dense_layers(num_layers)
    width = read.optional("intermediate_size")
    if dense_layers and ffn:
        width = read.size("intermediate_size")
    if len(dense_layers) == num_layers:
        raise UsageError("the model configuration has no layer with routed experts")
    windowed, window = read.windowed_layers(num_layers)
    expert_ffn = ffn or read.size("intermediate_size")
    shape = ModelShape(
        name=name or read.name(),
        num_layers=num_layers,
        hidden=hidden,
        expert_ffn=expert_ffn,
        num_experts=num_experts,
        top_k=read.size(
            *("num_experts_per_tok", "experts_per_token", "num_experts_per_token", "moe_k"),
            *("moe_topk", "top_k_experts"),
            most=num_experts,
        ),
        num_heads=num_heads,
        # Families that state neither share no keys between heads, and split the hidden size evenly.
        num_kv_heads=read.optional("num_key_value_heads") or num_heads,
        head_dim=read.optional("head_dim", "attention_head_dim") or max(1, hidden // num_heads),
        vocabulary=read.size("vocab_size"),
        dense_layers=dense_layers,
        shared_ffn=read.shared_ffn(),
        dense_ffn=(width or 0) if dense_layers else 0,
        mla=read.mla(),
        windowed_layers=windowed,
        window=window,
        tied_embeddings=bool(_tied(read, family)),
        router=router,
        expert_bits=read.expert_bits(),
        weight_bits=read.weight_bits(),
        source="config.json",
    )
    if family is not None and family.layers is not None:
        return family.layers(read, shape)
    _check_alike(read, num_layers)
    return shape


def _tied(read: Values, family: Family | None) -> Any:
    stated = read.get("tie_word_embeddings")
    return family is not None and family.tied if stated is None else stated


def _check_alike(read: Values, num_layers: int) -> None:
    """Raise UsageError if a layer has no usual attention, in a family that is read as uniform."""
    known = ("full_attention", "sliding_attention", "chunked_attention", "attention")
    if 0 not in (read.values.get("attn_type_list") or ()):
        read.get("attn_type_list")  # 1 is usual attention
    for kind in read.kinds("layer_types", num_layers):
        if kind not in known:
            raise UsageError(
                f"the model configuration (model_type {shown(read.model_type)}) has layers of "
                f"kind {shown(kind)} in layer_types, which are not understood"
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
        "moe_intermediate_size": Values(config).size("expert_ffn"),
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
    read = Values(sizes)
    return DecoupledRouter(
        hidden=read.size("hidden"),
        heads=read.size("heads"),
        ffn=read.size("ffn"),
        gated=sizes.get("mlp") == "swiglu",
    )
