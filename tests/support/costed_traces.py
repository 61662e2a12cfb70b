"""Traces with expert ids written by hand and a model configuration that can be costed."""

from __future__ import annotations

from typing import Any

import numpy as np
from workloads import TINY_CONFIG

from moesim.trace import Trace


def costed_trace(
    rows: Any, *, prompt: int | None = None, dense: tuple[int, ...] = (), **arrays: Any
) -> Trace:
    """Return a trace of these ids (rows, layers, k) of 8 experts; one request without `seq_len`.

    `prompt` is the number of its prompt rows (default: all). `dense` lists the model layers without
    routed experts. Other keywords go to `Trace.from_arrays`.
    """
    ids = np.asarray(rows)
    layers = ids.shape[1] + len(dense)
    config = {**TINY_CONFIG, "num_hidden_layers": layers, "num_experts_per_tok": ids.shape[2]}
    if dense:
        kinds = ["dense" if layer in dense else "sparse" for layer in range(layers)]
        config |= {"mlp_layer_types": kinds, "moe_intermediate_size": 1024}
        config |= {"intermediate_size": 2048}
    if prompt is not None:
        arrays["prompt_tokens"] = [prompt]
    defaults = {"seq_len": [len(ids)], "num_experts": 8, "model_config": config}
    return Trace.from_arrays(expert_ids=ids, **{**defaults, **arrays})
