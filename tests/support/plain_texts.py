"""Greedy texts of tiny models by full forward passes, and the check that a server says the same."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from router_models import tiny

from moesim.executor.generate import Generation

__all__ = ["NEW", "PROMPTS", "check_text", "logit_tolerance", "model_of", "plain"]

PROMPTS: Any = ([5, 9, 31, 7, 12, 40, 3, 28, 19], [11, 22, 33, 44], [50, 2], [17] * 6)
NEW = 5


@cache
def model_of(family: str) -> Any:
    """Return a tiny model whose text no token ends."""
    model = tiny(family).to(torch.float64)
    model.set_experts_implementation("eager")  # the loop over experts, which knows all types
    model.config.eos_token_id = model.generation_config.eos_token_id = None
    return model


@cache
def plain(family: str) -> list[tuple[list[int], Any]]:
    """Return the text of each prompt, and the logits of its tokens."""
    texts = []
    for prompt in PROMPTS:
        tokens, rows = list(prompt), []
        for _ in range(NEW):
            with torch.no_grad():
                rows.append(model_of(family)(input_ids=torch.tensor([tokens])).logits[0, -1])
            tokens.append(int(rows[-1].argmax()))
        texts.append((tokens[len(prompt) :], torch.stack(rows)))
    return texts


def logit_tolerance(family: str, torch_device: str = "cpu") -> float:
    """Return how far logits may be from those of the plain model, which runs on the CPU.

    Routers of transformers' models compute a softmax in float32, whatever the type of the weights.
    A GPU sums it in another order, which changes logits by some 2e-6. DeepSeek's routers compute
    in float32 altogether, so their logits differ on the CPU too.
    """
    return 1e-5 if torch_device != "cpu" or "deepseek" in family else 1e-9


def check_text(ours: Generation, family: str, torch_device: str = "cpu") -> None:
    """Check that the texts, and the logits behind them, are the plain model's."""
    tolerance = logit_tolerance(family, torch_device)
    for tokens, logits, (expected, rows) in zip(
        ours.tokens, ours.logits, plain(family), strict=True
    ):
        assert tokens == expected
        torch.testing.assert_close(logits, rows, rtol=0, atol=tolerance)
