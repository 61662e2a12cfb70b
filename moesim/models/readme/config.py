"""The configuration of a refactored model: a dense model's own, and what has become of its FFNs."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

MODEL_TYPE = "moesim_readme"
ROUTINGS = ("decoupled", "layerwise")
LAYOUTS = ("masked", "fused", "unfused")


class ReadMeConfig(PreTrainedConfig):
    """`base` is the dense model's configuration. Every one of its FFNs has become `num_experts`
    experts, of which a token uses one.

    `layout`: `masked` (the dense weights and a mask for each expert: the form that is trained),
    `fused` (each expert has channels of its own, `expert_ffn` of them, copies of the permanent ones
    included) or `unfused` (the permanent channels, `shared_ffn` of them, stand apart and are always
    on). `scaled`: outputs are multiplied by the router's probability (equation 2 of the paper; its
    code does not). `router` holds the arguments of `PreGatingRouter`; a layer-wise router is one
    matrix a layer.
    """

    model_type = MODEL_TYPE
    sub_configs_defaults = {  # noqa: RUF012
        "base": SubConfigSpec(config_class=AutoConfig, model_type="llama")
    }
    base: dict[str, Any] | PreTrainedConfig | None = None
    num_experts: int = 2
    num_experts_per_tok: int = 1
    expert_ffn: int = 0
    shared_ffn: int = 0
    routing: str = "decoupled"
    layout: str = "masked"
    scaled: bool = False
    router: dict[str, Any] | None = None
    vocab_size: int = 0

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]
        base: Any = self.base
        self.vocab_size = base.vocab_size
        for name in ("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings"):
            setattr(self, name, getattr(base, name, None))

    def get_text_config(self, *_: Any, **__: Any) -> Any:
        """The dense model's, from which transformers learns of layers and caches."""
        return self.base
