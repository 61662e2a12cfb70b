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
    for number in range(250 * EXAMPLES):
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
