"""The real machine generates the text of the model itself, or refuses the family by name."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the real machine needs the torch extra")
pytest.importorskip("greenlet")

from family_table import own_text  # noqa: E402
from moe_families import FAMILIES, PROMPTS, tiny_family  # noqa: E402

from moesim.errors import UsageError  # noqa: E402
from moesim.executor.generate import Serving, generate  # noqa: E402

REFUSED = {
    **dict.fromkeys(
        ("axk2", "deepseek_v32", "deepseek_v4", "dots3_note_text", "glm_moe_dsa", "hy_v4"),
        "keeps entries of earlier tokens",
    ),
    "mistral_large4": "keeps entries of earlier tokens",
    **dict.fromkeys(
        ("bailing_hybrid", "granitemoehybrid", "jamba", "kimi_linear", "lfm2_moe", "nemotron_h"),
        "is a convolution along the sequence",
    ),
    **dict.fromkeys(
        ("glm5_next", "inkling_text", "inkling2_text", "zaya"),
        "is a convolution along the sequence",
    ),
    **dict.fromkeys(
        ("qwen3_5_moe_text", "qwen3_next", "qwen4_exp_text"),
        "is a convolution along the sequence",
    ),
    **dict.fromkeys(("dbrx", "longcat_flash", "muse_spark", "step3p7"), "run from buffers"),
    **dict.fromkeys(("jetmoe", "llama4_text"), "is not called with ids and weights"),
    "ernie4_5_vl_moe": "several banks of experts",
    "minimax": "only 2 of 4 layers",
    "switch_transformers": "not a Hugging Face decoder",
}
"""Families that are refused, and what the message says."""

FAST = (
    *("afmoe", "ernie4_5_moe", "gemma4_text", "laguna", "qwen3_omni_moe_thinker"),
    *("deepseek_v4", "llama4_text", "zaya", "ernie4_5_vl_moe"),
)


@pytest.mark.parametrize(
    "kind", [k if k in FAST else pytest.param(k, marks=pytest.mark.slow) for k in FAMILIES]
)
def test_the_text_is_the_models_own_or_the_family_is_refused(kind: str) -> None:
    model: Any = tiny_family(kind).to(torch.float64)
    model.set_experts_implementation("eager")
    serving = Serving(slots=8, token_budget=7, max_sequences=3)
    if kind in REFUSED:
        with pytest.raises(UsageError, match=REFUSED[kind]):
            generate(model, PROMPTS, 4, serving)
        return
    assert generate(model, PROMPTS, 4, serving).tokens == own_text(model, PROMPTS, 4)
