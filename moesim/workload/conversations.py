"""Conversations as ShareGPT's JSON holds them: the first prompt and its answer are a request.

So do the benchmarks of vLLM and SGLang. System turns before the prompt are part of it. The files
hold text and no token counts, so lengths are characters divided by a stated number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from moesim.workload.cells import MOST_LENGTH, shown

__all__ = ["conversation_lengths"]

_ASKING: Final = ("human", "user")
_ANSWERING: Final = ("gpt", "assistant", "chatgpt", "bing", "bard", "model")


def conversation_lengths(
    record: Mapping[str, Any], characters_per_token: float | None
) -> tuple[int, int]:
    """Return prompt and output tokens of a conversation; 0 for a part that it lacks.

    A text that is not empty has at least one token. Raise `ValueError` for another structure.
    """
    if characters_per_token is None:
        raise ValueError(
            "holds text without token counts; state `characters_per_token` (about 4 in English)"
        )
    turns = record.get("conversations")
    if not isinstance(turns, list):
        raise ValueError("has no list `conversations`")
    texts = [_turn(turn) for turn in turns]
    prompt = ""
    while texts and texts[0][0] == "system":
        prompt += texts.pop(0)[1]
    if not texts or texts[0][0] not in _ASKING:
        return 0, 0
    prompt += texts.pop(0)[1]
    answer = texts[0][1] if texts and texts[0][0] in _ANSWERING else ""
    return _tokens(prompt, characters_per_token), _tokens(answer, characters_per_token)


def _turn(turn: object) -> tuple[str, str]:
    """Return the speaker and the text of a turn. Raise `ValueError` if it has none."""
    if not isinstance(turn, dict):
        raise ValueError(f"turn {shown(str(turn))} must be an object with `from` and `value`")
    speaker, text = turn.get("from"), turn.get("value")
    if speaker not in ("system", *_ASKING, *_ANSWERING):
        raise ValueError(f"has a turn of an unknown speaker, {shown(str(speaker))}")
    if type(text) is not str:  # a number would be a `Cell`
        raise ValueError(f"has a turn of {speaker} whose `value` is no text")
    return str(speaker), text


def _tokens(text: str, characters_per_token: float) -> int:
    tokens = math.ceil(len(text) / characters_per_token)
    if tokens > MOST_LENGTH:
        raise ValueError(f"has a turn of {tokens:,} tokens; at most {MOST_LENGTH:,} are simulated")
    return tokens
