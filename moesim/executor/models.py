"""Models for the executor: real models, and models of any shape with random weights.

The time of a computation depends on shapes, not on values. A *shaped model* has the layers of a
real model, so that Mixtral's layers can be timed without Mixtral. If memory is too small for all
layers, layers of a kind share their weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from moesim.errors import UsageError
from moesim.executor.expert_buffers import fill_randomly
from moesim.model.shapes import ModelShape
from moesim.record.loading import know_own_kinds
from moesim.record.loading import load_model as load_with_tokenizer
from moesim.record.routers import find_moe_layers

__all__ = ["load_model", "shaped_model"]

DTYPES: Final = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_LAYERS_BYTES: Final = 1 << 30  # beyond this, layers of a kind share weights


def load_model(name: str | Path, *, dtype: str = "float32", device: str = "cpu") -> Any:
    """Return a Hugging Face model by Hub id or folder, in evaluation mode, with type `dtype`.

    Raise `UsageError` that says what is wrong.
    """
    model, _ = load_with_tokenizer(name, device=device)
    return model.to(_dtype(dtype))


def shaped_model(
    like: Mapping[str, Any] | ModelShape,
    *,
    dtype: str = "float32",
    seed: int = 0,
    device: str = "cpu",
    distinct_layers: int | None = None,
) -> Any:
    """Return a model of the shape of a Hugging Face configuration or a `ModelShape`.

    Weights are random. Routed experts have no weights; the executor draws them. At most
    `distinct_layers` layers of a kind have their own weights, and the others share these. None: as
    many as fit into a gigabyte, but at least one.

    Raise `UsageError` for a shape or a kind of model that cannot be built.
    """
    from transformers import AutoModelForCausalLM

    config = _config_of(like) if isinstance(like, ModelShape) else _config_from(like)
    build: Any = AutoModelForCausalLM.from_config
    with torch.device("meta"):
        model = build(config, dtype=_dtype(dtype))
    model.eval()
    moe = find_moe_layers(model)
    spared = {id(p) for layer in moe if layer.experts for p in layer.experts.parameters()}
    path = moe[0].name.split(".")
    layers: Any = model.get_submodule(".".join(path[: path.index(str(moe[0].model_layer))]))
    _share_layers(layers, spared, distinct_layers)
    _materialise(model, spared, torch.device(device), seed)
    return model


def _share_layers(layers: Iterable[nn.Module], spared: set[int], distinct: int | None) -> None:
    """Give layers of a kind one of `distinct` sets of parameters, in turn."""
    kinds: dict[Any, list[nn.Module]] = {}
    for layer in layers:
        own = [(name, p) for name, p in layer.named_parameters() if id(p) not in spared]
        kinds.setdefault(tuple((name, p.shape, p.dtype) for name, p in own), []).append(layer)
    for kind, members in kinds.items():
        nbytes = sum(shape.numel() * dtype.itemsize for _, shape, dtype in kind)
        sets = distinct or max(1, _LAYERS_BYTES // max(1, nbytes))
        for number, layer in enumerate(members[sets:]):
            for name, _, _ in kind:
                owner, _, last = name.rpartition(".")
                shared = members[number % sets].get_submodule(owner)._parameters[last]
                layer.get_submodule(owner)._parameters[last] = shared


def _materialise(model: Any, spared: set[int], device: torch.device, seed: int) -> None:
    """Replace the weights and buffers on the meta device by random weights and real buffers."""
    generator = torch.Generator().manual_seed(seed)
    drawn: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None or id(parameter) in spared:
                continue
            if id(parameter) not in drawn:  # tied weights and shared layers are drawn once
                drawn[id(parameter)] = _random_parameter(name, parameter, device, generator)
            module._parameters[name] = drawn[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.zeros_like(buffer, device=device)
        if "RotaryEmbedding" in type(module).__name__:
            model.base_model._init_weights(module)  # its buffers are frequencies, not zeros


def _random_parameter(
    name: str, like: nn.Parameter, device: torch.device, generator: torch.Generator
) -> nn.Parameter:
    data = torch.empty_like(like, device=device)
    if data.ndim > 1:
        fill_randomly(data, generator)
    else:
        data.fill_(1.0 if name == "weight" else 0.0)  # norms; biases
    return nn.Parameter(data, requires_grad=False)


def _config_from(values: Mapping[str, Any]) -> Any:
    """Return the configuration object of a `config.json`, without its quantisation."""
    from transformers import CONFIG_MAPPING

    know_own_kinds()
    kind = str(values.get("model_type"))
    if kind not in CONFIG_MAPPING:
        raise UsageError(
            f"the model configuration has model_type {kind!r}, unknown to transformers"
        )
    kept = {key: value for key, value in values.items() if key != "quantization_config"}
    if kept.get("layout") == "masked":  # masked experts share weights, so none could be copied
        kept["layout"] = "fused"
    return CONFIG_MAPPING[kind].from_dict(kept)


def _config_of(shape: ModelShape) -> Any:
    """Return a Qwen-MoE configuration with a shape's sizes; Qwen2's if there are shared experts."""
    from transformers import Qwen2MoeConfig, Qwen3MoeConfig

    special = {
        "layers or experts of its own kind": bool(shape.kinds)
        or shape.expert_params != 3 * shape.hidden * shape.expert_ffn,
        "latent attention": shape.mla is not None,
        "a decoupled router": shape.router is not None,
        "windows in some of its layers": 0 < len(shape.windowed_layers) < shape.num_layers,
    }
    if any(special.values()):
        raise UsageError(
            f"{shape.name} has {next(what for what, has in special.items() if has)}, which its "
            "sizes alone do not describe; name the model's config.json instead"
        )
    sizes: dict[str, Any] = {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.dense_ffn or shape.expert_ffn,
        "moe_intermediate_size": shape.expert_ffn,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "num_experts": shape.num_experts,
        "num_experts_per_tok": shape.top_k,
        "mlp_only_layers": list(shape.dense_layers),
        "tie_word_embeddings": shape.tied_embeddings,
        "use_sliding_window": bool(shape.windowed_layers),
        "sliding_window": shape.window,
    }
    if shape.shared_ffn:
        return Qwen2MoeConfig(**sizes, shared_expert_intermediate_size=shape.shared_ffn)
    return Qwen3MoeConfig(**sizes)


def _dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise UsageError(f"unknown dtype {name!r}: choose one of {', '.join(DTYPES)}")
    return DTYPES[name]
