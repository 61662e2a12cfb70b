"""Models in wrappers: the model inside runs the forward passes, so its hooks are the ones to set.

torch.compile, PEFT and parallel wrappers hold one model and pass calls on to it. Compiled code
skips hooks, so a model runs uncompiled while it is recorded; its choices are the same.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

from moesim.errors import UsageError

__all__ = ["Uncompiled", "check_generates", "feels_padding", "text_model", "unwrapped"]

_COMPRESSOR = re.compile(r"Compressor$")

_NO_TEXT = {
    "diffusion_gemma": "it denoises blocks of tokens again and again, so a token has no one row",
    "openai_privacy_filter": "it labels the tokens of a text and generates none",
}
"""Families with routed experts that do not generate token by token, by `model_type`."""


def text_model(model: Any) -> Any:
    """Return the part of a model that writes text, where another part speaks it."""
    kind = getattr(getattr(model, "config", None), "model_type", "")
    return model.thinker if kind == "qwen3_omni_moe" else model


def feels_padding(model: nn.Module) -> bool:
    """Return whether padding on the left changes what a model computes for a prompt.

    It does where neighbouring tokens are compressed into one entry, counted from the first column.
    """
    return any(_COMPRESSOR.search(type(module).__name__) for module in model.modules())


def check_generates(model: Any) -> None:
    """Raise `UsageError` for a model that does not generate text token by token."""
    kind = type(model).__name__
    if (reason := _NO_TEXT.get(getattr(model.config, "model_type", ""))) is not None:
        raise UsageError(f"{kind} cannot be recorded: {reason}")
    if not callable(getattr(model, "generate", None)):
        raise UsageError(
            f"{kind} cannot generate: give a model with a language-model head, "
            "like one of AutoModelForCausalLM"
        )


def unwrapped(model: Any) -> Any:
    """Return the model inside of wrappers.

    Raise `UsageError` for a wrapper that adds tokens of its own, like a learned prompt.
    """
    from transformers import PreTrainedModel

    for _ in range(8):  # wrappers of wrappers
        inner = getattr(model, "_orig_mod", None)
        if inner is None and callable(getattr(model, "get_base_model", None)):
            active: Any = getattr(model, "active_peft_config", None)
            if getattr(active, "is_prompt_learning", False):
                raise UsageError(
                    f"{type(model).__name__} puts learned tokens before the prompt, which have no "
                    "rows in a trace; pass the model inside (get_base_model())"
                )
            inner = model.get_base_model()
        if inner is None and type(model).__name__ in ("DataParallel", "DistributedDataParallel"):
            inner = model.module
        if inner is None and not isinstance(model, PreTrainedModel):
            held = list(model.children()) if isinstance(model, nn.Module) else []
            if len(held) == 1 and isinstance(held[0], PreTrainedModel):
                inner = held[0]
        if inner is None:
            return model
        model = inner
    return model


class Uncompiled:
    """Runs all compiled code as it was written, between `begin` and `end`."""

    def __init__(self) -> None:
        self._stance: Any = None

    def begin(self) -> None:
        """Set compiled code aside."""
        self._stance = torch.compiler.set_stance("force_eager")

    def end(self) -> None:
        """Restore it; nothing happens if it was not set aside."""
        stance, self._stance = self._stance, None
        if stance is not None:
            stance.__exit__(None, None, None)
