"""The tokens of a prompt: as given, or made of a text or a chat by the tokenizer of the model."""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from typing import Any

from moesim.errors import UsageError, first_line
from moesim.record.prompts import Prompt

__all__ = ["content_of", "tokens_of"]


def content_of(prompt: Prompt) -> str:
    """Return what identifies a prompt, for a hash of all prompts."""
    if prompt.tokens is not None:
        return str(prompt.tokens)
    return prompt.text if prompt.messages is None else json.dumps(prompt.messages)


def tokens_of(prompt: Prompt, tokenizer: Any) -> Sequence[int]:
    """Return the tokens of a prompt, by the chat template of the tokenizer if it is a chat.

    Raise `UsageError` with the prompt's place if there are none.
    """
    if prompt.tokens is not None:
        tokens = prompt.tokens
    elif tokenizer is None:
        raise UsageError(f"{prompt.where}: a text needs a tokenizer, and the model has none")
    elif prompt.messages is None:
        tokens = tokenizer(prompt.text)["input_ids"]
    else:
        tokens = _chat_tokens(prompt, tokenizer)
    if not tokens:
        raise UsageError(f"{prompt.where}: the tokenizer makes no tokens of this prompt")
    return array("q", tokens)  # a million tokens take 8 MB


def _chat_tokens(prompt: Prompt, tokenizer: Any) -> Any:
    if getattr(tokenizer, "chat_template", None) is None:
        raise UsageError(
            f"{prompt.where}: messages need a tokenizer with a chat template, and this one has "
            "none. Give the whole text as 'prompt'"
        )
    try:
        from jinja2 import TemplateError
    except ImportError as error:
        raise UsageError(
            f"{prompt.where}: messages need the package jinja2 (pip install jinja2)"
        ) from error
    try:
        return tokenizer.apply_chat_template(
            [dict(message) for message in prompt.messages or ()],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
        )
    except (TemplateError, ValueError, TypeError) as error:  # templates refuse some orders of roles
        reason = first_line(error)
        raise UsageError(
            f"{prompt.where}: the chat template refuses these messages: {reason}"
        ) from error
