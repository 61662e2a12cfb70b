"""Families that name their sizes in ways of their own: their values under the usual keys.

Each function returns all values of a configuration with some replaced. The keys that it asks for
count as read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from moesim.errors import UsageError, shown
from moesim.model.config_values import MOST_LAYERS, Values

__all__ = [
    "spelled_aria",
    "spelled_cohere2",
    "spelled_dbrx",
    "spelled_gemma4",
    "spelled_hunyuan",
    "spelled_jamba",
    "spelled_kimi",
    "spelled_lfm2",
    "spelled_llama4",
    "spelled_mimo",
    "spelled_nemotron",
]


def spelled_aria(read: Values) -> Mapping[str, Any]:
    shared = read.optional("moe_num_shared_experts") or 0
    width = read.size("intermediate_size")
    return {**read.values, "shared_expert_intermediate_size": shared * width}


def spelled_cohere2(read: Values) -> Mapping[str, Any]:
    shared, width = read.optional("num_shared_experts") or 0, read.size("intermediate_size")
    read.read.update(("sliding_window_pattern", "prefix_dense_sliding_window_pattern"))
    return {
        **read.values,
        "moe_intermediate_size": width,
        "shared_expert_intermediate_size": shared * width,
        "intermediate_size": read.optional("prefix_dense_intermediate_size") or width,
    }


def spelled_dbrx(read: Values) -> Mapping[str, Any]:
    parts = {}
    for key in ("attn_config", "ffn_config"):
        value = read.get(key)
        if not isinstance(value, Mapping):
            raise UsageError(f"the model configuration has {key} = {shown(value)}, no JSON object")
        parts[key] = Values(value)
    ffn, inner = parts["ffn_config"], parts["attn_config"]
    values = {
        **read.values,
        "num_hidden_layers": read.optional("n_layers"),
        "hidden_size": read.optional("d_model"),
        "num_attention_heads": read.optional("n_heads"),
        "num_key_value_heads": inner.optional("kv_n_heads"),
        "moe_intermediate_size": ffn.optional("ffn_hidden_size"),
        "num_experts": ffn.optional("moe_num_experts"),
        "num_experts_per_tok": ffn.optional("moe_top_k"),
    }
    ffn.read.update(("hidden_size", "ffn_act_fn"))
    for part in parts.values():
        part.check_keys()
    return values


def spelled_gemma4(read: Values) -> Mapping[str, Any]:
    # Its dense FFN computes every token beside the experts, as a shared expert does.
    read.read.add("enable_moe_block")
    return {**read.values, "shared_expert_intermediate_size": read.size("intermediate_size")}


def spelled_hunyuan(read: Values) -> Mapping[str, Any]:
    values = dict(read.values)
    for key in ("num_experts", "moe_topk", "moe_intermediate_size", "num_shared_expert"):
        values[key] = _one(read, key)
    read.read.update(("use_mixed_mlp_moe", "moe_layer_num_skipped"))
    width = read.size("intermediate_size")
    shared = 1 if values["num_shared_expert"] is None else values["num_shared_expert"]
    if shared != 1 or (values["moe_intermediate_size"] or width) != width:
        raise UsageError(
            "the model configuration has moe_intermediate_size or num_shared_expert that differ "
            "from one shared expert as wide as a routed one"
        )
    values |= {"moe_intermediate_size": width, "shared_expert_intermediate_size": width}
    # The family that transformers builds has experts in every layer.
    return {**values, "first_k_dense_replace": read.optional("moe_layer_num_skipped")}


def _one(read: Values, key: str) -> Any:
    """Return a value, or the one value of all layers where the key lists one for each."""
    value = read.get(key)
    if not isinstance(value, list):
        return value
    if len(set(map(str, value))) != 1:
        raise UsageError(
            f"the model configuration has {key} = {shown(value)}; layers of different sizes are "
            "not understood"
        )
    return value[0]


def spelled_jamba(read: Values) -> Mapping[str, Any]:
    return {**read.values, "moe_intermediate_size": read.size("intermediate_size")}


def spelled_kimi(read: Values) -> Mapping[str, Any]:
    values = dict(read.values)
    part = read.get("linear_attn_config")
    if isinstance(part, Mapping):
        inner = Values(part)
        values["linear_head_dim"] = inner.optional("head_dim")
        values["linear_num_heads"] = inner.optional("num_heads")
        values["linear_conv_kernel_dim"] = inner.optional("short_conv_kernel_size")
        full = inner.get("full_attn_layers")  # counted from 1
        inner.get("kda_layers")
        inner.check_keys()
        if isinstance(full, list) and not values.get("layer_types"):
            count = read.size("num_hidden_layers", most=MOST_LAYERS)
            values["layer_types"] = [
                "full_attention" if layer + 1 in full else "linear_attention"
                for layer in range(count)
            ]
    read.read.add("mla_use_nope")
    return values


def spelled_lfm2(read: Values) -> Mapping[str, Any]:
    values = dict(read.values)
    tied = read.get("tie_embedding")
    if tied is not None:
        values["tie_word_embeddings"] = bool(tied)
    full = read.get("full_attn_idxs")
    if full is not None and values.get("layer_types") is None:
        count = read.size("num_hidden_layers", most=MOST_LAYERS)
        values["layer_types"] = ["full_attention" if i in full else "conv" for i in range(count)]
    return values


def spelled_llama4(read: Values) -> Mapping[str, Any]:
    count = read.size("num_hidden_layers", most=MOST_LAYERS)
    interval = read.optional("no_rope_layer_interval") or 4
    chunked = read.get("no_rope_layers") or [int((i + 1) % interval != 0) for i in range(count)]
    names = ["chunked_attention" if flag else "full_attention" for flag in chunked]
    width = read.size("intermediate_size")
    return {
        **read.values,
        "layer_types": read.get("layer_types") or names,
        "moe_intermediate_size": width,
        "intermediate_size": read.optional("intermediate_size_mlp") or width,
        "shared_expert_intermediate_size": width,
    }


def spelled_mimo(read: Values) -> Mapping[str, Any]:
    values = dict(read.values)
    pattern = read.get("hybrid_layer_pattern")
    if pattern and not values.get("layer_types"):
        names = ("full_attention", "sliding_attention")
        values["layer_types"] = [names[kind == 1] for kind in pattern]
    size = read.optional("sliding_window_size")
    if size is not None:
        values["sliding_window"] = size + 1
    return values


_NEMOTRON: Final = {"M": "linear_attention", "E": "moe", "*": "full_attention", "-": "mlp"}


_NEMOTRON_NAMES: Final = {"mamba": "linear_attention", "attention": "full_attention"}


def _nemotron_blocks(read: Values) -> list[str]:
    """Return the kind of each block of a Nemotron-H."""
    for key in ("layer_types", "layers_block_type"):
        if names := read.get(key):
            return [_NEMOTRON_NAMES.get(name, name) for name in names]
    pattern = read.get("hybrid_override_pattern") or ""
    return [_NEMOTRON.get(letter, letter) for letter in pattern]


def spelled_nemotron(read: Values) -> Mapping[str, Any]:
    blocks = _nemotron_blocks(read)
    read.read.update(("layers_block_type", "hybrid_override_pattern", "layer_types"))
    values = {**read.values, "mlp_layer_types": None, "layer_types": None}
    if blocks:
        values["num_hidden_layers"] = len(blocks)
        values["mlp_layer_types"] = ["sparse" if kind == "moe" else "dense" for kind in blocks]
    shared = read.optional("moe_shared_expert_intermediate_size")
    if shared is not None and read.optional("n_shared_experts") != 0:
        values["shared_expert_intermediate_size"] = shared
    return {**values, "layer_types": blocks or None}
