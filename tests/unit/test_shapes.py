"""Shapes agree with what is published of the models."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT

from moesim.errors import UsageError
from moesim.hardware.measurement import ShapeProfile, shape_profile, signature
from moesim.model.hf_config import load_shape, shape_from_config
from moesim.model.shapes import ModelShape, named_shape, shape_aliases, shape_names

# Bytes of one expert in bf16, and all experts' gigabytes; the known total of parameters.
KNOWN = {
    "mixtral-8x7b": (352_321_536, 90.2, 46.7e9),
    "mixtral-8x22b": (603_979_776, 270.6, 140.6e9),
    "qwen1.5-moe-a2.7b": (17_301_504, 24.9, 14.3e9),
    "qwen3-30b-a3b": (9_437_184, 58.0, 30.5e9),
    "olmoe-1b-7b": (12_582_912, 12.9, 6.9e9),
    "deepseek-v2-lite": (17_301_504, 28.8, 15.7e9),
    "deepseek-v3": (88_080_384, 1307.8, 671e9),
    "gpt-oss-20b": (49_766_400, 38.2, 20.9e9),
    "gpt-oss-120b": (49_766_400, 229.3, 116.8e9),
    "phi-3.5-moe": (157_286_400, 80.5, 41.9e9),
    "qwen3-235b-a22b": (37_748_736, 454.2, 235.09e9),
    "qwen2-57b-a14b": (55_050_240, 98.6, 57.41e9),
    "dots.llm1": (34_603_008, 270.2, 142.77e9),
    "hunyuan-a13b": (75_497_472, 154.6, 80.39e9),
    "llama-4-scout": (251_658_240, 193.3, 107.77e9),
    "llama-4-maverick": (251_658_240, 773.1, 400.71e9),
    "gemma-4-26b-a4b": (11_894_784, 45.7, 25.2e9),
    "glm-4.7-flash": (18_874_368, 55.6, 29.94e9),
    "minimax-m2.7": (28_311_552, 449.4, 228.69e9),
    "mimo-v2-flash": (50_331_648, 605.6, 308.78e9),
    "nemotron-3-super-120b-a12b": (11_010_048, 225.5, 120.67e9),
    "qwen3.5-35b-a3b": (6_291_456, 64.4, 34.66e9),
    "qwen3.5-122b-a10b": (18_874_368, 231.9, 122.11e9),
    "deepseek-v4-flash": (50_331_648, 554.1, 284.33e9),
    "qwen3.8-flash-next": (9_830_400, 241.6, 176.94e9),
    "glm-4.5-air": (34_603_008, 199.3, 106e9),
    "glm-4.6": (47_185_920, 671.9, 355e9),
    "kimi-k2": (88_080_384, 2029.4, 1026.4e9),
    "qwen3-next-80b-a3b": (6_291_456, 154.6, 80e9),
    "qwen3-coder-480b-a35b": (94_371_840, 936.2, 480e9),
    "ernie-4.5-300b-a47b": (176_160_768, 575.0, 300e9),
    "readme-llama-2-7b": (135_266_304, 30.3, 17.56e9),
}


def test_the_table_holds_these_models() -> None:
    assert shape_names() == sorted(KNOWN)
    assert all(named_shape(name).source for name in KNOWN)


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_sizes_agree_with_the_published_ones(name: str) -> None:
    expert_bytes, all_experts_gb, total = KNOWN[name]
    shape = named_shape(name)
    halves = shape.with_bits(expert_bits=16)
    assert halves.expert_bytes == expert_bytes
    num_experts = len(shape.moe_layers) * shape.num_experts
    assert num_experts * halves.expert_bytes / 1e9 == pytest.approx(all_experts_gb, abs=0.06)
    assert shape.total_params == pytest.approx(total, rel=0.02)
    assert shape.fixed_bytes == 2 * shape.fixed_params
    assert shape.fixed_params + num_experts * shape.expert_params == shape.total_params


def test_kv_entries_follow_the_kind_of_attention() -> None:
    assert named_shape("mixtral-8x7b").kv_bytes_per_token == 2 * 32 * 8 * 128 * 2
    assert named_shape("deepseek-v3").kv_bytes_per_token == 61 * 576 * 2
    assert named_shape("mixtral-8x7b").with_bits(kv_bits=8).kv_bytes_per_token == 65536


def test_quantised_experts_round_up_to_whole_bytes() -> None:
    assert named_shape("gpt-oss-20b").expert_bytes == 24_883_200 * 17 // 32
    shape = named_shape("mixtral-8x7b").with_bits(expert_bits=4.5)
    assert shape.expert_bytes == 176_160_768 * 9 // 16
    assert shape.fixed_bytes == named_shape("mixtral-8x7b").fixed_bytes


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("Qwen3-30B-A3B-Instruct-2507", "qwen3-30b-a3b"),
        ("deepseek2 671B", "deepseek-v3"),
        ("DEEPSEEK-R1", "deepseek-v3"),
        ("Mixtral-8x7B", "mixtral-8x7b"),
        ("qwen3.6-35b-a3b", "qwen3.5-35b-a3b"),
        ("Mixtral 8x7B", "mixtral-8x7b"),
        ("Mixtral-8x7B-Instruct", "mixtral-8x7b"),
        ("mixtral8x7b", "mixtral-8x7b"),
        ("Qwen/Qwen3-235B-A22B-Instruct-2507", "qwen3-235b-a22b"),
        ("Qwen3 30B A3B Instruct2507", "qwen3-30b-a3b"),
        ("gemma-4-26b-a4b-it", "gemma-4-26b-a4b"),
        ("DeepSeek-V2-Lite-Chat", "deepseek-v2-lite"),
        ("gpt-oss:120b", "gpt-oss-120b"),
        ("DeepSeek V3.1", "deepseek-v3"),
        ("GLM-4.5", "glm-4.6"),
        ("GLM-4.5-Air", "glm-4.5-air"),
        ("Kimi-K2-Instruct-0905", "kimi-k2"),
    ],
)
def test_a_model_is_found_by_its_other_names_in_any_case(said: str, name: str) -> None:
    assert named_shape(said) is named_shape(name)


@pytest.mark.parametrize(
    "name", ["DeepSeek-V2", "DeepSeek-V3.2", "Qwen3-30B", "GLM-4", "instruct", "2507", "it", ""]
)
def test_no_other_model_stands_for_one_that_is_not_shipped(name: str) -> None:
    with pytest.raises(UsageError, match="no model shape is called"):
        named_shape(name)


def test_shipped_configs_build_models_of_the_published_size() -> None:
    """The counts are those of the models that transformers builds, without vectors of biases."""
    built = {
        "glm-4.5-air": 106_851_586_048,
        "glm-4.6": 352_796_472_320,
        "kimi-k2": 1_026_408_209_408,
        "qwen3-next-80b-a3b": 79_674_391_296,
        "qwen3-coder-480b-a35b": 480_154_875_392,
        "ernie-4.5-300b-a47b": 299_484_163_264,
    }
    for name, params in built.items():
        assert named_shape(name).total_params == pytest.approx(params, rel=1e-5)


def test_no_two_models_share_a_name() -> None:
    for name in shape_names():
        for other in (name, *shape_aliases(name)):
            assert named_shape(other) is named_shape(name)
            assert named_shape(re.sub(r"[-_ ]", "", other)) is named_shape(name)
    names = [other.lower() for name in shape_names() for other in (name, *shape_aliases(name))]
    assert len(names) == len(set(names))


def test_layers_without_attention_keep_a_state_and_no_kv() -> None:
    """Nemotron-3-Super attends in 8 of 88 blocks; 40 are Mamba-2 of 128 × 64 × 128 numbers."""
    shape = named_shape("nemotron-3-super-120b-a12b")
    assert shape.kv_bytes_per_token == 8 * 2 * 2 * 128 * 2
    inputs = 3 * (128 * 64 + 2 * 8 * 128) * 2
    assert shape.state_bytes_per_sequence == 40 * (128 * 64 * 128 * 4 + inputs)
    assert [shape.kv_bytes_of(layer) for layer in (0, 1, 7)] == [0, 0, 1024]
    assert named_shape("mixtral-8x7b").state_bytes_per_sequence == 0


@pytest.mark.parametrize("name", ["nemotron-3-super-120b-a12b", "mimo-v2-flash", "deepseek-v3"])
def test_a_measured_profile_keeps_the_kinds_of_layers(name: str) -> None:
    shape = named_shape(name)
    written = shape_profile(shape).model_dump(mode="json")
    assert signature(ShapeProfile.model_validate(written).resolve()) == signature(shape)
    new = ("kinds", "layer_kinds", "expert_matrices", "expert_width", "lookup_params")
    old = {key: value for key, value in written.items() if key not in new}
    if not shape.kinds:  # a profile that was written before layers had kinds
        assert signature(ShapeProfile.model_validate(old).resolve()) == signature(shape)


def test_an_unknown_name_is_answered_with_a_near_one() -> None:
    with pytest.raises(UsageError, match="did you mean 'mixtral-8x7b'"):
        named_shape("mixtral-8x7")


def sizes(shape: ModelShape) -> tuple[Any, ...]:
    return (
        *(shape.num_layers, shape.hidden, shape.expert_ffn, shape.num_experts, shape.top_k),
        *(shape.num_heads, shape.num_kv_heads, shape.vocabulary, shape.dense_layers),
        *(shape.shared_ffn, shape.dense_ffn, shape.mla, shape.windowed_layers, shape.window),
        *(shape.attention_params, shape.total_params, shape.expert_bits, shape.router),
    )


CONFIGS: dict[str, dict[str, Any]] = {
    "mixtral-8x7b": {
        "model_type": "mixtral",
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    },
    "qwen3-30b-a3b": {
        "model_type": "qwen3_moe",
        "num_hidden_layers": 48,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "moe_intermediate_size": 768,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "vocab_size": 151936,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "sliding_window": None,
        "use_sliding_window": False,
    },
    "qwen1.5-moe-a2.7b": {
        "model_type": "qwen2_moe",
        "num_hidden_layers": 24,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "vocab_size": 151936,
        "sliding_window": 32768,
        "use_sliding_window": False,
    },
    "olmoe-1b-7b": {
        "model_type": "olmoe",
        "num_hidden_layers": 16,
        "hidden_size": 2048,
        "intermediate_size": 1024,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "vocab_size": 50304,
    },
    "deepseek-v2-lite": {
        "model_type": "deepseek_v2",
        "num_hidden_layers": 27,
        "hidden_size": 2048,
        "intermediate_size": 10944,
        "moe_intermediate_size": 1408,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "num_experts_per_tok": 6,
        "first_k_dense_replace": 1,
        "moe_layer_freq": 1,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "kv_lora_rank": 512,
        "q_lora_rank": None,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "vocab_size": 102400,
    },
    "gpt-oss-20b": {
        "model_type": "gpt_oss",
        "num_hidden_layers": 24,
        "hidden_size": 2880,
        "intermediate_size": 2880,
        "num_local_experts": 32,
        "num_experts_per_tok": 4,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "sliding_window": 128,
        "layer_types": ["sliding_attention", "full_attention"] * 12,
        "vocab_size": 201088,
        "quantization_config": {"quant_method": "mxfp4"},
    },
    "readme-llama-2-7b": {
        "model_type": "moesim_readme",
        "base": {
            "model_type": "llama",
            "num_hidden_layers": 32,
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "vocab_size": 32000,
            "tie_word_embeddings": False,
            "torch_dtype": "float16",
        },
        "num_experts": 7,
        "num_experts_per_tok": 1,
        "expert_ffn": 5504,
        "shared_ffn": 0,
        "routing": "decoupled",
        "router": {"hidden": 512, "heads": 4, "ffn": 512, "mlp": "silu"},
        "vocab_size": 32000,
    },
}


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_a_config_gives_the_shape_of_the_table(name: str) -> None:
    assert sizes(shape_from_config(CONFIGS[name])) == sizes(named_shape(name))


def test_a_decoupled_router_is_counted_by_hand() -> None:
    """Embeddings, four attention products, an MLP of two, the output, three norms; biases."""
    shape = named_shape("readme-llama-2-7b")
    assert shape.router is not None
    block = 4 * (512 * 512 + 512) + 2 * (512 * 512 + 512) + (512 * 7 + 7) + 3 * 512
    assert shape.router.multiplied_params(7) == block
    assert shape.router_params == 32000 * 512 + block == 17_965_063
    gated = replace(shape, router=replace(shape.router, gated=True))
    assert gated.router_params == 17_965_063 + 512 * 512 + 512
    config = CONFIGS["readme-llama-2-7b"]
    spelled = shape_from_config({**config, "router": {**config["router"], "mlp": "swiglu"}})
    assert spelled.router == gated.router
    assert shape.router_kv_bytes_per_token == 2 * 512 * 2
    assert shape.kv_bytes_per_token == 2 * 32 * 32 * 128 * 2 + 2048


def test_a_refactored_llama_has_as_many_weights_as_are_published() -> None:
    shape = named_shape("readme-llama-2-7b")
    backbone = shape.total_params - shape.router_params
    idle = 32 * 6 * shape.expert_params
    assert backbone == pytest.approx(17.56e9, abs=5e6)
    assert backbone - idle == pytest.approx(4.574e9, abs=5e5)


def test_layers_have_a_router_of_their_own_unless_one_is_decoupled() -> None:
    config = CONFIGS["readme-llama-2-7b"]
    decoupled, layerwise = shape_from_config(config), shape_from_config({**config, **LAYERWISE})
    assert layerwise.router is None
    assert layerwise.front_params - decoupled.front_params == 4096 * 7
    assert layerwise.router_params == layerwise.router_kv_bytes_per_token == 0
    unfused = shape_from_config({**config, "shared_ffn": 3000, "expert_ffn": 2504})
    assert (unfused.shared_ffn, unfused.expert_ffn) == (3000, 2504)
    assert unfused.front_params - decoupled.front_params == 3 * 4096 * 3000


LAYERWISE = {"routing": "layerwise", "router": None}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"base": None}, "base = None"),
        ({"base": {}}, "lacks num_hidden_layers"),
        ({"expert_ffn": 0}, "lacks expert_ffn"),
        ({"routing": "sometimes"}, "routing = 'sometimes'"),
        ({"router": None}, "router = None"),
        ({"router": {"hidden": 512, "heads": 4}}, "lacks ffn"),
    ],
)
def test_an_unfinished_refactored_config_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        shape_from_config({**CONFIGS["readme-llama-2-7b"], **change})


def test_a_measured_profile_keeps_a_decoupled_router() -> None:
    shape = named_shape("readme-llama-2-7b")
    written = shape_profile(shape).model_dump()
    assert signature(ShapeProfile.model_validate(written).resolve()) == signature(shape)


def test_precisions_come_from_the_config() -> None:
    base = CONFIGS["mixtral-8x7b"]
    assert shape_from_config({**base, "torch_dtype": "float32"}).expert_bits == 32
    quantised = {**base, "quantization_config": {"quant_method": "gptq", "bits": 4}}
    assert shape_from_config(quantised).expert_bits == 4
    assert shape_from_config(quantised).weight_bits == 16
    fp8 = {**base, "quantization_config": {"quant_method": "fp8"}}
    assert shape_from_config(fp8).expert_bits == 8


def test_a_text_part_inside_a_config_is_found() -> None:
    nested = {"model_type": "outer", "text_config": CONFIGS["olmoe-1b-7b"]}
    assert sizes(shape_from_config(nested)) == sizes(named_shape("olmoe-1b-7b"))


def test_dense_layers_are_found_between_sparse_ones() -> None:
    base = CONFIGS["qwen3-30b-a3b"]
    shape = shape_from_config({**base, "decoder_sparse_step": 2, "mlp_only_layers": [1]})
    assert shape.dense_layers[:4] == (0, 1, 2, 4)
    assert shape.dense_ffn == 6144


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_local_experts": None}, "lacks num_local_experts or num_experts"),
        ({"hidden_size": "big"}, "hidden_size = 'big'"),
        ({"hidden_size": -1}, "hidden_size = -1"),
        ({"vocab_size": True}, "vocab_size = True"),
        ({"hidden_size": 10**30}, "hidden_size = 10+, which is too large"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000, which is too large"),
        ({"num_local_experts": 70_000}, "num_local_experts = 70000, which is too large"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok = 9, which is too large; at most 8"),
        ({"sliding_window": 8, "layer_types": 1}, "layer_types = 1, not a list of texts"),
        ({"layer_types": [1, "full_attention"]}, "layer_types = .*, not a list of texts"),
        (
            {"sliding_window": 8, "layer_types": ["sliding_attention"] * 3},
            "layer_types of 3 layers, and num_hidden_layers = 32",
        ),
        ({"mlp_only_layers": True}, "mlp_only_layers = True, not a list of layer numbers"),
        ({"mlp_only_layers": [0, "x"]}, "mlp_only_layers = .*, not a list of layer numbers"),
        ({"mlp_layer_types": "dense"}, "mlp_layer_types = 'dense', not a list of texts"),
        ({"mlp_layer_types": ["dense"] * 32}, "no layer with routed experts"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings = 'no', not true or false"),
        ({"use_sliding_window": 1}, "use_sliding_window = 1, not true or false"),
        ({"quantization_config": "fp8"}, "quantization_config = 'fp8', not a JSON object"),
        ({"text_config": [1]}, r"text_config = \[1\], not a JSON object"),
        ({"model_type": ["mixtral"]}, r"model_type = \['mixtral'\], not text"),
        ({"_name_or_path": 3}, "_name_or_path = 3, not text"),
    ],
)
def test_what_is_no_moe_config_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        shape_from_config({**CONFIGS["mixtral-8x7b"], **change})


def test_a_config_file_is_read_and_its_errors_name_it(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIGS["mixtral-8x7b"]))
    assert load_shape(path).total_params == named_shape("mixtral-8x7b").total_params
    for text, says in (
        ("{", "is not JSON"),
        ("[]", "JSON object"),
        ("{}", "lacks"),
        ("[" * 100_000, "is not JSON: recursion limit"),
        ('{"hidden_size": ' + "9" * 5000 + "}", "is not JSON: number out of range"),
    ):
        path.write_text(text)
        with pytest.raises(UsageError, match=says) as caught:
            load_shape(path)
        assert str(path) in str(caught.value)
    with pytest.raises(UsageError, match="cannot be read"):
        load_shape(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("module", "cls"),
    [
        ("mixtral", "MixtralConfig"),
        ("qwen2_moe", "Qwen2MoeConfig"),
        ("qwen3_moe", "Qwen3MoeConfig"),
        ("olmoe", "OlmoeConfig"),
        ("deepseek_v2", "DeepseekV2Config"),
        ("deepseek_v3", "DeepseekV3Config"),
        ("gpt_oss", "GptOssConfig"),
        ("phimoe", "PhimoeConfig"),
        ("granitemoe", "GraniteMoeConfig"),
    ],
)
def test_the_configs_that_transformers_writes_are_read(module: str, cls: str) -> None:
    models = pytest.importorskip("transformers.models")
    config = getattr(getattr(models, module), cls)(num_experts_per_tok=2)
    shape = shape_from_config(json.loads(config.to_json_string(use_diff=False)))
    assert shape.num_layers == config.num_hidden_layers
    assert shape.top_k == 2 <= shape.num_experts
    assert 0 < len(shape.moe_layers) <= shape.num_layers


MEASURED = ROOT.parent / "shared" / "data" / "measured" / "models.json"


@pytest.mark.skipif(not MEASURED.exists(), reason="the models of measured rows are not here")
def test_models_of_measured_rows_are_shipped_with_their_sizes() -> None:
    for model in json.loads(MEASURED.read_text()):
        shape = named_shape(model["name"])
        assert all(named_shape(alias).num_layers == shape.num_layers for alias in model["aliases"])
        assert shape.moe_layers == tuple(model["moe_layers"]), model["name"]
        for key, expected in (
            ("hidden", shape.hidden), ("expert_ffn", shape.expert_ffn), ("top_k", shape.top_k),
            ("num_experts", shape.num_experts), ("vocabulary", shape.vocabulary),
        ):  # fmt: skip
            assert model[key] == expected, (model["name"], key)
        # The biases of an expert of gpt-oss are left out, as vectors are.
        assert shape.expert_params == pytest.approx(model["params_per_expert"], rel=4e-4)
        total = model["check"]["total_from_sizes"]
        assert shape.total_params == pytest.approx(total, rel=1e-3), model["name"]
