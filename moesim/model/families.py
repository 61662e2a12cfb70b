"""Families of models whose layers differ in kind, or that name their sizes in ways of their own.

`FAMILIES` maps the `model_type` of a configuration to what is special in it. A family that is not
listed has the usual attention in every layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from moesim.model.config_values import Values
from moesim.model.layouts import (
    bailing_hybrid,
    gated_attention,
    gemma4,
    granite_hybrid,
    indexed,
    jamba,
    kimi_linear,
    laguna,
    lfm2,
    mimo,
    minimax,
    nemotron_h,
    qwen_next,
)
from moesim.model.shapes import ModelShape
from moesim.model.spellings import (
    spelled_aria,
    spelled_cohere2,
    spelled_dbrx,
    spelled_gemma4,
    spelled_hunyuan,
    spelled_jamba,
    spelled_kimi,
    spelled_lfm2,
    spelled_llama4,
    spelled_mimo,
    spelled_nemotron,
)

__all__ = ["FAMILIES", "Family"]


@dataclass(frozen=True, slots=True)
class Family:
    """What is special in a family.

    - `spelled`: returns the values under the usual keys.
    - `layers`: returns the shape with its kinds of layers; None: they are alike.
    - `tied`: whether embeddings are tied if the configuration does not say.
    """

    spelled: Callable[[Values], Mapping[str, Any]] | None = None
    layers: Callable[[Values, ModelShape], ModelShape] | None = None
    tied: bool = False


FAMILIES: Final[Mapping[str, Family]] = {
    "afmoe": Family(layers=gated_attention),
    "aria_text": Family(spelled_aria),
    "bailing_hybrid": Family(layers=bailing_hybrid),
    "beam": Family(layers=gated_attention),
    "cohere2_moe": Family(spelled_cohere2, tied=True),
    "dbrx": Family(spelled_dbrx),
    "deepseek_v32": Family(layers=indexed),
    "gemma4_text": Family(spelled_gemma4, gemma4, tied=True),
    "glm_moe_dsa": Family(layers=indexed),
    "granitemoehybrid": Family(layers=granite_hybrid),
    "hunyuan_v1_moe": Family(spelled_hunyuan),
    "jamba": Family(spelled_jamba, jamba),
    "kimi_linear": Family(spelled_kimi, kimi_linear),
    "laguna": Family(layers=laguna),
    "lfm2_moe": Family(spelled_lfm2, lfm2, tied=True),
    "llama4_text": Family(spelled_llama4),
    "mimo_v2_flash": Family(spelled_mimo, mimo),
    "minimax": Family(layers=minimax),
    "nemotron_h": Family(spelled_nemotron, nemotron_h),
    "qwen3_5_moe_text": Family(layers=qwen_next),
    "qwen3_next": Family(layers=qwen_next),
}
"""What is special in a family, by the `model_type` of its configurations."""
