"""Greedy texts of tiny models by full forward passes, and the check that a server says the same."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from router_models import tiny

from moesim.executor.generate import Generation

__all__ = ["NEW", "PROMPTS", "check_text", "model_of", "plain"]

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


def check_text(ours: Generation, family: str) -> None:
    """Check that the texts, and the logits behind them, are the plain model's."""
    # DeepSeek's routers compute in float32, whatever the type of the weights.
    tolerance = 1e-5 if "deepseek" in family else 1e-9
    for tokens, logits, (expected, rows) in zip(
        ours.tokens, ours.logits, plain(family), strict=True
    ):
        assert tokens == expected
        torch.testing.assert_close(logits, rows, rtol=0, atol=tolerance)
