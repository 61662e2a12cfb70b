"""A configuration gives the sizes of the model that transformers builds, or it is refused.

The oracle is the model itself, built without memory: its matrices and convolutions are counted, and
the KV entries follow from its key and value projections.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from moesim.cli.record import _note_missing_shape  # noqa: E402
from moesim.errors import UsageError  # noqa: E402
from moesim.model.hf_config import shape_from_config  # noqa: E402
from moesim.model.shapes import SHAPES, ModelShape, named_shape  # noqa: E402

REFUSED = {
    "axk2": "indexed_attention",
    "deepseek_v4": "heavily_compressed_attention",
    "dots3_note": "indexed_attention",
    "dots3_note_text": "indexed_attention",
    "hy_v4": "indexed_attention",
    "inkling2_text": "hybrid_sliding",
    "inkling_text": "hybrid_sliding",
    "jetmoe": "kv_channels",
    "longcat_flash": "intermediate_size",
    "minimax_m3_vl_text": "dense_intermediate_size",
    "qwen4_exp": "linear_attention",
    "qwen4_exp_text": "linear_attention",
    "zaya": "hybrid",
}
"""Families with parts that no shape describes, and what the message names."""

WRAPPED = {
    "aria": "AriaForConditionalGeneration",
    "glm4v_moe": "Glm4vMoeForConditionalGeneration",
    "qwen3_5_moe": "Qwen3_5MoeForConditionalGeneration",
    "qwen3_omni_moe_thinker": "Qwen3OmniMoeThinkerForConditionalGeneration",
    "qwen3_vl_moe": "Qwen3VLMoeForConditionalGeneration",
}
"""Models that read images or sound too: their text part is compared."""

WRAPPED_REFUSED = {
    "deepseek_ocr2": "num_experts_per_tok",
    "diffusion_gemma": "num_local_experts",
    "ernie4_5_vl_moe": "moe_intermediate_size",
    "glm5_next": "qk_rope_head_dim",
    "mistral_large4": "indexed_attention",
    "muse_spark": "moe_hidden_size",
    "nllb-moe": "num_hidden_layers",
    "openai_privacy_filter": "no decoder",
    "qwen3_omni_moe": "num_hidden_layers",
    "step3p7": "num_sliding_attention_heads",
    "switch_transformers": "num_attention_heads",
    "unlimited_ocr": "reference_sliding_attention",
}
"""Families without a causal model in `AutoModelForCausalLM`, and what the message names."""

GEMMA = {
    "enable_moe_block": True,
    "num_experts": 16,
    "top_k_experts": 4,
    "moe_intermediate_size": 704,
    "hidden_size_per_layer_input": 0,
    "num_kv_shared_layers": 0,
    "num_global_key_value_heads": 1,
    "attention_k_eq_v": True,
    "num_key_value_heads": 4,
}
CHANGES: dict[str, dict[str, Any]] = {
    "dbrx": {
        "n_layers": 3,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 96, "moe_num_experts": 6, "moe_top_k": 2},
    },
    "deepseek_v2": {"num_experts_per_tok": 6},
    "dots1": {
        "n_routed_experts": 16,
        "n_shared_experts": 2,
        "num_experts_per_tok": 4,
        "first_k_dense_replace": 1,
    },
    "gemma4": {"text_config": GEMMA},
    "gemma4_text": GEMMA,
    "hunyuan_v1_moe": {"num_experts": 8, "moe_topk": 2, "head_dim": 128, "num_hidden_layers": 4},
    "lfm2_moe": {
        "num_hidden_layers": 8,
        "layer_types": ["conv", "conv", "full_attention", "conv"] * 2,
    },
    "nemotron_h": {
        "layers_block_type": ["mamba", "moe", "mamba", "moe", "attention", "mlp"],
        "moe_latent_size": 256,
        "mamba_num_heads": 16,
    },
    "qwen4_exp": {"indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 64},
}
"""Where the defaults of a family are no complete model, or leave its special parts out."""


def families() -> list[str]:
    """Return the model types of the causal models of transformers that have modules of experts."""
    folder = Path(transformers.__file__).parent / "models"
    known = []
    for kind, config in transformers.CONFIG_MAPPING.items():
        name = config.__module__.split(".")[-2]
        texts = [file.read_text() for file in (folder / name).glob("modeling_*.py")]
        routed = any(re.search(r"^class \w+Experts\(", text, re.M) for text in texts)
        if routed and config in transformers.AutoModelForCausalLM._model_mapping:
            known.append(kind)
    return sorted(known)


def config_of(kind: str, **changes: Any) -> Any:
    return transformers.CONFIG_MAPPING[kind](**{**CHANGES.get(kind, {}), **changes})


def plain(config: Any) -> dict[str, Any]:
    return json.loads(config.to_json_string(use_diff=False))


def is_matrix(name: str, weights: Any) -> bool:
    return sum(size > 1 for size in weights.shape) > 1 and not name.endswith("bias")


def counts(config: Any) -> dict[str, Any]:
    """Return what the model of a configuration has, by its own modules of the text part."""
    with torch.device("meta"):
        if config.model_type in WRAPPED:
            model = getattr(transformers, WRAPPED[config.model_type])(config)
            for part in ("visual", "vision_tower", "multi_modal_projector", "audio_tower"):
                for owner in (model, getattr(model, "model", model)):
                    if hasattr(owner, part):
                        delattr(owner, part)
        else:
            model = transformers.AutoModelForCausalLM.from_config(config)
    routed, kv = {}, 0
    for name, module in model.named_modules():
        own = [p for key, p in module.named_parameters() if is_matrix(key, p)]
        if type(module).__name__.endswith("Experts") and own:
            routed[int(re.findall(r"\.(\d+)\.", name)[-1])] = sum(p.numel() for p in own)
        kv += kv_numbers(module)
    matrices = sum(p.numel() for key, p in model.named_parameters() if is_matrix(key, p))
    everything = sum(p.numel() for p in model.parameters())
    return {"routed": routed, "kv": kv, "matrices": matrices, "everything": everything}


def kv_numbers(module: Any) -> int:
    """Return the numbers that one token leaves in the cache of an attention module."""
    if hasattr(module, "kv_a_proj_with_mqa"):
        return module.kv_a_proj_with_mqa.out_features
    if hasattr(module, "wk") and hasattr(module, "weights_proj"):  # an index
        return module.wk.out_features
    if hasattr(module, "Wqkv"):
        return module.Wqkv.out_features - module.Wqkv.in_features
    if hasattr(module, "conv1d"):
        return 0
    if hasattr(module, "k_proj") and hasattr(module, "o_proj"):
        value = module.k_proj if module.v_proj is None else module.v_proj
        return module.k_proj.out_features + value.out_features
    if hasattr(module, "k_proj") and hasattr(module, "out_proj"):
        return module.k_proj.out_features + module.v_proj.out_features
    return 0


def check(shape: ModelShape, config: Any) -> None:
    """Compare a shape with the model of a configuration."""
    true = counts(config)
    assert shape.moe_layers == tuple(true["routed"])
    each = {total // shape.num_experts for total in true["routed"].values()}
    assert {shape.expert_params} == each
    norms = 1 if shape.kinds and config.model_type == "nemotron_h" else 2
    vectors = (norms * shape.num_layers + 1) * shape.hidden
    assert shape.total_params - vectors == true["matrices"]
    assert shape.total_params == pytest.approx(true["everything"], rel=1e-3)
    assert shape.with_bits(kv_bits=16).kv_bytes_per_token == 2 * true["kv"]


@pytest.mark.parametrize("kind", families())
def test_sizes_are_those_of_the_model_or_refused(kind: str) -> None:
    config = config_of(kind)
    if kind in REFUSED:
        with pytest.raises(UsageError, match=REFUSED[kind]):
            shape_from_config(plain(config))
        return
    check(shape_from_config(plain(config)), config)


@pytest.mark.parametrize("kind", WRAPPED)
def test_the_text_part_of_a_model_is_compared(kind: str) -> None:
    config = transformers.CONFIG_MAPPING[kind]()
    check(shape_from_config(plain(config)), config)


@pytest.mark.parametrize("kind", WRAPPED_REFUSED)
def test_families_without_a_causal_model_are_refused(kind: str) -> None:
    with pytest.raises(UsageError, match=WRAPPED_REFUSED[kind]):
        shape_from_config(plain(transformers.CONFIG_MAPPING[kind]()))


def test_no_family_with_experts_is_left_out() -> None:
    folder = Path(transformers.__file__).parent / "models"
    having = {
        file.parent.name
        for file in folder.glob("*/modeling_*.py")
        if re.search(r"^class \w+Experts\(", file.read_text(), re.M)
    }
    kinds = [*families(), *WRAPPED, *WRAPPED_REFUSED]
    named = {transformers.CONFIG_MAPPING[kind].__module__.split(".")[-2] for kind in kinds}
    # Built by a wrapper of another family only.
    assert having - named == {"mistral4"}


def test_mistral_4_has_the_sizes_of_its_own_model() -> None:
    from transformers.models.mistral4.modeling_mistral4 import Mistral4ForCausalLM

    config = transformers.CONFIG_MAPPING["mistral4"]()
    with torch.device("meta"):
        model = Mistral4ForCausalLM(config)
    matrices = sum(p.numel() for key, p in model.named_parameters() if is_matrix(key, p))
    shape = shape_from_config(plain(config))
    assert shape.total_params - (2 * shape.num_layers + 1) * shape.hidden == matrices


HUB: dict[str, dict[str, Any]] = {
    "minimax_m2": {
        "attn_type_list": [1, 1, 1, 1],
        "num_mtp_modules": 3,
        "mtp_transformer_layers": 1,
        "use_mtp": True,
        "use_qk_norm": True,
        "rotary_dim": 64,
        "shared_intermediate_size": 0,
        "use_routing_bias": True,
    },
    "mimo_v2_flash": {
        "attention_chunk_size": 128,
        "sliding_window": 128,
        "swa_num_attention_heads": 4,
        "hybrid_layer_pattern": [0, 1, 1, 0],
        "moe_layer_freq": [0, 1, 1, 1],
        "add_swa_attention_sink_bias": True,
        "intermediate_size": 64,
        "swa_head_dim": 8,
    },
    "hunyuan_v1_moe": {
        "moe_topk": [2, 2, 2, 2],
        "num_shared_expert": [1, 1, 1, 1],
        "use_mixed_mlp_moe": True,
        "moe_intermediate_size": [16, 16, 16, 16],
        "intermediate_size": 16,
        "attention_head_dim": 8,
        "moe_layer_num_skipped": 0,
        "use_cla": False,
        "cla_share_factor": 2,
        "pad_id": 5,
    },
    "gpt_oss": {
        "initial_context_length": 4096,
        "swiglu_limit": 7.0,
        "experts_per_token": 2,
    },
    "qwen3_moe": {
        "max_window_layers": 4,
        "use_sliding_window": False,
        "mlp_only_layers": [],
        "decoder_sparse_step": 1,
        "intermediate_size": 64,
        "rope_scaling": None,
    },
    "kimi_k2": {
        "ep_size": 1,
        "moe_layer_freq": 1,
        "num_nextn_predict_layers": 0,
        "seq_aux": True,
        "topk_method": "noaux_tc",
        "auto_map": {"AutoConfig": "x"},
        "aux_loss_alpha": 0.001,
    },
}
"""Keys of published configurations, some of which transformers itself does not know."""


@pytest.mark.parametrize("kind", HUB)
def test_published_spellings_are_read(kind: str) -> None:
    shape = shape_from_config({**SMALL, "model_type": kind, **HUB[kind]})
    assert (shape.num_experts, shape.top_k, shape.expert_ffn) == (8, 2, 16)
    if kind == "mimo_v2_flash":
        assert shape.moe_layers == (1, 2, 3)
        assert [one.kv_numbers for one in shape.all_kinds()] == [32, 64, 64, 32]
        assert [one.window for one in shape.all_kinds()] == [None, 128, 128, None]


def test_the_list_of_refused_families_does_not_grow() -> None:
    assert set(REFUSED) <= set(families())
    assert len(REFUSED) <= 13


SMALL: dict[str, Any] = {
    "model_type": "a_new_one",
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
}


def test_an_unknown_family_of_known_keys_is_read() -> None:
    shape = shape_from_config({**SMALL, "rope_theta": 1e6, "bos_token_id": 1, "use_cache": True})
    assert shape.moe_layers == (0, 1, 2, 3)
    assert shape.kv_bytes_per_token == 4 * 2 * 2 * 8 * 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"latent_size": 8}, "latent_size = 8"),
        ({"every_third_layer_is_dense": True}, "every_third_layer_is_dense = True"),
        ({"layer_pattern": ["a", "b"]}, r"layer_pattern = \['a', 'b'\]"),
        ({"ssm": {"state": 16}}, "ssm = {'state': 16}"),
        ({"layer_types": ["full_attention", "mamba"] * 2}, "kind 'mamba' in layer_types"),
    ],
)
def test_a_key_that_may_change_the_sizes_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        shape_from_config({**SMALL, **change})
    off = {key: 0 for key in change if key != "layer_types"}
    assert shape_from_config({**SMALL, **off}).num_layers == 4


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "published Maverick": (
        "llama4_text",
        {"num_local_experts": 128, "interleave_moe_layer_step": 2},
    ),
    "listed MoE layers": ("llama4_text", {"moe_layers": [1, 2, 5], "num_hidden_layers": 8}),
    "Granite-4-H-Small": (
        "granitemoehybrid",
        {
            "vocab_size": 100352,
            "hidden_size": 4096,
            "intermediate_size": 768,
            "shared_intermediate_size": 1536,
            "num_hidden_layers": 40,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "num_local_experts": 72,
            "num_experts_per_tok": 10,
            "mamba_n_heads": 128,
            "mamba_d_head": 64,
            "mamba_d_state": 128,
            "tie_word_embeddings": True,
            "layer_types": (["mamba"] * 5 + ["attention"] + ["mamba"] * 4) * 4,
        },
    ),
    "sparse step and dense list": (
        "qwen2_moe",
        {"decoder_sparse_step": 2, "mlp_only_layers": [3], "num_hidden_layers": 8},
    ),
    "shared indexes": (
        "glm_moe_dsa",
        {"num_hidden_layers": 6, "indexer_types": ["full", "full", "full", "shared"] * 2}
        | {"num_hidden_layers": 8},
    ),
    "heads by layer": (
        "laguna",
        {"num_hidden_layers": 4, "num_attention_heads_per_layer": [32, 48, 64, 48]}
        | {"gating": "full", "layer_types": ["full_attention", "sliding_attention"] * 2},
    ),
    "tied": ("qwen3_moe", {"tie_word_embeddings": True, "num_hidden_layers": 2}),
    "no query rank": (
        "deepseek_v3",
        {"q_lora_rank": None, "num_hidden_layers": 5, "n_shared_experts": 3},
    ),
    "Ernie from layer 1 to 4": (
        "ernie4_5_moe",
        {"moe_layer_start_index": 1, "moe_layer_end_index": 4, "num_hidden_layers": 8},
    ),
    "every second Ernie": ("ernie4_5_moe", {"moe_layer_interval": 2, "num_hidden_layers": 8}),
    "Jamba of other periods": (
        "jamba",
        {"attn_layer_period": 4, "attn_layer_offset": 1, "expert_layer_period": 3}
        | {"expert_layer_offset": 2, "num_hidden_layers": 8},
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_layers_and_experts_are_found_where_a_configuration_puts_them(name: str) -> None:
    kind, changes = VARIANTS[name]
    config = config_of(kind, **changes)
    check(shape_from_config(plain(config)), config)


def test_a_nemotron_pattern_says_the_same_as_its_list_of_blocks() -> None:
    config = config_of("nemotron_h")
    listed = shape_from_config(plain(config))
    spelled = {**plain(config), "hybrid_override_pattern": "MEME*-"}
    for key in ("layers_block_type", "layer_types"):
        spelled.pop(key, None)
    assert shape_from_config(spelled) == listed
    assert [kind.routed for kind in listed.all_kinds()] == [False, True, False, True, False, False]
    assert [bool(kind.kv_numbers) for kind in listed.all_kinds()].count(True) == 1
    assert (listed.expert_matrices, listed.expert_width) == (2, 256)


def entries() -> dict[str, dict[str, Any]]:
    return {
        name: entry["config"]
        for name, entry in yaml.safe_load(SHAPES.read_text(encoding="utf-8")).items()
        if "config" in entry
    }


@pytest.mark.parametrize("name", entries())
def test_a_shipped_model_has_the_sizes_that_transformers_builds(name: str) -> None:
    config = entries()[name]
    kind = transformers.CONFIG_MAPPING[config["model_type"]]
    check(named_shape(name), kind.from_dict(config))


def test_recording_says_that_a_run_will_need_a_shape(capsys: pytest.CaptureFixture[str]) -> None:
    _note_missing_shape(SMALL)
    assert capsys.readouterr() == ("", "")
    _note_missing_shape({**SMALL, "latent_size": 8})
    said = capsys.readouterr().err
    assert said.startswith("note: a run of this trace needs `model`")
    assert "latent_size = 8" in said
