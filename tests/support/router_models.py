"""Tiny random models of every router family that the recorder knows, for its tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf

torch.set_num_threads(1)

VOCABULARY = 61
PAD, END = 0, 1

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": PAD,
    "bos_token_id": None,
    "eos_token_id": END,
    # Wide enough that logits, and so routing, are far from ties.
    "initializer_range": 0.3,
}
_MLA: dict[str, Any] = {
    "kv_lora_rank": 16,
    "q_lora_rank": None,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "head_dim": 8,
    "moe_intermediate_size": 16,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "first_k_dense_replace": 1,
}


def _any(config: Any) -> Any:
    """Return a configuration class untyped: it takes more keywords than it declares."""
    return config


def _dbrx() -> Any:
    config = hf.DbrxConfig(
        vocab_size=VOCABULARY,
        d_model=32,
        n_heads=2,
        n_layers=3,
        max_seq_len=128,
        pad_token_id=PAD,
        eos_token_id=END,
        initializer_range=0.3,
        attn_config={"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        ffn_config={"hidden_size": 32, "ffn_hidden_size": 16, "moe_num_experts": 6, "moe_top_k": 2},
    )
    return hf.DbrxForCausalLM(config)


def _switch() -> Any:
    config = _any(hf.SwitchTransformersConfig)(
        vocab_size=VOCABULARY,
        d_model=32,
        d_kv=16,
        d_ff=32,
        num_layers=4,
        num_decoder_layers=4,
        num_sparse_encoder_layers=1,
        num_sparse_decoder_layers=2,
        num_heads=2,
        num_experts=6,
        pad_token_id=PAD,
        eos_token_id=END,
        decoder_start_token_id=PAD,
        initializer_factor=2.0,
    )
    return hf.SwitchTransformersForConditionalGeneration(config)


FAMILIES: dict[str, Callable[[], Any]] = {
    "mixtral": lambda: hf.MixtralForCausalLM(hf.MixtralConfig(**_COMMON, num_local_experts=8)),
    "qwen2_moe": lambda: hf.Qwen2MoeForCausalLM(
        hf.Qwen2MoeConfig(
            **_COMMON,
            num_experts=8,
            moe_intermediate_size=16,
            shared_expert_intermediate_size=16,
            num_experts_per_tok=3,
        )
    ),
    "qwen3_moe": lambda: hf.Qwen3MoeForCausalLM(
        _any(hf.Qwen3MoeConfig)(
            **_COMMON,
            num_experts=8,
            moe_intermediate_size=16,
            head_dim=16,
            num_experts_per_tok=3,
            norm_topk_prob=True,
        )
    ),
    "olmoe": lambda: hf.OlmoeForCausalLM(
        hf.OlmoeConfig(**_COMMON, num_experts=8, num_experts_per_tok=3)
    ),
    "deepseek_v2": lambda: hf.DeepseekV2ForCausalLM(
        hf.DeepseekV2Config(
            **_COMMON, **_MLA, topk_method="group_limited_greedy", n_group=4, topk_group=2
        )
    ),
    "deepseek_v3": lambda: hf.DeepseekV3ForCausalLM(
        hf.DeepseekV3Config(**_COMMON, **_MLA, n_group=2, topk_group=1)
    ),
    "gpt_oss": lambda: hf.GptOssForCausalLM(
        hf.GptOssConfig(**_COMMON, num_local_experts=8, head_dim=16, num_experts_per_tok=3)
    ),
    "phimoe": lambda: hf.PhimoeForCausalLM(hf.PhimoeConfig(**_COMMON, num_local_experts=8)),
    "granitemoe": lambda: hf.GraniteMoeForCausalLM(
        hf.GraniteMoeConfig(**_COMMON, num_local_experts=8, num_experts_per_tok=3)
    ),
    "dbrx": _dbrx,
    "switch": _switch,
}
DECODERS = sorted(FAMILIES.keys() - {"switch"})


def tiny(family: str, seed: int = 0) -> Any:
    """Return a random model of a family in evaluation mode, which seldom samples the end token."""
    torch.manual_seed(seed)
    model = FAMILIES[family]().eval()
    return model


def batch(num_sequences: int = 3, longest: int = 9, seed: int = 1) -> tuple[Any, Any, list[int]]:
    """Return left-padded token ids, their mask, and the lengths."""
    generator = torch.Generator().manual_seed(seed)
    lengths = [max(2, longest - 3 * number) for number in range(num_sequences)]
    ids = torch.full((num_sequences, longest), PAD)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, -length:] = torch.randint(2, VOCABULARY, (length,), generator=generator)
        mask[row, -length:] = 1
    return ids, mask, lengths
