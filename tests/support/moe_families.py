"""A tiny random model of every family of transformers with routed experts, by `model_type`.

Sizes that a configuration knows are made small; `CHANGES` has what a family needs beyond that.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
import transformers as hf

__all__ = [
    "FAMILIES",
    "PROMPTS",
    "REFUSED",
    "TEXT",
    "VOCABULARY",
    "WITH_IMAGES",
    "families_known",
    "folder_of",
    "tiny_family",
]

VOCABULARY: Final = 97
PROMPTS: Final = ((5, 6, 7, 8, 9, 10, 11), (20, 21), (30, 31, 32, 33, 34))

_SMALL: Final[dict[str, Any]] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "initializer_range": 0.3,  # wide, so that scores are far from ties
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 8),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk", "top_k_experts"), 3),
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "shared_expert_intermediate_size": 16,
    "shared_intermediate_size": 16,
    "index_n_heads": 2,
    "index_head_dim": 16,
    "index_topk": 64,
}
_LINEAR: Final = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
_HYBRID: Final = {"layer_types": ["linear_attention", "full_attention"] * 2}
_ALTERNATING: Final = {"layer_types": ["sliding_attention", "full_attention"] * 2}
_ONE_DENSE: Final = {"mlp_layer_types": ["dense", "sparse", "sparse", "sparse"]}
_ABSENT: Final = "absent"  # the value of a key that a family must not get

TEXT: Final[dict[str, dict[str, Any]]] = {
    "afmoe": {},
    "aria_text": {},
    "axk1": {},
    "axk2": {},
    "bailing_hybrid": _HYBRID,
    "beam": _ONE_DENSE,
    "cohere2_moe": {},
    "dbrx": {
        **dict.fromkeys(("num_hidden_layers", "num_attention_heads", "hidden_size"), _ABSENT),
        "d_model": 32,
        "n_heads": 4,
        "n_layers": 3,
        "max_seq_len": 128,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {
            "hidden_size": 32,
            "ffn_hidden_size": 16,
            "moe_num_experts": 8,
            "moe_top_k": 3,
        },
    },
    "deepseek_v2": {},
    "deepseek_v3": {},
    "deepseek_v32": {},
    "deepseek_v4": {},
    "dots1": {"n_shared_experts": 1},
    "dots3_note_text": {},
    "ernie4_5_moe": {},
    "exaone_moe": {},
    "flex_olmo": {},
    "flint": {"mlp_only_layers": [0]},
    "gemma4_text": {
        "enable_moe_block": True,
        "global_head_dim": 16,
        "num_global_key_value_heads": 2,
        "hidden_size_per_layer_input": 0,
        "num_kv_shared_layers": 0,
        **_ALTERNATING,
    },
    "glm4_moe": {},
    "glm4_moe_lite": {},
    "glm_moe_dsa": {},
    "gpt_oss": {},
    "granitemoe": {},
    "granitemoe_swa": {},
    "granitemoehybrid": {
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_d_state": 16,
        "layer_types": ["mamba", "attention"] * 2,
    },
    "granitemoeshared": {},
    "hunyuan_v1_moe": {},
    "hy_v3": {},
    "hy_v4": {},
    "inkling2_text": {},
    "inkling_text": {},
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 1,
        "expert_layer_offset": 0,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
    "jetmoe": {},
    "kimi_linear": {**_HYBRID, "linear_num_heads": 2, "linear_head_dim": 16},
    "kolibri1": {},
    "laguna": {},
    "lfm2_moe": {"num_dense_layers": 1, "layer_types": ["conv", "full_attention"] * 2},
    "llama4_text": {},
    "longcat_flash": {
        **dict.fromkeys(("num_hidden_layers", "moe_intermediate_size"), _ABSENT),
        "num_layers": 3,
        "ffn_hidden_size": 48,
        "expert_ffn_hidden_size": 16,
        "zero_expert_num": 4,
    },
    "mellum": {},
    "mimo_v2_flash": {},
    "minimax": {},
    "minimax_m2": {},
    "minimax_m3_vl_text": {},
    "mistral4": {},
    "mixtral": {},
    "nemotron_h": {
        "num_hidden_layers": _ABSENT,
        "layers_block_type": ["mamba", "moe", "attention", "moe", "mamba", "moe"],
        "moe_shared_expert_intermediate_size": 16,
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "ssm_state_size": 16,
        "n_groups": 2,
        "moe_latent_size": 24,
    },
    "olmoe": {},
    "phimoe": {"num_experts_per_tok": 2},
    "qwen2_moe": {},
    "qwen3_5_moe_text": _LINEAR,
    "qwen3_moe": {},
    "qwen3_next": _LINEAR,
    "qwen4_exp_text": {
        **_LINEAR,
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 16,
        "indexer_compress_ratio": 2,
    },
    "solar_open": {},
    "zaya": {
        "num_local_experts": _ABSENT,
        "num_experts": 7,
        "num_experts_per_tok": 1,
        "router_hidden_size": 16,
    },
}
"""Text models by `model_type`, and what each needs beyond small sizes."""

_MROPE: Final = {"rope_theta": 10000.0, "rope_type": "default", "mrope_section": [1, 1, 2]}
WITH_IMAGES: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "aria": ("Aria", {}),
    "deepseek_ocr2": ("DeepseekOcr2", _ONE_DENSE),
    "ernie4_5_vl_moe": (
        "Ernie4_5_VLMoe",
        {
            **dict.fromkeys(("num_experts", "num_experts_per_tok"), _ABSENT),
            **_ONE_DENSE,
            "moe_intermediate_size": [16, 16],
            "moe_num_shared_experts": 1,
            "rope_parameters": _MROPE,
        },
    ),
    "glm4v_moe": (
        "Glm4vMoe",
        {"rope_parameters": {**_MROPE, "partial_rotary_factor": 0.5, "mrope_section": [1, 1, 0]}},
    ),
    "glm5_next": (
        "Glm5Next",
        {**_ONE_DENSE, "qk_rope_head_dim": 0, "linear_num_heads": 2, "linear_head_dim": 16},
    ),
    "mistral_large4": ("MistralLarge4", {}),
    "muse_spark": ("MuseSpark", {**_ONE_DENSE, "moe_hidden_size": 24}),
    "qwen3_omni_moe_thinker": ("Qwen3OmniMoeThinker", {}),
    "qwen3_vl_moe": ("Qwen3VLMoe", {}),
    "step3p7": ("Step3p7", {**_ONE_DENSE, "sliding_window": 8}),
    "unlimited_ocr": ("UnlimitedOcr", {}),
}
"""Models that read images or sound too: the start of their class, and changes of the text part."""

REFUSED: Final[dict[str, str]] = {
    "diffusion_gemma": "it denoises blocks of tokens",
    "nllb-moe": "calls its experts with a mask over all experts",
    "openai_privacy_filter": "it labels the tokens of a text",
}
"""Families that are refused, and what the message says."""

FAMILIES: Final = (*TEXT, *WITH_IMAGES, "switch_transformers")
"""All families that are recorded."""


def families_known() -> set[str]:
    """Return the folders of all families of transformers that have modules of routed experts."""
    folder = Path(hf.__file__).parent / "models"
    return {
        file.parent.name
        for file in folder.glob("*/modeling_*.py")
        if re.search(r"^class \w+Experts\(", file.read_text(encoding="utf-8"), re.M)
    }


def folder_of(kind: str) -> str:
    """Return the folder of transformers that holds a family."""
    return str(hf.CONFIG_MAPPING[kind].__module__.split(".")[-2])


def tiny_family(kind: str, seed: int = 0) -> Any:
    """Return a random model of a family in evaluation mode, which never ends a text."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    if kind in TEXT:
        model = _text_model(kind)
    elif kind in WITH_IMAGES:
        model = _model_with_images(kind)
    else:
        model = _OTHERS[kind]()
    _draw_biases(model)
    for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
        config.eos_token_id = None
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.eos_token_id = None
        model.generation_config.pad_token_id = 0
    return model.eval()


def _text_model(kind: str) -> Any:
    maker: Any = hf.CONFIG_MAPPING[kind]
    config = maker(**_small(maker, TEXT[kind]))
    if kind == "mistral4":  # no auto class knows it
        from transformers.models.mistral4.modeling_mistral4 import Mistral4ForCausalLM

        return Mistral4ForCausalLM(config)
    auto: Any = hf.AutoModelForCausalLM
    return auto.from_config(config)


def _model_with_images(kind: str) -> Any:
    """Build only the text part; the other parts are left empty, as text alone never runs them."""
    start, changes = WITH_IMAGES[kind]
    maker: Any = hf.CONFIG_MAPPING[kind]
    parts = {"audio_config": {"out_hidden_size": 32}} if kind == "muse_spark" else {}
    config = maker(text_config=_small(maker.sub_configs["text_config"], changes), **parts)
    if kind == "qwen3_omni_moe_thinker":
        config.vision_start_token_id = VOCABULARY - 1
    with torch.device("meta"):
        model = getattr(hf, start + "ForConditionalGeneration")(config)
    inside = model.model
    for holder in (model, inside):
        for name, child in list(holder.named_children()):
            if name == "language_model":
                setattr(holder, name, type(child)._from_config(child.config))
            elif child is not inside and any(p.is_meta for p in child.parameters()):
                setattr(holder, name, torch.nn.Identity())
        for name, weight in list(holder.named_parameters(recurse=False)):
            if weight.is_meta:
                setattr(holder, name, torch.nn.Parameter(torch.zeros(weight.shape)))
    model.lm_head = torch.nn.Linear(32, VOCABULARY, bias=False)
    torch.nn.init.normal_(model.lm_head.weight, std=0.3)
    return model


def _small(config: Any, changes: dict[str, Any]) -> dict[str, Any]:
    """Return small sizes under the keys that a configuration class has, and `changes`."""
    known = {*inspect.signature(config.__init__).parameters, *config.attribute_map}
    known |= set(config().to_dict())
    sizes = {key: value for key, value in _SMALL.items() if key in known}
    if "kv_lora_rank" in sizes:
        sizes |= {"num_key_value_heads": 4, "head_dim": 8}
        sizes = {key: value for key, value in sizes.items() if key in known}
    return {key: value for key, value in {**sizes, **changes}.items() if value is not _ABSENT}


def _draw_biases(model: Any) -> None:
    """Give biases of selection and tables of experts values that change choices."""
    for name, tensor in [*model.named_buffers(), *model.named_parameters()]:
        with torch.no_grad():
            if name.endswith("tid2eid"):
                k = tensor.shape[1]
                tensor.copy_(torch.stack([torch.randperm(8)[:k] for _ in range(len(tensor))]))
            elif re.search(r"(expert_bias|correction_bias|balancing_biases)$", name):
                tensor.normal_(std=0.1)


def _nllb() -> Any:
    sizes = {"layers": 2, "attention_heads": 2, "ffn_dim": 16, "sparse_step": 1}
    both: dict[str, Any] = {
        f"{part}_{name}": size for part in ("encoder", "decoder") for name, size in sizes.items()
    }
    return hf.NllbMoeForConditionalGeneration(
        hf.NllbMoeConfig(vocab_size=VOCABULARY, d_model=16, num_experts=4, **both)
    )


def _switch() -> Any:
    config: Any = hf.SwitchTransformersConfig
    return hf.SwitchTransformersForConditionalGeneration(
        config(
            vocab_size=VOCABULARY,
            d_model=32,
            d_kv=16,
            d_ff=32,
            num_layers=6,
            num_decoder_layers=6,
            num_sparse_encoder_layers=1,
            num_sparse_decoder_layers=3,
            num_heads=2,
            num_experts=6,
            pad_token_id=0,
            decoder_start_token_id=0,
            initializer_factor=2.0,
        )
    )


def _privacy_filter() -> Any:
    maker: Any = hf.CONFIG_MAPPING["openai_privacy_filter"]
    kind: Any = hf.OpenAIPrivacyFilterForTokenClassification
    return kind(maker(**_small(maker, {})))


def _diffusion_gemma() -> Any:
    maker: Any = hf.CONFIG_MAPPING["diffusion_gemma"]
    with torch.device("meta"):
        return hf.DiffusionGemmaForBlockDiffusion(
            maker(text_config=_small(maker.sub_configs["text_config"], TEXT["gemma4_text"]))
        )


_OTHERS: Final[dict[str, Callable[[], Any]]] = {
    "switch_transformers": _switch,
    "nllb-moe": _nllb,
    "openai_privacy_filter": _privacy_filter,
    "diffusion_gemma": _diffusion_gemma,
}
