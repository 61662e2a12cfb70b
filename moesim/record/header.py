"""The header of a recorded trace: the model, and the settings of the recording.

It must not name the machine: a local model is given by its folder's name, a file by name and hash.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from torch import nn

import moesim
from moesim.record.routers import MoeLayer
from moesim.trace import TraceMeta

TOP_K = (
    *("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "moe_top_k"),
    "top_k_experts",
)
"""The keys of configurations for the number of experts of a token."""

TRAINING_RECORD = "training.json"  # written by `moesim models train` beside the model


def describe(
    model: nn.Module,
    layers: Sequence[MoeLayer],
    *,
    top_k: int,
    normalised: bool,
    prediction_depth: int,
    provenance: dict[str, Any],
) -> TraceMeta:
    """Return the header of a trace recorded from `model`."""
    config = loaded_config(model, layers)
    # Sorted, so that the hash does not depend on the order of keys.
    canonical = json.dumps(config, sort_keys=True).encode()
    numbers = tuple(layer.model_layer for layer in layers)
    # A map must rise; a model that numbers its layers in another way gets none.
    rising = all(a < b for a, b in pairwise(numbers))
    return TraceMeta(
        num_layers=len(layers),
        num_experts=layers[0].num_experts,
        top_k=top_k,
        model=model_name(model),
        revision=getattr(model.config, "_commit_hash", None),
        config_hash=hashlib.sha256(canonical).hexdigest(),
        router=getattr(model.config, "routing", "layerwise"),
        normalised=normalised,
        num_shared_experts=_num_shared_experts(model, layers[0]),
        expert_bytes=layers[0].expert_bytes,
        layer_map=numbers if rising else None,
        prediction_depth=prediction_depth,
        model_config=config,
        provenance={
            **provenance,
            "dtype": config.get("dtype", _dtype(model)),
            "versions": versions(),
        },
    )


def loaded_config(model: Any, layers: Sequence[MoeLayer]) -> dict[str, Any]:
    """Return the model's configuration with the precision of the experts as loaded.

    Experts that are plain floats are not quantised, whatever the configuration says: many methods
    leave stacked experts as they are, and others are undone at loading.
    """
    config = model_config(model)
    loaded = experts_dtype(layers[0])
    return config if loaded is None else _with_dtype(config, loaded)


def stated_top_k(model: Any) -> int | None:
    """Return the number of experts of a token that a configuration states; None if it does not."""
    config = model.config
    inner = getattr(config, "ffn_config", None)
    for part in (config, getattr(config, "get_text_config", lambda: None)(), inner):
        for key in TOP_K:
            if isinstance(value := getattr(part, key, None), int):
                return value
    return None


def model_config(model: Any) -> dict[str, Any]:
    """Return the model's `config.json`, without the folders that it or its parts came from."""
    config: dict[str, Any] = json.loads(model.config.to_json_string(use_diff=False))
    return _without_folders(config)


def _without_folders(config: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_folders(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key != "_name_or_path"
    }


def model_name(model: Any) -> str:
    """Return the Hub id, or the name of the local folder, or the class, in this order."""
    name = str(getattr(model.config, "_name_or_path", "") or "")
    if not name:
        return type(model).__name__
    path = Path(name)
    return Path(os.path.realpath(path)).name if path.is_absolute() or os.path.exists(path) else name


def training_record(model: Any) -> dict[str, Any] | None:
    """Return the record of the training, if `moesim models train` made the model's folder."""
    path = Path(str(getattr(model.config, "_name_or_path", "") or ".")) / TRAINING_RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def versions() -> dict[str, str]:
    """Return the versions of all software that may change a recording."""
    return {
        "moesim": moesim.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def is_normalised(weights_RLk: npt.NDArray[np.float32]) -> bool:
    """Return whether gate weights of every row and layer sum to one, up to bfloat16 rounding."""
    return bool(np.all(np.abs(weights_RLk.sum(axis=-1) - 1) < 2e-2))


def experts_dtype(layer: MoeLayer) -> str | None:
    """Return the type of an expert's weights as loaded; None if they are no plain floats."""
    module = layer.block if layer.experts is None else layer.experts
    sizes: dict[torch.dtype, int] = {}
    for weights in module.parameters():
        sizes[weights.dtype] = sizes.get(weights.dtype, 0) + weights.numel()
    most = max(sizes, key=lambda dtype: sizes[dtype], default=None)
    plain = most is not None and most.is_floating_point and most.itemsize > 1
    return str(most).removeprefix("torch.") if plain else None


def _with_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Return a configuration that states the type of the weights as loaded, in each part of it."""
    return {
        **{
            key: _with_dtype(value, dtype)
            if key == "text_config" and isinstance(value, dict)
            else value
            for key, value in config.items()
            if key not in ("torch_dtype", "quantization_config")  # the older name, and what is not
        },
        "dtype": dtype,
    }


def _dtype(model: Any) -> str:
    return str(model.dtype).removeprefix("torch.")


def _num_shared_experts(model: Any, layer: MoeLayer) -> int:
    """Return how many shared experts a layer has as loaded.

    Modules say whether there are any, in the block or beside it; the configuration says how many
    experts one module stands for.
    """
    parent = model.get_submodule(layer.name.rpartition(".")[0])
    shared = [
        child
        for holder in (layer.block, parent)
        for name, child in holder.named_children()
        if "shared" in name and "gate" not in name and any(True for _ in child.parameters())
    ]
    if not shared:
        return 0
    text = getattr(model.config, "get_text_config", lambda: model.config)()
    for key in ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts"):
        if isinstance(count := getattr(text, key, None), int) and count > 0:
            return count
    return 1
