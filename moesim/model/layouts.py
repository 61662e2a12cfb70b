"""Families whose layers differ in kind: the shape of each with its layers.

Counts follow the models that transformers builds. Each function takes the values of a configuration
and the shape that its usual keys give.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from moesim.errors import UsageError, shown
from moesim.model.config_values import MOST_SIZE, Values
from moesim.model.layers import LayerKind
from moesim.model.mixers import (
    attention,
    delta_net,
    kimi_delta,
    lightning,
    mamba1,
    mamba2,
    short_convolution,
)
from moesim.model.shapes import ModelShape

__all__ = [
    "bailing_hybrid",
    "gated_attention",
    "gemma4",
    "granite_hybrid",
    "indexed",
    "jamba",
    "kimi_linear",
    "laguna",
    "lfm2",
    "mimo",
    "minimax",
    "nemotron_h",
    "qwen_next",
    "with_layers",
]


def with_layers(shape: ModelShape, layers: Sequence[LayerKind], **changes: Any) -> ModelShape:
    """Return the shape with these layers, whose `params` are complete."""
    kinds = tuple(dict.fromkeys(layers))
    numbers = {kind: number for number, kind in enumerate(kinds)}
    windows = [kind.window for kind in layers if kind.window is not None]
    return replace(
        shape,
        kinds=kinds,
        layer_kinds=tuple(numbers[kind] for kind in layers),
        dense_layers=tuple(i for i, kind in enumerate(layers) if not kind.routed),
        windowed_layers=tuple(i for i, kind in enumerate(layers) if kind.window is not None),
        window=max(windows, default=None),
        **changes,
    )


def _with_ffns(shape: ModelShape, mixers: Sequence[LayerKind], **changes: Any) -> ModelShape:
    """Return the shape whose layers have these mixers, and the FFNs and norms of the shape."""
    layers = []
    for layer, mixer in enumerate(mixers):
        routed = layer not in shape.dense_layers
        ffn = 3 * shape.hidden * (shape.shared_ffn if routed else shape.dense_ffn)
        ffn += shape.hidden * shape.num_experts if routed else 0
        params = mixer.params + ffn + shape.norm_params
        layers.append(replace(mixer, params=params, routed=routed))
    return with_layers(shape, layers, **changes)


def _plain(shape: ModelShape, layer: int, gate: int = 0) -> LayerKind:
    """Return the usual attention of a layer; `gate` is the width of a gate on its output."""
    window = shape.window if layer in shape.windowed_layers else None
    mixer = attention(shape.hidden, shape.num_heads, shape.num_kv_heads, shape.head_dim)
    return replace(mixer, params=mixer.params + shape.hidden * gate, window=window)


def _mixed(
    read: Values,
    shape: ModelShape,
    default: Sequence[str],
    kinds: Mapping[str, Callable[[int], LayerKind]],
) -> list[LayerKind]:
    """Return the mixers of the layers by `layer_types`, else by `default`."""
    names = read.kinds("layer_types", shape.num_layers) or list(default)
    for name in names:
        if name not in kinds:
            raise UsageError(
                f"the model configuration (model_type {shown(read.model_type)}) has layers of "
                f"kind {shown(name)} in layer_types, which are not understood"
            )
    return [kinds[name](layer) for layer, name in enumerate(names)]


def _every(number: int, count: int, rare: str, usual: str) -> list[str]:
    """Return names of layers of which every `number`-th, from 1, is `rare`."""
    return [usual if (layer + 1) % number else rare for layer in range(count)]


def qwen_next(read: Values, shape: ModelShape) -> ModelShape:
    """Gated delta nets, and gated attention in every fourth layer."""
    linear = delta_net(
        shape.hidden,
        key_heads=read.size("linear_num_key_heads"),
        value_heads=read.size("linear_num_value_heads"),
        key_dim=read.size("linear_key_head_dim"),
        value_dim=read.size("linear_value_head_dim"),
        kernel=read.size("linear_conv_kernel_dim"),
    )
    read.get("attn_output_gate")
    interval = read.optional("full_attention_interval") or 4
    gate = shape.num_heads * shape.head_dim
    default = _every(interval, shape.num_layers, "full_attention", "linear_attention")
    mixers = _mixed(
        read,
        shape,
        default,
        {
            "linear_attention": lambda _: linear,
            "full_attention": lambda layer: _plain(shape, layer, gate),
        },
    )
    return _with_ffns(shape, mixers)


def minimax(read: Values, shape: ModelShape) -> ModelShape:
    """Lightning attention, and usual attention in some layers."""
    linear = lightning(shape.hidden, shape.num_heads, shape.head_dim)
    default = _every(2, shape.num_layers, "linear_attention", "full_attention")
    listed = read.get("attn_type_list")
    if listed:
        _check_length(shape, "attn_type_list", listed)
        default = ["full_attention" if kind else "linear_attention" for kind in listed]
    mixers = _mixed(
        read,
        shape,
        default,
        {
            "linear_attention": lambda _: linear,
            "full_attention": lambda layer: _plain(shape, layer),
        },
    )
    return _with_ffns(shape, mixers)


def jamba(read: Values, shape: ModelShape) -> ModelShape:
    """Mamba, and attention in one layer of each period."""
    period = read.optional("attn_layer_period") or 1
    offset = read.optional("attn_layer_offset") or 0
    rank = read.get("mamba_dt_rank")
    mamba = mamba1(
        shape.hidden,
        inner=(read.optional("mamba_expand") or 2) * shape.hidden,
        state=read.size("mamba_d_state"),
        kernel=read.size("mamba_d_conv"),
        rank=-(-shape.hidden // 16) if rank in (None, "auto") else read.size("mamba_dt_rank"),
    )
    default = [
        "full_attention" if layer % period == offset % period else "linear_attention"
        for layer in range(shape.num_layers)
    ]
    mixers = _mixed(read, shape, default, _recurrent(shape, mamba))
    return _with_ffns(shape, mixers)


def _recurrent(shape: ModelShape, mamba: LayerKind) -> dict[str, Callable[[int], LayerKind]]:
    """Return the mixers of a model of Mamba layers under all their names."""
    recurrent = dict.fromkeys(("mamba", "linear_attention"), lambda _: mamba)
    usual = dict.fromkeys(("attention", "full_attention"), lambda layer: _plain(shape, layer))
    return {**recurrent, **usual}


def granite_hybrid(read: Values, shape: ModelShape) -> ModelShape:
    """Mamba-2 or attention, and then experts beside one shared FFN."""
    mamba = mamba2(
        shape.hidden,
        heads=read.size("mamba_n_heads"),
        head_dim=int((read.optional("mamba_expand") or 2) * shape.hidden)
        // read.size("mamba_n_heads"),
        state=read.size("mamba_d_state"),
        groups=read.optional("mamba_n_groups") or 1,
        kernel=read.optional("mamba_d_conv") or 4,
    )
    read.read.update(("mamba_d_head", "layers_block_type"))
    default = read.kinds("layers_block_type", shape.num_layers) or ["mamba"] * shape.num_layers
    return _with_ffns(shape, _mixed(read, shape, default, _recurrent(shape, mamba)))


def nemotron_h(read: Values, shape: ModelShape) -> ModelShape:
    """Blocks of one part each: Mamba-2, attention, experts or a dense FFN, of two matrices.

    Experts may work in a latent space, into which the block projects all tokens and back.
    """
    hidden, norm = shape.hidden, shape.hidden
    latent = read.optional("moe_latent_size")
    mamba = mamba2(
        hidden,
        heads=read.size("mamba_num_heads"),
        head_dim=read.size("mamba_head_dim"),
        state=read.size("ssm_state_size"),
        groups=read.optional("n_groups", "mamba_n_groups") or 1,
        kernel=read.optional("conv_kernel", "mamba_d_conv") or 4,
    )
    read.read.update(("expand", "mamba_expand", "head_dim"))
    routed = hidden * shape.num_experts + 2 * hidden * shape.shared_ffn + 2 * hidden * (latent or 0)
    dense = read.optional("intermediate_size") or 0
    usual = attention(hidden, shape.num_heads, shape.num_kv_heads, shape.head_dim)
    kinds = {
        "linear_attention": replace(mamba, params=mamba.params + norm, routed=False),
        "full_attention": replace(usual, params=usual.params + norm, routed=False),
        "moe": LayerKind(routed + norm),
        "mlp": LayerKind(2 * hidden * dense + norm, routed=False),
    }
    layers = _mixed(read, shape, (), {key: _always(kind) for key, kind in kinds.items()})
    return with_layers(shape, layers, expert_matrices=2, expert_width=latent)


def _always(kind: LayerKind) -> Callable[[int], LayerKind]:
    return lambda _: kind


def gated_attention(read: Values, shape: ModelShape) -> ModelShape:
    """Usual attention with a gate on its output."""
    known = ("full_attention", "sliding_attention")
    width = shape.num_heads * shape.head_dim
    kinds = dict.fromkeys(known, lambda layer: _plain(shape, layer, width))
    read.get("global_attn_every_n_layers")
    return _with_ffns(shape, _mixed(read, shape, [known[0]] * shape.num_layers, kinds))


def _latent(shape: ModelShape, gate: int = 0) -> LayerKind:
    """Return latent attention; `gate` is the width of a gate on its output."""
    mla = shape.mla
    if mla is None:
        raise UsageError("the model configuration lacks kv_lora_rank")
    return LayerKind(
        shape.attention_params + shape.hidden * gate,
        heads=shape.num_heads,
        key_dim=mla.nope_dim + mla.rope_dim,
        value_dim=mla.value_dim,
        kv_numbers=mla.kv_rank + mla.rope_dim,
        mla=mla,
    )


def kimi_linear(read: Values, shape: ModelShape) -> ModelShape:
    """Kimi delta attention, and latent attention in some layers."""
    linear = kimi_delta(
        shape.hidden,
        heads=read.size("linear_num_heads"),
        head_dim=read.size("linear_head_dim"),
        kernel=read.size("linear_conv_kernel_dim"),
        low_rank=True,
    )
    default = [
        "full_attention" if layer and layer % 4 == 0 else "linear_attention"
        for layer in range(shape.num_layers)
    ]
    kinds = {"linear_attention": _always(linear), "full_attention": _always(_latent(shape))}
    return _with_ffns(shape, _mixed(read, shape, default, kinds))


def bailing_hybrid(read: Values, shape: ModelShape) -> ModelShape:
    """Kimi delta attention without bottlenecks, and latent attention with a gate a head."""
    # Written configurations replace the width of a head by that of its rotary part.
    linear = kimi_delta(
        shape.hidden,
        heads=read.optional("linear_num_heads") or shape.num_heads,
        head_dim=read.optional("linear_head_dim") or shape.head_dim,
        kernel=read.optional("linear_conv_kernel_dim", "short_conv_kernel_size") or 4,
        low_rank=False,
    )
    read.read.update(("short_conv_kernel_size", "kda_safe_gate"))
    group = read.optional("layer_group_size") or 6
    default = _every(group, shape.num_layers, "full_attention", "linear_attention")
    latent = _latent(shape, shape.num_heads)
    kinds = {"linear_attention": _always(linear), "full_attention": _always(latent)}
    return _with_ffns(shape, _mixed(read, shape, default, kinds))


def indexed(read: Values, shape: ModelShape) -> ModelShape:
    """DeepSeek sparse attention: an index of its own heads chooses the positions of a layer.

    In GLM-5 some layers take the choice of an earlier one, and have no index of their own.
    Source: DeepSeek-V3.2 (2025), section 2.1.
    """
    heads, width = read.size("index_n_heads"), read.size("index_head_dim")
    rank = shape.mla.q_rank if shape.mla else None
    if rank is None:
        raise UsageError("the model configuration lacks q_lora_rank, which an index needs")
    shared = replace(_latent(shape), window=read.size("index_topk"))
    index = rank * heads * width + shape.hidden * (width + heads)
    full = replace(
        shared,
        params=shared.params + index,
        index_flops=2 * heads * width,
        index_numbers=width,
    )
    types = read.kinds("indexer_types", shape.num_layers)
    for key in ("index_topk_freq", "index_topk_pattern"):
        if not types and read.get(key) not in (None, 1):
            raise UsageError(
                f"the model configuration has {key} = {shown(read.values[key])} without "
                "indexer_types, which is not understood"
            )
    read.read.update(("index_skip_topk_offset", "index_share_for_mtp_iteration"))
    read.read.update(("index_topk_freq", "index_topk_pattern", "indexer_rope_interleave"))
    known = ("indexed_attention", "full_attention", "deepseek_sparse_attention")
    kinds = {
        name: lambda layer: shared if types and types[layer] == "shared" else full for name in known
    }
    return _with_ffns(shape, _mixed(read, shape, [known[0]] * shape.num_layers, kinds))


def laguna(read: Values, shape: ModelShape) -> ModelShape:
    """Layers have their own numbers of heads, and a gate on each head or on its whole output."""
    heads = read.get("num_attention_heads_per_layer") or [shape.num_heads] * shape.num_layers
    if not isinstance(heads, list) or not all(map(_is_size, heads)):
        raise UsageError(
            "the model configuration has num_attention_heads_per_layer = "
            f"{shown(heads)}, not a list of sizes"
        )
    _check_length(shape, "num_attention_heads_per_layer", heads)
    gating = read.get("gating")
    whole = shape.head_dim if gating not in (True, "per-head") else 1
    layers = []
    for layer, count in enumerate(heads):
        mixer = attention(shape.hidden, count, shape.num_kv_heads, shape.head_dim)
        window = shape.window if layer in shape.windowed_layers else None
        gated = mixer.params + shape.hidden * count * whole
        layers.append(replace(mixer, params=gated, window=window))
    return _with_ffns(shape, layers)


def lfm2(read: Values, shape: ModelShape) -> ModelShape:
    """Short convolutions, and attention in some layers."""
    conv = short_convolution(shape.hidden, read.size("conv_L_cache"))
    kinds = {"conv": lambda _: conv, "full_attention": lambda layer: _plain(shape, layer)}
    return _with_ffns(shape, _mixed(read, shape, (), kinds))


def mimo(read: Values, shape: ModelShape) -> ModelShape:
    """Windowed layers have their own number of key-value heads; values are narrower than keys."""
    value = read.optional("v_head_dim") or shape.head_dim
    doubled = read.optional("swa_num_key_value_heads") or 2 * shape.num_kv_heads
    for key, usual in (
        ("swa_num_attention_heads", shape.num_heads),
        ("swa_head_dim", shape.head_dim),
        ("swa_v_head_dim", value),
    ):
        if (read.optional(key) or usual) != usual:
            raise UsageError(f"the model configuration has {key}, which differs from other layers")
    layers = []
    for layer in range(shape.num_layers):
        windowed = layer in shape.windowed_layers
        kv_heads = doubled if windowed else shape.num_kv_heads
        mixer = attention(shape.hidden, shape.num_heads, kv_heads, shape.head_dim, value)
        layers.append(replace(mixer, window=shape.window if windowed else None))
    read.read.update(("hybrid_block_size", "add_swa_attention_sink_bias"))
    return _with_ffns(shape, layers)


def gemma4(read: Values, shape: ModelShape) -> ModelShape:
    """Full layers have wider heads, fewer key-value heads, and keys that serve as values."""
    for key in ("hidden_size_per_layer_input", "num_kv_shared_layers"):
        if read.optional(key):
            raise UsageError(
                f"the model configuration has {key} = {read.values[key]}, which is not understood"
            )
    read.read.update(("vocab_size_per_layer_input", "use_double_wide_mlp"))
    shared = bool(read.get("attention_k_eq_v"))
    overrides = read.get("per_layer_config") or {}
    layers = []
    names = read.kinds("layer_types", shape.num_layers)
    if not names:
        names = _every(6, shape.num_layers, "full_attention", "sliding_attention")
    for layer, name in enumerate(names):
        full = name == "full_attention"
        own = overrides.get(f"{layer:02}") or overrides.get(str(layer)) or {}
        own = Values(own if isinstance(own, Mapping) else {})
        width, kv_heads = own.optional("head_dim"), own.optional("num_key_value_heads")
        if full:
            width = width or read.optional("global_head_dim") or 512
            wide = read.optional("num_global_key_value_heads") if shared else None
            kv_heads = kv_heads or wide
        own.check_keys()
        heads, head_dim = kv_heads or shape.num_kv_heads, width or shape.head_dim
        mixer = attention(shape.hidden, shape.num_heads, heads, head_dim)
        saved = shape.hidden * heads * head_dim if full and shared else 0
        window = None if full else read.size("sliding_window")
        layers.append(replace(mixer, params=mixer.params - saved, window=window))
    read.read.update(("global_head_dim", "num_global_key_value_heads"))
    return _with_ffns(shape, layers)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 < value <= MOST_SIZE


def _check_length(shape: ModelShape, key: str, values: Sequence[Any]) -> None:
    if len(values) != shape.num_layers:
        raise UsageError(
            f"the model configuration has {key} of {len(values)} layers, and num_hidden_layers = "
            f"{shape.num_layers}"
        )
