"""Any `config.json` is a shape or one line that names the key; never a traceback or a hang."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from damage import damaged_bytes, damaged_value
from workloads import REFACTORED_CONFIG, TINY_CONFIG

from moesim.errors import UsageError
from moesim.model.hf_config import load_shape
from moesim.model.shapes import ModelShape

EXAMPLES = int(os.environ.get("MOESIM_FUZZ", "1"))
"""Raise it to look further than a test may take time for."""

EVERYTHING: dict[str, Any] = {
    **TINY_CONFIG, "moe_intermediate_size": 64, "shared_expert_intermediate_size": 32,
    "n_shared_experts": 1, "first_k_dense_replace": 1, "moe_layer_freq": 1,
    "decoder_sparse_step": 1, "mlp_only_layers": [2], "sliding_window": 16,
    "use_sliding_window": True, "layer_types": ["full_attention", "sliding_attention"] * 2,
    "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 8, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "quantization_config": {"quant_method": "gptq", "bits": 4}, "_name_or_path": "tiny",
}  # fmt: skip
CONFIGS = {
    "every key": EVERYTHING,
    "inner": {"text_config": EVERYTHING, "model_type": "outer"},
    "dense first": {**EVERYTHING, "mlp_layer_types": ["dense", *["sparse"] * 3]},
    "exchanged": REFACTORED_CONFIG,
}
_HYBRID = {
    "num_hidden_layers": 4, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "intermediate_size": 32, "moe_intermediate_size": 32, "num_experts": 4,
    "num_experts_per_tok": 2, "vocab_size": 100,
}  # fmt: skip
_FULL = "full_attention"
_LATENT = {
    "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}  # fmt: skip
_DELTA = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "linear_conv_kernel_dim": 4,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3_next": {**_DELTA, "full_attention_interval": 2},
    "minimax": {"attn_type_list": [0, 1, 0, 1]},
    "jamba": {
        "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
        "expert_layer_offset": 1, "mamba_d_state": 4, "mamba_d_conv": 4, "mamba_dt_rank": "auto",
        "mamba_expand": 2,
    },
    "granitemoehybrid": {
        "layer_types": ["mamba", "attention"] * 2, "shared_intermediate_size": 32,
        "mamba_n_heads": 8, "mamba_d_state": 4, "mamba_expand": 2,
    },
    "nemotron_h": {
        "hybrid_override_pattern": "ME*-", "moe_latent_size": 8, "mamba_num_heads": 4,
        "mamba_head_dim": 8, "ssm_state_size": 4, "moe_shared_expert_intermediate_size": 32,
    },
    "lfm2_moe": {"full_attn_idxs": [1], "conv_L_cache": 3, "num_dense_layers": 1},
    "mimo_v2_flash": {"hybrid_layer_pattern": [0, 1, 1, 0], "moe_layer_freq": [0, 1, 1, 1]},
    "gemma4_text": {
        "global_head_dim": 32, "num_global_key_value_heads": 1, "attention_k_eq_v": True,
        "sliding_window": 8, "per_layer_config": {"02": {"head_dim": 8}},
    },
    "llama4_text": {"no_rope_layers": [1, 1, 1, 0], "attention_chunk_size": 8, "moe_layers": [1]},
    "hunyuan_v1_moe": {"moe_topk": [2] * 4, "num_shared_expert": [1] * 4},
    "dbrx": {
        "d_model": 64, "n_heads": 4, "n_layers": 4, "attn_config": {"kv_n_heads": 2},
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "kimi_linear": {
        **_LATENT, "linear_attn_config": {
            "head_dim": 8, "num_heads": 4, "short_conv_kernel_size": 4, "full_attn_layers": [2],
            "kda_layers": [1, 3, 4],
        },
    },
    "bailing_hybrid": {**_LATENT, "layer_group_size": 2, "short_conv_kernel_size": 4},
    "glm_moe_dsa": {
        **_LATENT, "index_n_heads": 2, "index_head_dim": 8, "index_topk": 16,
        "indexer_types": ["full", "shared"] * 2,
    },
    "laguna": {"num_attention_heads_per_layer": [4, 2, 4, 2], "gating": "per-head"},
    "afmoe": {"layer_types": ["sliding_attention", _FULL] * 2, "sliding_window": 8},
    "cohere2_moe": {"num_shared_experts": 1, "prefix_dense_intermediate_size": 16},
    "aria_text": {"moe_num_shared_experts": 1},
}  # fmt: skip
CONFIGS |= {name: {**_HYBRID, "model_type": name, **own} for name, own in FAMILIES.items()}
NONSENSE: tuple[Any, ...] = (
    None, True, 0, -1, 1, 3, 10**9, 10**400, 0.5, float("nan"), float("inf"), "", "x", "full",
    [], [[]], [None], [10**30], ["x"] * 5, {}, {"x": 1}, {"bits": 10**400}, {"bits": "4"},
)  # fmt: skip


def sizes_of(shape: ModelShape) -> None:
    """Check that all costed sizes of a shape are numbers in a sensible range."""
    for value in (
        shape.total_params, shape.fixed_bytes, shape.expert_bytes, shape.kv_bytes_per_token,
        shape.router_params, len(shape.moe_layers), len(shape.windowed_layers),
    ):  # fmt: skip
        assert isinstance(value, int)
        assert 0 <= value < 2**120


def read_or_refused(path: Path) -> None:
    try:
        sizes_of(load_shape(path))
    except UsageError as error:
        said = str(error)
        assert said.startswith(f"{path}: ")
        assert "\n" not in said
        assert len(said) < 500


@pytest.mark.parametrize("name", CONFIGS)
def test_nonsense_in_a_config_is_one_line_or_a_shape(name: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    rng = random.Random(name)
    path.write_text(json.dumps(CONFIGS[name]))
    sizes_of(load_shape(path))
    for number in range((100 if name in FAMILIES else 250) * EXAMPLES):
        config = damaged_value(CONFIGS[name], rng, NONSENSE)
        data = json.dumps(config).encode()
        path.write_bytes(data if number % 5 else damaged_bytes(data, rng))
        read_or_refused(path)


def test_a_config_that_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "device.json").symlink_to("/dev/zero")
    (tmp_path / "loop.json").symlink_to("loop.json")
    (tmp_path / "folder.json").mkdir()
    for name in ("pipe", "device", "loop", "folder", "x" * 300):
        with pytest.raises(UsageError, match="cannot be read: "):
            load_shape(tmp_path / f"{name}.json")
