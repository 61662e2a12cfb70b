"""Presets: the shapes of the models that `moesim models train` makes.

`shallow` and `deep` are Qwen3-MoE in transformers' classes. A token uses two experts, with
renormalised weights and the usual auxiliary loss for load balance (Fedus et al., 2022, "Switch
Transformers"). `shallow` has few, wider layers of 16 experts. `deep` has the routing shape of
Mixtral-8x7B in narrow layers: 32 layers of 8 experts, top-2. So its traces can be costed with
Mixtral's real sizes, and there are many layers to look ahead. `dense` is a Llama, to be
refactored into a mixture of experts. `gated` is a Llama whose FFNs are mixtures of 8 experts with
any gate of `gates/`. The default steps take minutes on two cores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A model's shape and its training. One step sees `batch_size` x `context` tokens."""

    family: ClassVar[str]  # of transformers: `{family}Config`, `{family}ForCausalLM`

    num_layers: int
    hidden: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocabulary: int = 2048
    context: int = 128
    batch_size: int = 8
    steps: int = 1600
    learning_rate: float = 3e-3

    def config(self, vocabulary: int, end_token: int) -> dict[str, Any]:
        """Return arguments of the family's configuration."""
        return {
            "vocab_size": vocabulary,
            "hidden_size": self.hidden,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": 4 * self.context,
            "tie_word_embeddings": True,
            "bos_token_id": end_token,
            "eos_token_id": end_token,
            "pad_token_id": end_token,
        }

    @property
    def learning(self) -> dict[str, Any]:
        """Return the model's arguments in training, other than ids and labels."""
        return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class DensePreset(Preset):
    """A Llama: every token runs through the whole FFN of every layer."""

    family: ClassVar[str] = "Llama"

    ffn: int

    def config(self, vocabulary: int, end_token: int) -> dict[str, Any]:
        """Return arguments of `LlamaConfig`."""
        return {**Preset.config(self, vocabulary, end_token), "intermediate_size": self.ffn}


@dataclass(frozen=True, slots=True, kw_only=True)
class MoePreset(Preset):
    """A Qwen3-MoE, whose routers learn to balance their experts."""

    family: ClassVar[str] = "Qwen3Moe"

    expert_ffn: int
    num_experts: int = 16
    top_k: int = 2
    balance: float = 0.01  # weight of the load-balancing loss

    def config(self, vocabulary: int, end_token: int) -> dict[str, Any]:
        """Return arguments of `Qwen3MoeConfig`."""
        return {
            **Preset.config(self, vocabulary, end_token),
            "intermediate_size": 2 * self.hidden,
            "moe_intermediate_size": self.expert_ffn,
            "num_experts": self.num_experts,
            "num_experts_per_tok": self.top_k,
            "norm_topk_prob": True,
            "router_aux_loss_coef": self.balance,
        }

    @property
    def learning(self) -> dict[str, Any]:
        """Return the switch that makes transformers add the balance loss to the output's loss."""
        return {"output_router_logits": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedPreset(Preset):
    """A mixture with any gate; `gated.py` explains the fields.

    Gates learn at `gate_factor` times the learning rate, without weight decay.
    """

    family: ClassVar[str] = "Llama"

    expert_ffn: int
    num_experts: int = 8
    top_k: int = 2
    gate: str = "top_k"
    gate_options: Mapping[str, Any] = field(default_factory=dict)
    gate_factor: float = 1.0
    routed_by: str = "hidden"
    router: Mapping[str, Any] | None = None

    def config(self, vocabulary: int, end_token: int) -> dict[str, Any]:
        """Return arguments of the base's `LlamaConfig`, whose FFNs are then replaced."""
        return {**Preset.config(self, vocabulary, end_token), "intermediate_size": self.expert_ffn}


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "shallow": MoePreset(
            num_layers=4, hidden=128, expert_ffn=128, num_heads=4, num_kv_heads=2, head_dim=32
        ),
        "deep": MoePreset(
            num_layers=32,
            hidden=64,
            expert_ffn=64,
            num_heads=4,
            num_kv_heads=2,
            head_dim=16,
            num_experts=8,
            steps=800,
        ),
        "dense": DensePreset(
            num_layers=4, hidden=128, ffn=512, num_heads=4, num_kv_heads=4, head_dim=32
        ),
        "gated": GatedPreset(
            num_layers=4,
            hidden=64,
            expert_ffn=64,
            num_heads=4,
            num_kv_heads=4,
            head_dim=16,
            vocabulary=1024,
            router={"hidden": 64, "heads": 2, "ffn": 64},
        ),
    }
)
